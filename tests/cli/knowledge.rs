//! Experience, to a file and from one.

use serde_json::json;

use crate::fake::{Fake, Script};

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
