//! One attempt from its spec to its last report and exit code.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use drydock_spec::contract::{EXIT_FAILED, EXIT_FINISHED, EXIT_STOPPED, VERSION};
use drydock_spec::report::{Finished, Started};
use drydock_spec::{AttemptSpec, Failure, FailureKind, JobSpec, Report};

use crate::compute::Compute;
use crate::ending::{Ending, Result};
use crate::kernels::simd;
use crate::report::Reporter;
use crate::{evaluate, finetune, foreign, preview, quantize, stop, train};

/// What is to be done with a spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The job itself.
    Run,
    /// A look at the dataset.
    Preview,
}

/// Templates, patterns and JSON are other people's: what they nest deeply should reach the limits of those who read it,
/// not the end of the stack. Only what is used is ever backed by memory.
pub const STACK_BYTES: usize = 256 << 20;

/// Reads the spec; the first thing that can go wrong, and there is nowhere yet to report it.
pub fn read_spec(path: &Path) -> anyhow::Result<AttemptSpec> {
    let text = std::fs::read(path).with_context(|| format!("cannot read the spec {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no spec of an attempt", path.display()))
}

/// Does what the spec says and returns the exit code. An error means that not even a report can be written.
pub fn carry_out(attempt: AttemptSpec, purpose: Purpose) -> anyhow::Result<i32> {
    let reporter = Reporter::open(&attempt.events)
        .with_context(|| format!("cannot append to the events file {}", attempt.events.display()))?;
    let reporter = Arc::new(reporter);
    report_panics(reporter.clone());
    report_excess(reporter.clone());
    stop::listen();
    start_threads(attempt.threads)?;
    let compute = compute(&attempt, purpose);
    reporter.report(Report::Started(Started {
        worker: crate::NAME_AND_VERSION.to_owned(),
        device: compute.as_ref().map_or_else(|_| "none".to_owned(), Compute::name),
        threads: attempt.threads,
        features: simd::features(),
    }));
    let for_thread = reporter.clone();
    let work = std::thread::Builder::new()
        .name("attempt".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || work(&attempt, purpose, &compute?, &for_thread))
        .context("cannot start a thread")?;
    // A panic has been reported by the hook.
    Ok(work.join().map_or(EXIT_FAILED, |result| last_report(result, &reporter)))
}

/// Quantizations are bound by reading and are to be the same bit for bit wherever they are made; a preview computes nothing.
fn compute(attempt: &AttemptSpec, purpose: Purpose) -> Result<Compute> {
    match (purpose, &attempt.spec) {
        (Purpose::Run, JobSpec::Finetune(_) | JobSpec::Train(_) | JobSpec::Evaluate(_)) => Compute::of(attempt),
        _ => Ok(Compute::Cpu),
    }
}

fn work(attempt: &AttemptSpec, purpose: Purpose, compute: &Compute, reporter: &Reporter) -> Result<Finished> {
    if attempt.contract != VERSION {
        let message = format!("the spec is of contract {}; this worker knows {VERSION}", attempt.contract);
        return Err(Failure::new(FailureKind::ContractBroken, message).into());
    }
    if purpose == Purpose::Run && attempt.gpus > 0 && matches!(compute, Compute::Cpu) {
        let kind = attempt.spec.kind();
        let message =
            format!("the worker computes a job of the kind `{kind}` on the CPU, and its GPU has nothing to do");
        reporter.warn("gpu_unused", message);
    }
    match (purpose, &attempt.spec) {
        (Purpose::Run, JobSpec::Finetune(spec)) => finetune::finetune(attempt, spec, compute, reporter),
        (Purpose::Run, JobSpec::Train(spec)) => train::train(attempt, spec, compute, reporter),
        (Purpose::Run, JobSpec::Quantize(spec)) => quantize::quantize(attempt, spec, reporter),
        (Purpose::Run, JobSpec::Evaluate(spec)) => evaluate::evaluate(attempt, spec, compute, reporter),
        (Purpose::Preview, JobSpec::Finetune(spec)) => preview::preview(attempt, spec, reporter),
        (_, other) => {
            let message = format!("this worker has no job of the kind `{}`", other.kind());
            Err(Failure::new(FailureKind::ContractBroken, message).into())
        }
    }
}

/// Says how it ended, and turns that into an exit code.
fn last_report(result: Result<Finished>, reporter: &Reporter) -> i32 {
    match result {
        Ok(finished) => {
            reporter.report(Report::Finished(finished));
            EXIT_FINISHED
        }
        Err(Ending::Stopped) => {
            reporter.report(Report::Stopped { step: reporter.steps() });
            EXIT_STOPPED
        }
        Err(Ending::Failed(mut failure)) => {
            failure.stage.get_or_insert(reporter.current_stage());
            reporter.report(Report::Failed(failure));
            EXIT_FAILED
        }
    }
}

/// A panic on any thread becomes a report with the place where it happened, unless somebody is there to catch it.
fn report_panics(reporter: Arc<Reporter>) {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The error will say what the panic says; and a backtrace takes memory, of which there may be little left.
        if foreign::is_contained() {
            return;
        }
        let failure = Failure::new(FailureKind::Crashed, format!("the worker panicked: {panic}"));
        reporter.report(Report::Failed(failure.at(reporter.current_stage())));
        default(panic);
    }));
}

/// What takes more than its ration is the last thing that is reported.
fn report_excess(reporter: Arc<Reporter>) {
    foreign::set_last_words(move |failure| {
        reporter.report(Report::Failed(failure.at(reporter.current_stage())));
    });
}

/// Starts the threads that the kernels compute with, and that rows are rendered on.
pub fn start_threads(count: u32) -> anyhow::Result<()> {
    let threads = usize::try_from(count.max(1)).context("the spec's `threads`")?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK_BYTES);
    pool.build_global().context("cannot start threads")
}

#[cfg(test)]
mod tests {
    use drydock_spec::ReportLine;

    use super::*;

    #[test]
    fn a_panic_is_reported_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let default = std::panic::take_hook();
        report_panics(Arc::new(Reporter::open(&path).unwrap()));
        let outcome = std::thread::spawn(|| panic!("the ballast shifted")).join();
        std::panic::set_hook(default);
        assert!(outcome.is_err());
        let line: ReportLine = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let Report::Failed(failure) = line.report else { panic!("{line:?}") };
        assert_eq!(failure.kind, FailureKind::Crashed);
        assert!(failure.message.contains("attempt.rs:"), "{}", failure.message);
        assert!(failure.message.contains("the ballast shifted"), "{}", failure.message);
    }
}
