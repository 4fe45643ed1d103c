//! A worker that honours the contract and does no work: its job's first sample prompt says how it goes.
//!
//! `<ending> <reports> <ms> [<stage> [<about>]]`: in this stage, after so many numbered reports, in a job's first attempt one every so many milliseconds
//! and in later ones without delay, it ends in one of these ways: `finish`, with artifacts whose content follows from
//! the job's id; `linger`, the same, but never hurrying; `fail`, and says why; `leave`, with exit code 3 and without a
//! word; `crash`; `eat`, until its memory is full; or as [`doom`](crate::doom) has it. On SIGTERM it says that it stops,
//! and does so.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::doom::{self, After};

/// Exit codes of the contract.
const FINISHED: u8 = 0;
const FAILED: u8 = 1;
const MISUSED: u8 = 2;
const STOPPED: u8 = 143;

/// An image that sets this has a worker without faults.
const HARMLESS: &str = "DRYDOCK_PROBE_HARMLESS";

static ASKED_TO_STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_: libc::c_int) {
    ASKED_TO_STOP.store(true, Ordering::SeqCst);
}

/// Does what the spec at `path` says.
pub(crate) fn work(path: &str) -> ExitCode {
    // SAFETY: the handler only stores into an atomic.
    unsafe { libc::signal(libc::SIGTERM, stop as *const () as libc::sighandler_t) };
    let began = Instant::now();
    let code = fs::read_to_string(path).map_or(MISUSED, |spec| match Orders::of(&spec) {
        Some(orders) => orders.follow(began).unwrap_or(MISUSED),
        None => MISUSED,
    });
    ExitCode::from(code)
}

struct Orders {
    job: String,
    ending: String,
    reports: u32,
    pace: Duration,
    stage: Option<String>,
    about: String,
}

impl Orders {
    /// The spec is our own gateway's and written without spaces, so it is searched rather than parsed.
    fn of(spec: &str) -> Option<Self> {
        let after = |mark: &str| {
            let (_, rest) = spec.split_once(mark)?;
            Some(rest.split_once('"')?.0.to_owned())
        };
        let words = after("\"sample_prompts\":[\"")?;
        let mut words = words.split(' ');
        let ending = words.next()?.to_owned();
        let reports = words.next()?.parse().ok()?;
        let pace = Duration::from_millis(words.next()?.parse().ok()?);
        let (stage, about) = (words.next().map(str::to_owned), words.next().unwrap_or_default().to_owned());
        let hurries = ending != "linger" && !spec.contains("\"attempt\":1,");
        let pace = if hurries { Duration::ZERO } else { pace };
        Some(Self { job: after("\"job\":\"")?, ending, reports, pace, stage, about })
    }

    fn follow(&self, began: Instant) -> io::Result<u8> {
        let say = |report: &str| -> io::Result<()> {
            let line = format!("{{\"elapsed_ms\":{},{report}}}\n", began.elapsed().as_millis());
            OpenOptions::new().append(true).open(crate::EVENTS)?.write_all(line.as_bytes())
        };
        say(r#""type":"started","worker":"probe","device":"cpu","threads":1,"features":[]"#)?;
        let stage = self.stage.as_deref().unwrap_or("train");
        if self.stage.is_some() {
            say(&format!("\"type\":\"stage\",\"stage\":\"{stage}\""))?;
        }
        for number in 1..=self.reports {
            if ASKED_TO_STOP.load(Ordering::SeqCst) {
                say(&format!("\"type\":\"stopped\",\"step\":{number}"))?;
                return Ok(STOPPED);
            }
            say(&format!("\"type\":\"progress\",\"stage\":\"{stage}\",\"done\":{number},\"total\":{}", self.reports))?;
            std::thread::sleep(self.pace);
        }
        match self.ending.as_str() {
            "finish" | "linger" => self.finish(&say),
            _ if std::env::var_os(HARMLESS).is_some() => self.finish(&say),
            "fail" => {
                say(r#""type":"failed","kind":"bad_dataset","message":"row 1 is empty","hint":"mend it""#)?;
                Ok(FAILED)
            }
            "leave" => Ok(3),
            "crash" => {
                crate::raise(libc::SIGSEGV);
                Ok(MISUSED)
            }
            "eat" => {
                crate::eat_memory();
                Ok(MISUSED)
            }
            other => match doom::meet(other, &self.about) {
                Some(After::GoOn) => self.finish(&say),
                Some(After::Leave(code)) => Ok(code),
                None => Ok(MISUSED),
            },
        }
    }

    fn finish(&self, say: &impl Fn(&str) -> io::Result<()>) -> io::Result<u8> {
        for (path, lines) in [("made/small", 1), ("made/deep/large", 20_000)] {
            self.make(path, lines)?;
            say(&format!("\"type\":\"artifact\",\"path\":\"{path}\",\"role\":\"proof\""))?;
        }
        say(r#""type":"finished","steps":1,"tokens":1,"peak_rss_bytes":1"#)?;
        Ok(FINISHED)
    }

    /// A file that holds the job's id, `lines` times.
    fn make(&self, path: &str, lines: usize) -> io::Result<()> {
        let path = format!("/out/{path}");
        if let Some((folder, _)) = path.rsplit_once('/') {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, format!("{}\n", self.job).repeat(lines))
    }
}
