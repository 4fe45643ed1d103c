//! What `images/README.md` tells the writers of images is true.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere, its scaffolding too")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use drydock_spec::{AttemptSpec, Preview, Report, ReportLine};

const CONTRACT: &str = include_str!("../images/README.md");

/// The code blocks in that language.
fn blocks(language: &str) -> Vec<&'static str> {
    CONTRACT.split(&format!("```{language}\n")).skip(1).map(|rest| rest.split_once("```").unwrap().0).collect()
}

/// The first of them.
fn block(language: &str) -> &'static str {
    blocks(language)[0]
}

#[test]
fn the_example_of_a_spec_is_one() {
    let spec: AttemptSpec = serde_json::from_str(block("json")).unwrap();
    let given: serde_json::Value = serde_json::from_str(block("json")).unwrap();
    assert_eq!(serde_json::to_value(spec).unwrap(), given, "no field is missing, and none is made up");
}

#[test]
fn the_example_of_a_preview_is_one() {
    let example = blocks("json")[1];
    let preview: Preview = serde_json::from_str(example).unwrap();
    let given: serde_json::Value = serde_json::from_str(example).unwrap();
    assert_eq!(serde_json::to_value(preview).unwrap(), given);
}

#[test]
fn the_examples_of_reports_are_all_there_are() {
    let examples: Vec<ReportLine> =
        block("jsonl").lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let shown: BTreeSet<&str> = examples.iter().map(|line| line.report.name()).collect();
    assert_eq!(shown.len(), examples.len(), "one example of each");

    let schema = serde_json::to_value(schemars::schema_for!(Report)).unwrap();
    let kinds = schema["oneOf"].as_array().unwrap();
    let mut kinds: BTreeSet<&str> =
        kinds.iter().map(|kind| kind["properties"]["type"]["const"].as_str().unwrap()).collect();
    assert!(kinds.remove("gpus"), "what only the host says is refused from a worker");
    assert_eq!(shown, kinds);
}

#[test]
fn the_python_program_keeps_the_contract() {
    let python = Command::new("python3").arg("--version").status();
    assert!(python.is_ok_and(|status| status.success()), "python3 is missing; `make test` installs it");
    let dir = tempfile::tempdir().unwrap();
    let (program, spec) = (dir.path().join("worker.py"), dir.path().join("spec.json"));
    std::fs::write(&program, block("python")).unwrap();
    std::fs::write(&spec, spec_with_paths_of(dir.path())).unwrap();
    let ended =
        Command::new("python3").args([program.to_str().unwrap(), "run", spec.to_str().unwrap()]).output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));

    let events = std::fs::read_to_string(dir.path().join("events.jsonl")).unwrap();
    let reports: Vec<ReportLine> = events.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let names: Vec<_> = reports.iter().map(|line| line.report.name()).collect();
    assert_eq!(names, ["started", "stage", "metrics", "metrics", "metrics", "artifact", "finished"]);
    assert!(dir.path().join("adapter_model.bin").exists());
}

/// The example's spec as for a run by hand, without a container.
fn spec_with_paths_of(dir: &Path) -> String {
    let mut spec: AttemptSpec = serde_json::from_str(block("json")).unwrap();
    spec.output = dir.to_owned();
    spec.events = dir.join("events.jsonl");
    serde_json::to_string(&spec).unwrap()
}
