//! What it costs to tell from a long log why its program died: root, kind and fingerprint of 1 MB. Printed as a table;
//! see `make bench`. CPU time of this thread, so that a busy machine does not show.

#![allow(clippy::print_stdout, reason = "a measurement prints")]

use std::fmt::Write as _;
use std::time::Duration;

use drydock::diagnose::fingerprint::{Signature, Witness};
use drydock::diagnose::root;
use drydock::diagnose::signs::Traces;
use drydock_spec::{Failure, FailureKind};

/// Bytes of a log.
const LONG: usize = 1_000_000;
/// What it may cost.
const GOAL: Duration = Duration::from_millis(50);
const REPEATS: usize = 20;

const DEATH: &str = "Traceback (most recent call last):\n  File \"/app/train.py\", line 64, in step\n    loss.backward()\n\
                     torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 144.00 MiB.\n";

fn main() {
    println!("the rules are read once: {:.1} ms", ms(diagnose("Error: first\n")));
    println!("{:<58} {:>10} {:>10}", "1 MB of log: root, kind and fingerprint", "CPU, p50", "worst");
    for (what, log) in [
        (
            "steps of a training, then its death",
            of_lines(|n, line| write!(line, "step {n}, loss 0.{n:04}, 1024 tokens/s"), DEATH),
        ),
        (
            "steps of a training and no reason",
            of_lines(|n, line| write!(line, "step {n}, loss 0.{n:04}, 1024 tokens/s"), ""),
        ),
        (
            "a progress bar drawn over and over",
            of_lines(|n, line| write!(line, "\r{n}%|###   | {n}/9 [00:01<00:02]"), DEATH),
        ),
        (
            "nothing but warnings that speak of errors",
            of_lines(|n, line| write!(line, "UserWarning: error: option {n} is fatal"), DEATH),
        ),
        ("nothing but errors", of_lines(|n, line| write!(line, "Error: cannot read row {n}: failed to parse"), "")),
        ("nothing but exceptions", of_lines(|_, line| write!(line, "{DEATH}"), "")),
        ("exceptions that never end", of_lines(|_, line| write!(line, "Traceback (most recent call last):"), "")),
        (
            "coloured lines of two processes in turns",
            of_lines(|n, line| write!(line, "\x1b[31m[rank{}]: step {n}\x1b[0m", n % 2), DEATH),
        ),
        (
            "lines as wide as a terminal",
            of_lines(|n, line| write!(line, "{:<79}e", format!("error {n} of this")), DEATH),
        ),
        ("a single line", "error: ".repeat(LONG / 7)),
    ] {
        let mut took: Vec<Duration> = (0..REPEATS).map(|_| diagnose(&log)).collect();
        took.sort_unstable();
        let (p50, worst) = (took[REPEATS / 2], took[REPEATS - 1]);
        let verdict = if worst < GOAL { "" } else { "  over 50 ms" };
        println!("{what:<58} {:>7.1} ms {:>7.1} ms{verdict}", ms(p50), ms(worst));
    }
}

/// A log of so many lines that it is long, and what comes last.
fn of_lines(one: impl Fn(usize, &mut String) -> std::fmt::Result, last: &str) -> String {
    let mut log = String::with_capacity(LONG + 1000);
    for number in 0.. {
        one(number, &mut log).expect("a string takes everything");
        log.push('\n');
        if log.len() >= LONG {
            break;
        }
    }
    log + last
}

fn diagnose(log: &str) -> Duration {
    let before = cpu();
    let traces = Traces { exit: 1, root: root::of_tail(log), is_open: true };
    let failure = traces.explain(Failure::new(FailureKind::Unexplained, "exit code 1"));
    let fingerprint = Signature::of(&failure, Witness::Traces(&traces)).fingerprint();
    let took = cpu().saturating_sub(before);
    std::hint::black_box(fingerprint);
    took
}

/// CPU time of this thread so far.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
