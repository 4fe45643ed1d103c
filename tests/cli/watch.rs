//! Following a job.

use drydock_spec::JobId;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::fake::{Connection, End, Fake, Script, drydock, id, line, report, short_log, view};

fn script(state: &str, connections: Vec<Connection>) -> Script {
    Script { jobs: vec![view(&id(1), state)], log: short_log(), connections: connections.into(), ..Script::default() }
}

#[tokio::test]
async fn a_cut_connection_is_taken_up_after_the_last_line_that_came() {
    let connections = vec![
        Connection { lines: 1..=4, end: End::Cut },
        // The gateway repeats a line, as one that lost count of its clients might.
        Connection { lines: 4..=5, end: End::Cut },
        Connection { lines: 6..=6, end: End::Done },
    ];
    let fake = Fake::start(script("succeeded", connections)).await;
    let ran = fake.run(&["watch", &id(1)]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fake.heard(|script| script.resumed_after.clone()), [None, Some("4".into()), Some("5".into())]);
    assert_eq!(
        ran.stderr.lines().filter(|line| !line.contains("connect")).collect::<Vec<_>>(),
        [
            &format!("{} finetune tiny on rows", id(1)),
            "queued",
            "attempt 1 begins",
            "step 1/2  loss 2.5000  learning rate 2.00e-4  812 tokens/s  1:01 left",
            "step 2/2  loss 2.5000  learning rate 2.00e-4  812 tokens/s  1:01 left",
            "train took 2.0 s",
            "attempt 1 succeeded",
        ]
    );
    assert_eq!(ran.stderr.matches("connected again").count(), 2);
    assert!(ran.stdout.starts_with(&format!("{} succeeded: it is succeeded\n", id(1))), "{}", ran.stdout);
}

#[tokio::test]
async fn a_job_that_ended_while_the_connection_was_away_is_not_waited_for() {
    let fake = Fake::start(script("succeeded", vec![Connection { lines: 1..=6, end: End::Cut }])).await;
    assert_eq!(fake.run(&["watch", &id(1)]).await.code, 0);
    assert_eq!(fake.heard(|script| script.resumed_after.clone()), [None, Some("6".into())]);
}

#[tokio::test]
async fn the_exit_code_tells_how_the_job_ended() {
    for (state, code) in [("succeeded", 0), ("failed", 3), ("cancelled", 4)] {
        let fake = Fake::start(script(state, vec![Connection { lines: 1..=2, end: End::Done }])).await;
        assert_eq!(fake.run(&["watch", "last"]).await.code, code, "{state}");
    }
}

#[tokio::test]
async fn a_failed_job_says_why_and_what_next() {
    let mut job = view(&id(1), "failed");
    job["failure"] = json!({"kind": "out_of_memory", "message": "needed 3 GiB", "hint": "halve the batch"});
    let script = Script { jobs: vec![job], ..Script::default() };
    let ran = Fake::start(script).await.run(&["watch", &id(1)]).await;
    assert_eq!(ran.stdout, format!("{} failed: it is failed\n  hint: halve the batch\n", id(1)));
}

#[tokio::test]
async fn nothing_that_a_job_wrote_commands_the_terminal() {
    let mut job = view(&id(1), "succeeded");
    let completion = "\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}x\r\ny";
    job["samples"] = json!([{"phase": "before", "prompt": "p\u{8}", "completion": completion, "stopped": true}]);
    job["warnings"] = json!(["\u{1b}[2J"]);
    job["summary"] = json!("\u{1b}[31mred");
    let log = vec![
        report(
            1,
            json!({"type": "sample", "phase": "before", "prompt": "p", "completion": completion, "stopped": true}),
        ),
        report(2, json!({"type": "warning", "code": "c", "message": "\u{1b}[2J"})),
        report(3, json!({"type": "artifact", "path": "\u{1b}[H", "role": "\u{7f}"})),
    ];
    let fake = Fake::start(Script { jobs: vec![job], log, ..Script::default() }).await;
    for arguments in [
        &["watch", &id(1)][..],
        &["watch", &id(1), "--json"],
        &["logs", &id(1)],
        &["logs", &id(1), "--json"],
        &["show", &id(1)],
        &["show", &id(1), "--json"],
        &["jobs"],
    ] {
        fake.script.lock().unwrap().connections = vec![Connection { lines: 1..=3, end: End::Done }].into();
        let ran = fake.run(arguments).await;
        let hostile = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!(ran.stdout + &ran.stderr).contains(hostile), "{arguments:?}");
    }
}

#[tokio::test]
async fn in_json_each_line_is_an_object_and_the_job_comes_last() {
    let fake = Fake::start(script("succeeded", vec![Connection { lines: 1..=6, end: End::Done }])).await;
    let ran = fake.run(&["watch", &id(1), "--json"]).await;
    let lines: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seqs: Vec<_> = lines.iter().filter_map(|line| line["seq"].as_u64()).collect();
    assert_eq!(seqs, [1, 2, 3, 4, 5, 6]);
    assert_eq!(lines[6]["job"]["state"], "succeeded");
    assert!(ran.stderr.is_empty(), "{}", ran.stderr);
}

#[tokio::test]
async fn an_interrupt_ends_the_watching_and_not_the_job() {
    let (sent, everything_sent) = oneshot::channel();
    let fake = Fake::start(script("running", vec![Connection { lines: 1..=4, end: End::Open(sent) }])).await;
    let child = drydock(&["watch", &id(1)]).env("DRYDOCK_URL", &fake.url).spawn().unwrap();
    everything_sent.await.unwrap();
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(130));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("come back with `drydock watch {}`", id(1))), "{said}");
    assert!(fake.heard(|script| script.cancelled.is_empty()));
}

#[tokio::test]
async fn a_line_of_a_newer_gateway_is_passed_over() {
    let mut log = short_log();
    log[2] = line(3, json!({"surprise": {}}));
    let connections = vec![Connection { lines: 1..=3, end: End::Cut }, Connection { lines: 4..=6, end: End::Done }];
    let script = Script { log, ..script("succeeded", connections) };
    let fake = Fake::start(script).await;
    assert_eq!(fake.run(&["watch", &id(1)]).await.code, 0);
    assert_eq!(fake.heard(|script| script.resumed_after.clone()), [None, Some("3".into())]);
}

#[tokio::test]
async fn a_log_is_printed_and_followed() {
    let fake = Fake::start(script("succeeded", vec![Connection { lines: 1..=6, end: End::Done }])).await;
    let printed = fake.run(&["logs", &id(1)]).await.stdout;
    assert!(printed.starts_with("    1  16:00:00  queued\n    2  16:00:01  attempt 1 begins\n"), "{printed}");
    assert!(printed.ends_with("--- last words of the container (untrusted) ---\nbye\\u{1b}[2J\n"), "{printed}");
    let followed = fake.run(&["logs", &id(1), "--follow"]).await.stdout;
    assert_eq!(followed.lines().count(), 6);
    assert!(printed.starts_with(&followed));
    id(1).parse::<JobId>().unwrap();
}
