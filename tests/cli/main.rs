//! The command line against a gateway that each test scripts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fake;
mod files;
mod jobs;
mod knowledge;
mod watch;

use fake::drydock;

#[tokio::test]
async fn the_help_names_every_command_and_exit_code() {
    let output = drydock(&["--help"]).output().await.unwrap();
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}

#[tokio::test]
async fn the_help_of_finetune_names_every_option() {
    let output = drydock(&["finetune", "-h"]).output().await.unwrap();
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}

#[tokio::test]
async fn a_gateway_that_is_not_there_is_said_with_the_next_step() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let output = drydock(&["jobs", "--gateway", &format!("http://{free}")]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!(
            "error: no gateway answers at http://{free}: Connection refused (os error 111)\n\
             hint: start it with `drydock serve`, or name another one with --gateway or DRYDOCK_URL\n"
        )
    );
    assert!(output.stdout.is_empty());
}

#[tokio::test]
async fn a_wrong_address_or_flag_is_wrong_usage() {
    for arguments in [&["jobs", "--gateway", "localhost:7717"][..], &["jobs", "--limit", "0"], &["finetune"]] {
        assert_eq!(drydock(arguments).output().await.unwrap().status.code(), Some(2), "{arguments:?}");
    }
}

#[tokio::test]
async fn the_gateway_is_found_where_its_state_folder_says() {
    let fake = fake::Fake::start(fake::Script::default()).await;
    let state = tempfile::tempdir().unwrap();
    let published = drydock::config::AddressFile::publish(state.path(), fake.address).unwrap();
    let list = ["jobs", "--state-dir", state.path().to_str().unwrap()];
    assert_eq!(drydock(&list).output().await.unwrap().status.code(), Some(0));
    // An empty variable is no address.
    assert_eq!(drydock(&list).env("DRYDOCK_URL", "").output().await.unwrap().status.code(), Some(0));
    drop(published);
    // A port that nobody may listen on: what the configuration says counts again.
    let configured = drydock(&list).env("DRYDOCK_GATEWAY__LISTEN", "127.0.0.1:1").output().await.unwrap();
    assert_eq!(configured.status.code(), Some(5));
    assert!(String::from_utf8(configured.stderr).unwrap().contains("http://127.0.0.1:1:"));
}

#[tokio::test]
async fn the_configuration_is_printed_as_a_file_that_sets_the_same() {
    let arguments = ["config", "--listen", "127.0.0.1:0", "--data-dir", "/a", "--data-dir", "/b", "--image", "12"];
    let printed = drydock(&arguments).output().await.unwrap();
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.contains("listen = \"127.0.0.1:0\"  # flag --listen"), "{text}");
    assert!(text.contains("image = \"12\"  # flag --image"), "{text}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("again.toml");
    std::fs::write(&file, &text).unwrap();
    let json = async |arguments: &[&str]| {
        let output = drydock(arguments).output().await.unwrap();
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let values = document.as_object().unwrap().iter();
        values.map(|(key, entry)| (key.clone(), entry["value"].clone())).collect::<Vec<_>>()
    };
    let again = json(&["config", "--json", "--config", file.to_str().unwrap()]).await;
    assert_eq!(again, json(&[&arguments[..], &["--json"]].concat()).await);
}

#[tokio::test]
async fn a_bad_configuration_stops_every_command_that_reads_it() {
    let output = drydock(&["config"]).env("DRYDOCK_LIMITS__PIDS", "many").output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: environment variable DRYDOCK_LIMITS__PIDS: limits.pids = \"many\": not accepted; write a whole number \
         from 1 up\n"
    );
}

#[tokio::test]
async fn doctor_says_how_each_thing_stands() {
    let state = tempfile::tempdir().unwrap();
    let arguments = ["doctor", "--json", "--state-dir", state.path().to_str().unwrap()];
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let output = drydock(&arguments).env("DRYDOCK_URL", format!("http://{free}")).output().await.unwrap();
    let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let verdict = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap()["verdict"].clone();
    assert_eq!(verdict("configuration"), "ok");
    assert_eq!(verdict("state folder"), "ok");
    assert_eq!(verdict("gateway"), "warn");
    let broken = checks.iter().any(|check| check["verdict"] == "problem");
    assert_eq!(output.status.code(), Some(i32::from(broken)));
    assert!(checks.iter().filter(|check| check["verdict"] != "ok").all(|check| check["mend"].is_string()));
}

#[tokio::test]
async fn every_shell_gets_its_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = drydock(&["completions", shell]).output().await.unwrap();
        assert!(String::from_utf8(output.stdout).unwrap().contains("per-device-train-batch-size"), "{shell}");
    }
}
