//! Chat templates that would take all memory, or never end.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use drydock_spec::contract::EXIT_FAILED;
use drydock_spec::{Failure, FailureKind, Report, Stage};
use serde_json::json;

use crate::scene::Scene;

/// How an attempt ends whose model has this template, and the most memory that it had, in MiB.
#[allow(clippy::zombie_processes, reason = "it is waited for by a call that tells the memory as well")]
fn ending(template: &str) -> (Option<Failure>, ExitStatus, i64) {
    let mut scene = Scene::new(json!({}));
    scene.spec["threads"] = json!(2);
    let config = json!({"eos_token": "<|im_end|>", "chat_template": template});
    std::fs::write(scene.path("model/tokenizer_config.json"), config.to_string()).unwrap();
    let child = scene.start("run");
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: the child has not been waited for, and both places are there to be written to.
    let waited = unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, usage.as_mut_ptr()) };
    assert_eq!(waited, child.id() as libc::pid_t);
    // SAFETY: all of it is numbers, and zero before it was written.
    let peak = unsafe { usage.assume_init() }.ru_maxrss / 1024;
    let failure = match scene.reports().pop() {
        Some(Report::Failed(failure)) => Some(failure),
        _ => None,
    };
    (failure, ExitStatus::from_raw(status), peak)
}

fn failure(template: &str) -> (Failure, i64) {
    let (failure, status, peak) = ending(template);
    assert_eq!(status.code(), Some(EXIT_FAILED), "{template}: {status}");
    let failure = failure.unwrap_or_else(|| panic!("{template}: it ended without a word"));
    assert_eq!(failure.stage, Some(Stage::Tokenize), "{failure:?}");
    (failure, peak)
}

/// Loops within loops: the engine's own limit is for a single one.
fn often(what: &str) -> String {
    format!(
        "{{% set ns = namespace(s='x' * 64, l=[]) %}}{{% for a in range(9999) %}}{{% for b in range(9999) %}}{what}{{% endfor %}}{{% endfor %}}"
    )
}

#[test]
fn a_template_that_eats_memory_fails_as_one_while_there_is_enough_left() {
    let long = "{% set s = 'x' * 5000000 %}";
    let hungry = [
        // Twice as long with each turn; and the same without a loop, or any call.
        often("{% set ns.s = ns.s ~ ns.s %}"),
        often("{% set ns.s = ns.s + ns.s %}"),
        format!("{{% set s = 'x' * 999 %}}{}", "{% set s = s ~ s %}".repeat(40)),
        // Long texts in the place of short ones.
        format!("{long}{{{{ s.replace('x', s) | length }}}}"),
        format!("{long}{{{{ s | replace('x', s) | length }}}}"),
        format!("{long}{{{{ range(9999) | join(s) | length }}}}"),
        format!("{long}{{{{ s.join(range(9999)) | length }}}}"),
        format!("{long}{{{{ ('\n' * 9999) | indent(99999999, true, true) | length }}}}"),
        // Many of them.
        format!(
            "{long}{{% set ns = namespace(l=[]) %}}{{% for a in range(9999) %}}{{% set ns.l = ns.l + [s ~ a] %}}{{% endfor %}}"
        ),
        // What is written is kept.
        format!("{long}{{% set t %}}{{% for a in range(9999) %}}{{{{ s }}}}{{% endfor %}}{{% endset %}}"),
        format!(
            "{long}{{% macro m() %}}{{% for a in range(9999) %}}{{{{ s }}}}{{% endfor %}}{{% endmacro %}}{{{{ m() | length }}}}"
        ),
        // Before there is a row.
        format!("{{{{ 'x' * 9 }}}}{{% set s = {} %}}", ["'x' * 99000000"; 9].join(" ~ ")),
    ];
    let usual = ending("{{ messages[0].content }}").2;
    for template in hungry {
        let (failure, peak) = failure(&template);
        assert_eq!(failure.kind, FailureKind::BadModel, "{template}: {failure:?}");
        assert_eq!(failure.message, "the model's chat template takes more than 32 MiB of memory", "{template}");
        assert!(failure.hint.starts_with("mend the model's chat template"), "{}", failure.hint);
        // Two threads, each with a ration.
        assert!(peak < usual + 2 * 32 + 8, "{template}: {peak} MiB, {usual} MiB without");
    }
}

#[test]
fn values_that_lie_in_each_other_without_end_do_not_exhaust_the_stack() {
    for template in [
        often("{% set ns.l = [ns.l] %}"),
        often("{% set ns.l = {'a': ns.l} %}"),
        often("{% set ns.l = ns.l + [ns.l] %}"),
        "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}".to_owned(),
        format!("{{{{ {}1{} }}}}", "[".repeat(99_999), "]".repeat(99_999)),
    ] {
        let shown: String = template.chars().take(200).collect();
        let (failure, _) = failure(&template);
        assert!(matches!(failure.kind, FailureKind::BadModel | FailureKind::BadDataset), "{shown}: {failure:?}");
        assert!(failure.message.contains("chat template"), "{shown}: {failure:?}");
    }
}

#[test]
fn a_template_that_takes_its_time_is_ended() {
    // Each of the instructions goes through megabytes.
    let slow = often("{% if 'y' in t %}{% endif %}").replacen("{% for", "{% set t = 'x' * 5000000 %}{% for", 1);
    let (failure, _) = failure(&slow);
    assert_eq!((failure.kind, failure.stage), (FailureKind::BadModel, Some(Stage::Tokenize)));
    assert_eq!(failure.message, "the model's chat template takes more than 10 seconds");
}
