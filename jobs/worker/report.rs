//! The only writer of reports: one JSON object a line, one `write` a line, appended to the events file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use drydock_spec::report::MAX_LINE_BYTES;
use drydock_spec::{Report, ReportLine, Stage};

/// Characters that any one text in a report may have; a report holds a few texts, and JSON may write a character in
/// six bytes, so a line of such texts stays below [`MAX_LINE_BYTES`].
const MAX_TEXT_CHARS: usize = 2500;

/// Milliseconds between two signs of life while something long goes on. The runner's patience is a minute or more.
const SIGN_OF_LIFE_MS: u64 = 2000;

/// Speaks for one attempt.
pub struct Reporter {
    file: File,
    started: Instant,
    stage: AtomicU8,
    last_ms: AtomicU64,
    steps: AtomicU64,
    ended: AtomicBool,
}

const STAGES: [Stage; 9] = [
    Stage::Prepare,
    Stage::Start,
    Stage::Load,
    Stage::Tokenize,
    Stage::Evaluate,
    Stage::Train,
    Stage::Quantize,
    Stage::Save,
    Stage::Collect,
];

impl Reporter {
    /// Opens the events file for appending. In a container the file is there already, append-only; by hand it is made.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = match OpenOptions::new().append(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                OpenOptions::new().append(true).create(true).open(path)?
            }
            other => other?,
        };
        Ok(Self {
            file,
            started: Instant::now(),
            stage: AtomicU8::new(Stage::Load as u8),
            last_ms: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        })
    }

    /// Writes one report. After the last one of an attempt nothing more is written, whoever speaks: a panic on another
    /// thread must not follow a `Failed`.
    ///
    /// A report that cannot be written is dropped: the runner sees a worker that ends without its last report, and
    /// there is no one else to tell.
    pub fn report(&self, report: Report) {
        let last = report.is_last();
        if (last && self.ended.swap(true, Ordering::SeqCst)) || (!last && self.ended.load(Ordering::SeqCst)) {
            return;
        }
        let line = self.line(report);
        let _ = (&self.file).write(&line);
    }

    fn line(&self, report: Report) -> Vec<u8> {
        let elapsed_ms = self.elapsed_ms();
        self.last_ms.store(elapsed_ms, Ordering::Relaxed);
        let mut line = serde_json::to_value(ReportLine { elapsed_ms, report }).unwrap_or_default();
        shorten(&mut line, MAX_TEXT_CHARS);
        let mut bytes = line.to_string().into_bytes();
        bytes.push(b'\n');
        debug_assert!(bytes.len() <= MAX_LINE_BYTES, "a line of {} bytes", bytes.len());
        bytes
    }

    /// A new part of the attempt begins; failures that do not say where they happened happened there.
    pub fn stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
        self.report(Report::Stage { stage });
    }

    /// The part of the attempt that is under way.
    pub fn current_stage(&self) -> Stage {
        STAGES[usize::from(self.stage.load(Ordering::Relaxed))]
    }

    /// Remembers that so many optimizer steps are done.
    pub fn step_done(&self, steps: u64) {
        self.steps.store(steps, Ordering::Relaxed);
    }

    /// Optimizer steps that are done.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// A sign of life, at most one every two seconds: the current stage has come so far.
    pub fn progress(&self, done: u64, total: u64) {
        if self.elapsed_ms() >= self.last_ms.load(Ordering::Relaxed) + SIGN_OF_LIFE_MS {
            self.report(Report::Progress { stage: self.current_stage(), done, total });
        }
    }

    pub fn warn(&self, code: &str, message: impl Into<String>) {
        self.report(Report::Warning { code: code.to_owned(), message: message.into() });
    }

    /// Milliseconds since the worker started.
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Cuts every text to so many characters, and says so where it does.
fn shorten(value: &mut serde_json::Value, chars: usize) {
    match value {
        serde_json::Value::String(text) => {
            if let Some((cut, _)) = text.char_indices().nth(chars) {
                text.truncate(cut);
                text.push_str(" [...]");
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| shorten(item, chars)),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(|field| shorten(field, chars)),
        _ => {}
    }
}

/// Resident memory in bytes, now and at its peak; zero where the system does not say.
pub fn resident_bytes() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    (field("VmRSS:"), field("VmHWM:"))
}

#[cfg(test)]
mod tests {
    use drydock_spec::report::{Phase, Sample};
    use drydock_spec::{Failure, FailureKind};

    use super::*;

    fn written(speak: impl FnOnce(&Reporter)) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        speak(&Reporter::open(&path).unwrap());
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn nothing_follows_the_last_report() {
        let text = written(|reporter| {
            reporter.stage(Stage::Train);
            reporter.report(Report::Failed(Failure::new(FailureKind::Diverged, "first")));
            reporter.report(Report::Failed(Failure::new(FailureKind::Crashed, "second")));
            reporter.stage(Stage::Save);
        });
        let types: Vec<ReportLine> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(types.len(), 2);
        assert!(matches!(&types[1].report, Report::Failed(failure) if failure.message == "first"));
    }

    #[test]
    fn the_longest_texts_make_a_line_that_the_runner_accepts() {
        // A control character takes six bytes in JSON.
        let long = "\u{1}".repeat(100_000);
        let text = written(|reporter| {
            reporter.report(Report::Sample(Sample {
                phase: Phase::Before,
                prompt: long.clone(),
                completion: long.clone(),
                stopped: false,
            }));
            reporter.report(Report::Failed(Failure::new(FailureKind::BadDataset, &long).with_hint(&long)));
        });
        assert_eq!(text.lines().count(), 2);
        for line in text.lines() {
            assert!(line.len() < MAX_LINE_BYTES);
            serde_json::from_str::<ReportLine>(line).unwrap();
        }
    }
}
