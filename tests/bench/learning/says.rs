//! What a failing worker says: in a report, or only by what it prints and how it ends, with other numbers, names and
//! noise every time.

use drydock_spec::report::Started;
use drydock_spec::{Failure, FailureKind, Report, Stage};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::harness::scripted::Step;

/// How a cause makes itself known. Of several wordings one is drawn each time.
pub(crate) enum Says {
    Report(FailureKind, &'static [&'static str]),
    /// An exception in a function of a file, and exit code 1.
    Python(&'static str, &'static str, &'static [&'static str]),
    /// A panic in a file.
    Panic(&'static str, &'static [&'static str]),
    /// A line, and an end by this signal.
    Signal(i64, &'static [&'static str]),
    /// Nothing: the kernel ends it.
    KilledForMemory,
}

/// The report of a worker that is up.
pub(crate) fn started(device: &str) -> Step {
    let features = Vec::new();
    Step::Say(Report::Started(Started { worker: "worker 1".into(), device: device.into(), threads: 2, features }))
}

impl Says {
    /// The end of a worker that fails at the stage.
    pub(crate) fn end(&self, stage: Stage, random: &mut StdRng) -> Vec<Step> {
        let mut steps = vec![Step::Say(Report::Stage { stage })];
        match self {
            Self::Report(kind, wordings) => {
                let failure = Failure::new(*kind, filled(wordings, random)).at(stage);
                steps.extend([Step::Say(Report::Failed(failure)), exit(1)]);
            }
            Self::Python(file, function, wordings) => {
                let (line, root) = (random.random_range(10..900), path(random));
                let trace = format!(
                    "Traceback (most recent call last):\n  File \"{root}/{file}\", line {line}, in {function}\n    \
                     return call(*args)\n{}\n",
                    filled(wordings, random)
                );
                steps.extend([Step::Print(noise(random) + &trace + &noise(random)), exit(1)]);
            }
            Self::Panic(file, wordings) => {
                let (thread, line) = (random.random_range(1..99), random.random_range(10..900));
                let panic =
                    format!("thread 'main' ({thread}) panicked at {file}:{line}:9:\n{}\n", filled(wordings, random));
                steps.extend([Step::Print(noise(random) + &panic), exit(101)]);
            }
            Self::Signal(number, wordings) => {
                let line = format!("{}\n", filled(wordings, random));
                steps.extend([Step::Print(noise(random) + &line), exit(128 + number)]);
            }
            Self::KilledForMemory => steps.push(Step::Exit { code: 137, oom_killed: true }),
        }
        steps
    }
}

fn exit(code: i64) -> Step {
    Step::Exit { code, oom_killed: false }
}

/// One of the wordings, with something else in its slots every time.
fn filled(wordings: &[&str], random: &mut StdRng) -> String {
    let mut rest = wordings[random.random_range(0..wordings.len())];
    let mut text = String::new();
    while let Some((before, after)) = rest.split_once('{') {
        let (slot, after) = after.split_once('}').unwrap();
        text.push_str(before);
        text.push_str(&match slot {
            "n" => random.random_range(2..5000).to_string(),
            "f" => format!("{:.2}", random.random_range(0.5..900.0)),
            "hex" => format!("0x{:012x}", random.random_range(1_u64..1 << 47)),
            "path" => path(random),
            "word" => format!("'{}'", ["answer", "gate_proj", "output", "text"][random.random_range(0..4)]),
            other => panic!("{other} is no slot"),
        });
        rest = after;
    }
    text + rest
}

fn path(random: &mut StdRng) -> String {
    let name = ["data", "app", "srv"][random.random_range(0..3)];
    format!("/{name}/x{}/part-{:05}", random.random_range(1..99), random.random_range(0..64))
}

/// What is printed besides.
fn noise(random: &mut StdRng) -> String {
    let mut text = String::new();
    for _ in 0..random.random_range(0..5) {
        text += &match random.random_range(0..3) {
            0 => format!("step {}, loss {:.3}\n", random.random_range(1..99), random.random_range(0.1..9.0)),
            1 => format!("UserWarning: {} is deprecated\n", path(random)),
            _ => format!("loaded shard {} in {} ms\n", random.random_range(1..9), random.random_range(1..999)),
        };
    }
    text
}
