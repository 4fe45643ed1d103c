//! Every job a user of its own, the whole way.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

use super::harness::process::{Folders, Gateway};
use super::{finetune, submit, wait};

#[tokio::test]
async fn jobs_at_the_same_time_have_a_user_each_and_come_to_their_end() {
    if !rustix::process::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "skipped: only root can give a job's files to another user");
        return;
    }
    let folders = Folders::new(60);
    let range = ("DRYDOCK_SANDBOX__UIDS".to_owned(), "70000-70009".to_owned());
    let gateway = Gateway::start_with(&folders.state(), &folders.data(), &[range]).await;
    let gateway = folders.stock(gateway).await;
    let mut arguments = finetune(60);
    arguments["limits"] = serde_json::json!({"cpus": 0.5});
    let jobs = [submit(&gateway, arguments.clone()).await, submit(&gateway, arguments).await];
    for job in &jobs {
        gateway.events(job, 0, |event| event["report"]["step"].is_number()).await;
    }
    let users: BTreeSet<u32> = jobs.iter().flat_map(|job| users_of(&folders, job)).collect();
    assert_eq!(users.len(), 2, "{users:?}");
    assert!(users.iter().all(|user| (70_000..=70_009).contains(user)), "{users:?}");
    for job in &jobs {
        let view = wait(&gateway, job).await;
        assert_eq!(view["state"], "succeeded", "{view:#}");
        let made = gateway.ask("list_artifacts", serde_json::json!({"id": job})).await;
        assert!(!made["artifacts"].as_array().unwrap().is_empty(), "{made:#}");
    }
}

/// Whom the reports and the output of a job's first attempt belong to on the host.
fn users_of(folders: &Folders, job: &str) -> [u32; 2] {
    let folder = folders.state().join("attempts").join(format!("{job}-1"));
    ["events.jsonl", "out"].map(|file| std::fs::metadata(folder.join(file)).unwrap().uid())
}
