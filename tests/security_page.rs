//! The security page names tests as its evidence; every one of them has to be there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeSet;
use std::path::Path;

/// Names of tests are facts in snake case: four words at least.
fn named(page: &str) -> BTreeSet<&str> {
    let quoted = page.split('`').skip(1).step_by(2);
    let is_fact = |text: &&str| {
        text.matches('_').count() >= 3 && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    quoted.filter(is_fact).collect()
}

/// Every function below the folder, by name.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            functions(&entry.path(), found);
        } else if entry.path().extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            let names = text.lines().filter_map(|line| {
                let (_, rest) = line.split_once("fn ")?;
                Some(rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()?.to_owned())
            });
            found.extend(names);
        }
    }
}

#[test]
fn every_test_that_the_security_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join(".github/SECURITY.md")).unwrap();
    let mut found = BTreeSet::new();
    ["runner", "tests", "jobs"].iter().for_each(|folder| functions(&root.join(folder), &mut found));
    let named = named(&page);
    assert!(named.len() > 60, "only {} tests are named", named.len());
    let missing: Vec<_> = named.into_iter().filter(|name| !found.contains(*name)).collect();
    assert_eq!(missing, <[&str; 0]>::default());
}

#[test]
fn every_test_of_the_sandbox_is_named_on_the_security_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join(".github/SECURITY.md")).unwrap();
    let mut unnamed = Vec::new();
    for file in ["walls", "kernel", "greed", "outputs", "other_engines", "gpus"] {
        let text = std::fs::read_to_string(root.join(format!("tests/sandbox/{file}.rs"))).unwrap();
        let tests = text.split("#[tokio::test]\nasync fn ").skip(1).filter_map(|test| test.split('(').next());
        unnamed.extend(tests.filter(|test| !page.contains(&format!("`{test}`"))).map(str::to_owned));
    }
    assert_eq!(unnamed, <[String; 0]>::default());
}
