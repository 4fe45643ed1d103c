//! Experience, to a file and from one.

use serde_json::json;

use crate::fake::{Fake, Script, id, view};

const FILE: &str = "{\"format\":\"drydock-knowledge\",\"version\":1,\"installation\":\"0123abcd\"}\n{\"failure\":{}}\n";

fn script() -> Script {
    Script { knowledge: FILE.into(), ..Script::default() }
}

#[tokio::test]
async fn experience_is_written_as_it_comes_and_over_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("knowledge.jsonl");
    let fake = Fake::start(script()).await;
    let ran = fake.run(&["knowledge", "export"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, FILE), "{}", ran.stderr);
    let arguments = ["knowledge", "export", file.to_str().unwrap(), "--name", "team-a", "--notes"];
    let ran = fake.run(&arguments).await;
    assert_eq!((ran.code, ran.stderr), (0, format!("{}: 1 failures and remedies\n", file.display())));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), FILE);
    assert_eq!(fake.heard(|script| script.asked.clone()), ["notes=false", "notes=true&name=team-a"]);
    let ran = fake.run(&arguments).await;
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("File exists"), "{}", ran.stderr);
}

#[tokio::test]
async fn experience_of_others_is_handed_over_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("knowledge.jsonl");
    std::fs::write(&file, FILE).unwrap();
    let fake = Fake::start(script()).await;
    let ran = fake.run(&["knowledge", "import", file.to_str().unwrap()]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{}", ran.stderr);
    assert_eq!(ran.stderr, "team-a (0123abcd): 3 remedies new, 1 changed, 2 as before; 7 failures seen there\n");
    assert_eq!(fake.heard(|script| script.imports.clone()), [json!(FILE)]);
    std::fs::write(&file, vec![b' '; (8 << 20) + 1]).unwrap();
    let ran = fake.run(&["knowledge", "import", file.to_str().unwrap()]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("larger than any export"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_models_words_are_shown_as_its_and_their_lack_is_a_note() {
    let told = |in_words| {
        json!({
            "job": id(1), "attempt": 1, "at_ms": 1_764_000_000_000_i64, "fingerprint": "v1:cb07a49e8be7d29863c7",
            "failure": {"kind": "bad_dataset", "message": "row 3: bad", "hint": "mend the row", "retryable": false},
            "template": "row <number>: bad", "seen": 1, "seen_by_jobs": 1, "in_words": in_words,
            "seen_elsewhere": [{"installation": "team-a (0123abcd)", "count": 12}],
            "evidence": {"oom_killed": false, "outage": false, "reported": true, "elapsed_ms": 1500,
                         "environment": {"drydock": "0.1.0"}},
        })
    };
    let jobs = vec![view(&id(1), "failed")];
    let said = told(json!({"model": "small", "text": "Row 3\u{1b}[2J is bad."}));
    let fake = Fake::start(Script { jobs: jobs.clone(), told: said, ..Script::default() }).await;
    let ran = fake.run(&["explain", "last", "--in-words"]).await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stdout.contains("seen      for the first time; 12 times at team-a (0123abcd)\n")
            && ran.stdout.ends_with("in words  Row 3\\u{1b}[2J is bad. (says small, a language model)\n"),
        "{}",
        ran.stdout
    );
    assert_eq!(fake.heard(|script| script.asked.clone()), ["words=true"]);
    let silent = told(json!({"note": "the language model's endpoint answered 500"}));
    let fake = Fake::start(Script { jobs, told: silent, ..Script::default() }).await;
    let ran = fake.run(&["explain", "last", "--in-words"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "no words: the language model's endpoint answered 500\n"));
}
