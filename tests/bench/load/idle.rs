//! What a gateway takes up that nobody asks for anything: memory, and how often it wakes up.
//!
//! It has an engine, has run one job, and is left alone for some minutes. A wake-up is a time that one of its threads goes
//! to sleep again. Each of its timers is due for some: one of its own, and three for everything that its pass asks for, of
//! the thread that asks, of the one that answers or takes the answer in, and of the one that Tokio wakes to see whether
//! there is more to do. More than that would be work that no timer asks for.

use std::time::Duration;

use serde_json::json;

use crate::harness::process::Folders;
use crate::process::Process;
use crate::row::{Finding, Length};

const MOST_BYTES: u64 = 30 << 20;
const LOOK: Duration = Duration::from_secs(30);

/// A pass that is made again and again.
struct Timer {
    what: &'static str,
    every: Duration,
    /// What a pass asks for: the engine, the database, a thread that may block.
    asks: u32,
}

/// Those that fire within minutes; what has had its time is removed once an hour.
const TIMERS: [Timer; 3] = [
    // What the engine is, its image, and the process behind its socket.
    Timer { what: "engine", every: Duration::from_secs(5), asks: 3 },
    // They answer at once.
    Timer { what: "disks", every: Duration::from_secs(5), asks: 0 },
    // Abandoned attempts; containers, attempts under way, checkpoints, folders.
    Timer { what: "leases and leftovers", every: Duration::from_secs(10), asks: 5 },
];

pub(crate) async fn measure(length: Length) -> Vec<Finding> {
    let folders = Folders::new(8);
    let variables = [("DRYDOCK_SANDBOX__IMAGE".to_owned(), crate::image::probe().to_owned())];
    let gateway = crate::harness::process::Gateway::start_with(&folders.state(), &folders.data(), &variables).await;
    let gateway = folders.stock(gateway).await;
    let options = json!({"model": "tiny", "dataset": "rows", "sample_prompts": ["finish 20 10"]});
    let submitted = gateway.call("finetune", options).await;
    let job = submitted["structuredContent"]["job"]["id"].as_str().unwrap_or_else(|| panic!("{submitted:#}"));
    while gateway.get(&format!("/v1/jobs/{job}")).await["ended_ms"].is_null() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let minutes = match length {
        Length::Full => 3,
        Length::Short => 1,
    };
    tokio::time::sleep(Duration::from_secs(60 * minutes)).await;
    let process = Process(gateway.pid());
    let before = process.sleeps();
    tokio::time::sleep(LOOK).await;
    let (sleeps, resident) = (process.sleeps() - before, process.resident_bytes());
    gateway.stop().await;

    let due: u32 = TIMERS.iter().map(|timer| firings(timer) * (1 + 3 * timer.asks)).sum();
    let timers: Vec<_> = TIMERS.iter().map(|timer| format!("{} {}x", timer.what, firings(timer))).collect();
    vec![
        Finding {
            what: format!("idle, {minutes} min after a job: memory"),
            drydock: mib(resident),
            peer: String::new(),
            came_to: mib(resident),
            goal: format!("at most {}", mib(MOST_BYTES)),
            met: resident <= MOST_BYTES,
        },
        Finding {
            what: format!("idle: wake-ups in {} s", LOOK.as_secs()),
            drydock: format!("{sleeps} ({})", timers.join(", ")),
            peer: String::new(),
            came_to: format!("{:.1} a second", sleeps as f64 / LOOK.as_secs_f64()),
            goal: format!("{due}, what its timers are due for"),
            met: sleeps <= u64::from(due),
        },
    ]
}

/// How often a timer fires while we look; one that is due at both ends fires once more.
fn firings(timer: &Timer) -> u32 {
    u32::try_from(LOOK.as_secs() / timer.every.as_secs()).unwrap() + 1
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
