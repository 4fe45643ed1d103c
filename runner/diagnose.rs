//! How an attempt ended, from facts: our own intent, the worker's last report, the exit. What the worker printed is asked
//! last, and only where they leave the question open: see [`signs`].

use std::time::Duration;

use drydock_gpu::health::{GpuAccount, GpuFacts, Trouble};
use drydock_spec::{Failure, FailureKind, Limits, Outcome, Report, Stage};

use crate::sandbox::Exit;
use crate::store::Termination;

pub mod difference;
pub mod evidence;
pub mod excerpt;
pub mod fingerprint;
pub mod lines;
#[cfg(test)]
mod noise;
pub mod root;
pub mod signs;
pub mod template;

/// How a container ended, as far as anybody can know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Seen(Exit),
    /// Its first process is gone, and the engine did not see how. The host went on meanwhile, so that what the worker
    /// wrote is there.
    Unseen,
    /// There is no container any more.
    Gone,
}

/// What is known of an attempt that is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    pub end: End,
    /// Whether the engine, and perhaps the host, was restarted while the attempt was under way.
    pub outage: bool,
    /// The last report, if there was any.
    pub last: Option<Report>,
    /// The stage that the worker was in, by its reports.
    pub stage: Option<Stage>,
    /// Largest resident memory that the worker reported, in bytes.
    pub peak_rss_bytes: Option<u64>,
    /// Most memory of one of its GPUs that the host saw it hold, in bytes.
    pub gpu_peak_bytes: Option<u64>,
    /// Whether somebody asked for the job's end.
    pub cancel_requested: bool,
    /// Why we ended the container, if we did.
    pub terminated: Option<Termination>,
    /// How the worker broke its contract, if it did.
    pub broken: Option<String>,
    pub limits: Limits,
    /// What became of the GPUs, if the worker computed on any.
    pub gpus: GpuAccount,
    /// Whether they are those that the attempt was given: another attempt is given others.
    pub has_gpus: bool,
    /// Why nothing may go on upon one of them, if that is so.
    pub gpu_lost: Option<String>,
}

/// Exit codes above this are a signal's number plus this.
const SIGNALS: i64 = 128;
const KILLED: i64 = SIGNALS + 9;
const TERMINATED: i64 = SIGNALS + 15;
const OUTGROWN: i64 = SIGNALS + 25;
const FORBIDDEN: i64 = SIGNALS + 31;
/// The highest number that a signal has.
const MOST_SIGNAL: i64 = 64;
/// What an engine calls the exit of a container whose end nobody saw, such as after a power cut.
pub(crate) const UNSEEN: i64 = 255;

/// The outcome of an attempt. The order of the questions matters: work that is done stays done, what we did ourselves
/// is not the job's fault, and what the kernel counted weighs more than what the worker says of itself.
#[must_use]
pub fn diagnose(ending: &Ending) -> Outcome {
    let in_order = match &ending.end {
        End::Seen(exit) => exit.code == 0,
        // Then the worker's last word is all there is.
        End::Unseen => true,
        End::Gone => false,
    };
    if matches!(ending.last, Some(Report::Finished(_))) && in_order {
        return Outcome::Succeeded;
    }
    if ending.cancel_requested {
        return Outcome::Cancelled;
    }
    let mut failure = weigh(failure(ending), ending);
    if failure.stage.is_none() {
        failure.stage = ending.stage;
    }
    Outcome::Failed(failure)
}

fn failure(ending: &Ending) -> Failure {
    if let Some(failure) = our_own_doing(ending) {
        return failure;
    }
    let exit = match &ending.end {
        End::Seen(exit) => Some(exit),
        End::Unseen => None,
        End::Gone => return cut_short("the container is gone and nobody saw how it ended"),
    };
    if exit.is_some_and(|exit| exit.oom_killed && exit.code != 0) {
        return out_of_memory(ending);
    }
    match &ending.last {
        Some(Report::Failed(failure)) => return from_worker(failure),
        // Nobody here asked it to stop: the engine or the host went down in good order.
        Some(Report::Stopped { .. }) => return cut_short("the worker was asked to stop, and not by drydock"),
        _ => {}
    }
    if let Some(broken) = &ending.broken {
        return Failure::new(FailureKind::ContractBroken, broken.clone());
    }
    let Some(exit) = exit else {
        return cut_short("the worker is gone, and the container engine did not see how it ended");
    };
    match exit.code {
        // Whether such an end was the worker's own cannot be told any more. If it was, the next attempt ends the same.
        0 | UNSEEN | KILLED | TERMINATED if ending.outage => {
            cut_short("the container engine was restarted while the worker ran")
        }
        0 => Failure::new(FailureKind::ContractBroken, "the worker ended with exit code 0 and without a final report"),
        // An engine can miss the kernel's kill, most of all right after the start; memory at its limit speaks for itself.
        KILLED if at_its_limit(ending) => out_of_memory(ending),
        KILLED => cut_short("the worker was killed (SIGKILL), and not by drydock"),
        TERMINATED => cut_short("the worker was asked to stop (SIGTERM), and not by drydock"),
        code @ 125..=SIGNALS => Failure::new(
            FailureKind::ContractBroken,
            format!("the image's entrypoint could not be executed (exit code {code})"),
        )
        .with_hint("check that the image has an entrypoint for this host's architecture"),
        // The sandbox limits the size of every file to that of the whole output.
        OUTGROWN => {
            let limit = size(ending.limits.disk_bytes);
            Failure::new(FailureKind::DiskFull, format!("a file of the output grew beyond {limit}"))
        }
        // The kernel sends this one to nobody but whoever calls what the sandbox's filter refuses.
        FORBIDDEN => {
            let message =
                format!("the worker made a system call that the sandbox forbids (SIGSYS, exit code {FORBIDDEN})");
            Failure::new(FailureKind::NotPermitted, message)
        }
        code if (SIGNALS..=SIGNALS + MOST_SIGNAL).contains(&code) => {
            let signal = signal(code - SIGNALS);
            Failure::new(FailureKind::Crashed, format!("the worker was killed by {signal} (exit code {code})"))
        }
        code => {
            let spoken = if ending.last.as_ref().is_some_and(Report::is_last) { "after" } else { "without" };
            let message = format!("the worker ended with exit code {code} and {spoken} a final report");
            Failure::new(FailureKind::Unexplained, message)
        }
    }
}

/// The failure that a GPU's trouble was, where the worker's end may have come of it: a damaged GPU is behind most of
/// what a program can say about one, a program's fault on it behind an end without a reason only.
fn weigh(failure: Failure, ending: &Ending) -> Failure {
    use FailureKind::{
        ContractBroken, Crashed, GpuDriver, GpuFault, GpuHardware, GpuLost, GpuMissing, Silent, Unexplained,
    };
    let unsaid = match failure.kind {
        Crashed | Unexplained => true,
        ContractBroken => ending.broken.is_none() && ending.last.as_ref().is_none_or(|last| !last.is_last()),
        _ => false,
    };
    let of_damage = unsaid || matches!(failure.kind, Silent | GpuFault | GpuMissing | GpuDriver | GpuHardware);
    let troubles: Vec<_> = ending.gpus.gpus.iter().filter_map(GpuFacts::trouble).collect();
    let damage = troubles.iter().find(|trouble| matches!(trouble, Trouble::Hardware(_)) && of_damage);
    match damage.or_else(|| troubles.first().filter(|_| unsaid)) {
        Some(Trouble::Hardware(told)) if ending.has_gpus => as_of_gpu(GpuLost, told, failure),
        Some(Trouble::Hardware(told)) => as_of_gpu(GpuHardware, told, failure),
        Some(Trouble::Fault(told)) => as_of_gpu(GpuFault, told, failure),
        None => failure,
    }
}

fn as_of_gpu(kind: FailureKind, told: &str, failure: Failure) -> Failure {
    let message = format!("{told}; {}", failure.message);
    Failure { stage: failure.stage, ..Failure::new(kind, message) }
}

/// Failures that we brought about by enforcing a limit.
fn our_own_doing(ending: &Ending) -> Option<Failure> {
    let limits = &ending.limits;
    Some(match ending.terminated? {
        // Then the job is stopping, and the outcome was decided above.
        Termination::Cancelled => return None,
        Termination::TimeLimit => {
            Failure::new(FailureKind::TimeLimit, format!("not done after {}", seconds(limits.time_ms)))
        }
        Termination::Silent => {
            Failure::new(FailureKind::Silent, format!("no report for {}", seconds(limits.silence_ms)))
        }
        Termination::DiskFull => Failure::new(
            FailureKind::DiskFull,
            format!("the output grew beyond {}, or its files or the reports beyond counting", size(limits.disk_bytes)),
        ),
        Termination::ContractBroken => Failure::new(
            FailureKind::ContractBroken,
            ending.broken.clone().unwrap_or_else(|| "the events file cannot be read".into()),
        ),
        Termination::GpuLost => {
            let why = ending.gpu_lost.clone().unwrap_or_else(|| "a GPU of the attempt was damaged".into());
            Failure::new(FailureKind::GpuLost, format!("{why}; drydock has ended the attempt"))
        }
    })
}

/// Whether the worker's last words on its memory leave less than a tenth of the limit.
fn at_its_limit(ending: &Ending) -> bool {
    ending.peak_rss_bytes.is_some_and(|peak| peak >= ending.limits.memory_bytes / 10 * 9)
}

fn out_of_memory(ending: &Ending) -> Failure {
    let had = size(ending.limits.memory_bytes);
    let message = match ending.peak_rss_bytes {
        Some(peak) => format!("needed more than the {had} it had. Its last report had it at {}", size(peak)),
        None => format!("needed more than the {had} it had"),
    };
    Failure::new(FailureKind::OutOfMemory, message)
}

/// A worker knows best why it failed, but it cannot have itself tried again as if it were not at fault.
fn from_worker(failure: &Failure) -> Failure {
    if failure.kind.retryable() {
        let message = format!("the worker claims `{}`, which is not its to say: {}", failure.kind, failure.message);
        return Failure::new(FailureKind::ContractBroken, message);
    }
    failure.clone()
}

fn cut_short(message: &str) -> Failure {
    Failure::new(FailureKind::EngineLost, message)
}

fn signal(number: i64) -> String {
    let name = match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL (an instruction that this CPU does not have)",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        24 => "SIGXCPU",
        number => return format!("signal {number}"),
    };
    name.to_owned()
}

fn seconds(ms: i64) -> String {
    let duration = Duration::from_millis(u64::try_from(ms).unwrap_or_default());
    humantime::format_duration(duration).to_string()
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use drydock_spec::report::Finished;

    use super::*;

    fn ending() -> Ending {
        Ending {
            end: End::Seen(Exit { code: 0, oom_killed: false }),
            outage: false,
            last: None,
            stage: Some(Stage::Train),
            peak_rss_bytes: None,
            gpu_peak_bytes: None,
            cancel_requested: false,
            terminated: None,
            broken: None,
            limits: Limits {
                memory_bytes: 3 << 30,
                cpu_millis: 1000,
                pids: 10,
                disk_bytes: 1 << 20,
                time_ms: 60_000,
                silence_ms: 10_000,
                grace_ms: 1000,
                max_attempts: 3,
                gpus: 0,
                gpu_memory_bytes: None,
            },
            gpus: GpuAccount::default(),
            has_gpus: false,
            gpu_lost: None,
        }
    }

    fn exited(code: i64) -> Ending {
        Ending { end: End::Seen(Exit { code, oom_killed: false }), ..ending() }
    }

    fn finished() -> Option<Report> {
        Some(Report::Finished(Finished { steps: 1, train_loss: Some(1.0), tokens: 1, peak_rss_bytes: 1 }))
    }

    fn kind(ending: &Ending) -> FailureKind {
        match diagnose(ending) {
            Outcome::Failed(failure) => failure.kind,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_job_that_succeeded_before_the_kill_arrived_stays_succeeded() {
        let done =
            Ending { last: finished(), cancel_requested: true, terminated: Some(Termination::TimeLimit), ..ending() };
        assert_eq!(diagnose(&done), Outcome::Succeeded);
    }

    #[test]
    fn a_final_report_without_a_clean_exit_is_no_success() {
        assert_eq!(kind(&Ending { last: finished(), ..exited(139) }), FailureKind::Crashed);
        assert_eq!(kind(&exited(0)), FailureKind::ContractBroken);
    }

    #[test]
    fn whatever_else_happened_a_job_that_was_asked_to_stop_is_cancelled() {
        for code in [0, 1, 137, 139, 143] {
            assert_eq!(diagnose(&Ending { cancel_requested: true, ..exited(code) }), Outcome::Cancelled);
        }
    }

    #[test]
    fn a_damaged_gpu_weighs_more_than_words_and_less_than_what_drydock_did() {
        let with = |facts: GpuFacts, ending: Ending| {
            let gpus = GpuAccount { driver: None, gpus: vec![GpuFacts::default(), facts] };
            kind(&Ending { gpus, ..ending })
        };
        let lost = || GpuFacts { lost: true, ..GpuFacts::default() };
        let faulty = || GpuFacts { xids: vec![31], ..GpuFacts::default() };
        let said = |kind| Ending { last: Some(Report::Failed(Failure::new(kind, "x"))), ..exited(1) };
        let ended = |why| Ending { terminated: Some(why), ..exited(137) };
        for ending in [exited(1), exited(139), exited(0), said(FailureKind::Crashed), ended(Termination::Silent)] {
            assert_eq!(with(lost(), ending.clone()), FailureKind::GpuHardware, "{ending:?}");
        }
        assert_eq!(with(faulty(), exited(1)), FailureKind::GpuFault);
        assert_eq!(with(faulty(), ended(Termination::Silent)), FailureKind::Silent);
        assert_eq!(with(GpuFacts::default(), exited(1)), FailureKind::Unexplained);
        for (ending, kind) in [
            (said(FailureKind::Diverged), FailureKind::Diverged),
            (ended(Termination::TimeLimit), FailureKind::TimeLimit),
            (exited(137), FailureKind::EngineLost),
            (Ending { end: End::Seen(Exit { code: 137, oom_killed: true }), ..ending() }, FailureKind::OutOfMemory),
        ] {
            assert_eq!(with(lost(), ending), kind);
        }
    }

    #[test]
    fn what_failed_on_a_gpu_of_its_own_that_is_damaged_is_tried_again_on_another_one() {
        let lost = GpuFacts { lost: true, ..GpuFacts::default() };
        let gpus = || GpuAccount { driver: None, gpus: vec![lost.clone()] };
        let said = |kind| Ending { last: Some(Report::Failed(Failure::new(kind, "x"))), ..exited(1) };
        for ending in [exited(1), exited(139), said(FailureKind::GpuHardware), said(FailureKind::GpuFault)] {
            let kind = kind(&Ending { has_gpus: true, gpus: gpus(), ..ending.clone() });
            assert!(kind == FailureKind::GpuLost && kind.retryable(), "{ending:?}");
        }
        let why = Some("NVIDIA H200 (GPU-0) has told of Xid 79".to_owned());
        let ended = Ending { terminated: Some(Termination::GpuLost), gpu_lost: why, ..exited(137) };
        let Outcome::Failed(failure) = diagnose(&ended) else { panic!() };
        assert_eq!(failure.kind, FailureKind::GpuLost);
        assert_eq!(failure.message, "NVIDIA H200 (GPU-0) has told of Xid 79; drydock has ended the attempt");
        let done = Ending { last: finished(), ..ended };
        assert_eq!(
            diagnose(&Ending { end: exited(0).end, ..done }),
            Outcome::Succeeded,
            "work that is done stays done"
        );
    }

    #[test]
    fn our_limits_are_named_with_their_values() {
        for (why, kind, text) in [
            (Termination::TimeLimit, FailureKind::TimeLimit, "not done after 1m"),
            (Termination::Silent, FailureKind::Silent, "no report for 10s"),
            (
                Termination::DiskFull,
                FailureKind::DiskFull,
                "the output grew beyond 1.0 MiB, or its files or the reports beyond counting",
            ),
        ] {
            let Outcome::Failed(failure) = diagnose(&Ending { terminated: Some(why), ..exited(137) }) else { panic!() };
            assert_eq!((failure.kind, failure.message.as_str(), failure.stage), (kind, text, Some(Stage::Train)));
        }
    }

    #[test]
    fn the_kernels_count_weighs_more_than_the_workers_words() {
        let killed = Ending {
            end: End::Seen(Exit { code: 137, oom_killed: true }),
            last: Some(Report::Failed(Failure::new(FailureKind::Diverged, "x"))),
            peak_rss_bytes: Some(2 << 30),
            ..ending()
        };
        let Outcome::Failed(failure) = diagnose(&killed) else { panic!() };
        assert_eq!(failure.kind, FailureKind::OutOfMemory);
        assert_eq!(failure.message, "needed more than the 3.0 GiB it had. Its last report had it at 2.0 GiB");
    }

    #[test]
    fn a_child_killed_for_memory_does_not_undo_a_success() {
        let ending = Ending { end: End::Seen(Exit { code: 0, oom_killed: true }), last: finished(), ..ending() };
        assert_eq!(diagnose(&ending), Outcome::Succeeded);
    }

    #[test]
    fn a_kill_at_the_memory_limit_is_for_memory_even_if_the_engine_missed_it() {
        let at = |peak_rss_bytes| Ending { peak_rss_bytes: Some(peak_rss_bytes), ..exited(137) };
        assert_eq!(kind(&at((3 << 30) - 1)), FailureKind::OutOfMemory);
        assert_eq!(kind(&at(2 << 30)), FailureKind::EngineLost);
    }

    #[test]
    fn an_end_that_nobody_asked_for_is_the_engines_and_tried_again() {
        for ending in [
            exited(137),
            exited(143),
            Ending { last: Some(Report::Stopped { step: 3 }), ..exited(143) },
            Ending { end: End::Gone, ..ending() },
            Ending { end: End::Unseen, ..ending() },
        ] {
            assert_eq!(kind(&ending), FailureKind::EngineLost, "{ending:?}");
            assert!(kind(&ending).retryable());
        }
    }

    #[test]
    fn where_nobody_saw_the_end_the_workers_last_word_counts() {
        let unseen = |last| Ending { end: End::Unseen, last, ..ending() };
        assert_eq!(diagnose(&unseen(finished())), Outcome::Succeeded);
        let failed = Some(Report::Failed(Failure::new(FailureKind::Diverged, "x")));
        assert_eq!(kind(&unseen(failed)), FailureKind::Diverged);
        let gone = Ending { end: End::Gone, last: finished(), ..ending() };
        assert_eq!(kind(&gone), FailureKind::EngineLost, "who removes a container may have killed its worker");
    }

    #[test]
    fn a_worker_cannot_have_itself_tried_again() {
        for claimed in FailureKind::ALL {
            let ending = Ending { last: Some(Report::Failed(Failure::new(claimed, "x"))), ..exited(1) };
            assert!(!kind(&ending).retryable(), "{claimed:?}");
            assert_eq!(kind(&ending) == claimed, !claimed.retryable(), "{claimed:?}");
        }
    }

    #[test]
    fn exit_codes_without_a_final_report() {
        assert_eq!(kind(&exited(3)), FailureKind::Unexplained);
        assert_eq!(kind(&exited(127)), FailureKind::ContractBroken);
        assert_eq!(kind(&exited(139)), FailureKind::Crashed);
        assert_eq!(kind(&exited(153)), FailureKind::DiskFull);
        assert_eq!(kind(&exited(159)), FailureKind::NotPermitted);
        assert_eq!(kind(&exited(255)), FailureKind::Unexplained, "no signal has that number");
    }

    #[test]
    fn what_an_outage_may_have_done_is_tried_again_and_what_it_cannot_do_is_not() {
        for code in [0, 137, 143, 255] {
            assert_eq!(kind(&Ending { outage: true, ..exited(code) }), FailureKind::EngineLost, "exit code {code}");
        }
        let nearly_full = Ending { outage: true, peak_rss_bytes: Some((3 << 30) - 1), ..exited(137) };
        assert_eq!(kind(&nearly_full), FailureKind::EngineLost, "full memory alone kills nobody");
        let counted = Ending { end: End::Seen(Exit { code: 137, oom_killed: true }), ..nearly_full };
        assert_eq!(kind(&counted), FailureKind::OutOfMemory, "the kernel's count outlives the engine");
        assert_eq!(kind(&Ending { outage: true, ..exited(139) }), FailureKind::Crashed);
        assert_eq!(kind(&Ending { outage: true, ..exited(3) }), FailureKind::Unexplained);
        let finished = Ending { outage: true, last: finished(), ..exited(0) };
        assert_eq!(diagnose(&finished), Outcome::Succeeded, "work that is done stays done");
    }
}
