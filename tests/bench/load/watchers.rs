//! A crowd: 10,000 watchers of one job that reports ten times a second, and 1,000 who connect and never read.
//!
//! The watchers are plain sockets in this process, which look for the numbers of events and nothing else; what is
//! measured is the gateway's process. Latency is from the time at which the gateway stored a report to the time at which
//! a watcher has read it: on this host, where the gateway and its watchers share the CPUs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Mutex;

use crate::harness::process::{Folders, Gateway};
use crate::process::Process;
use crate::queue::percentile;
use crate::row::{Finding, Length};

const WATCHERS: usize = 10_000;
const STALLED: usize = 1_000;
const KIB_EACH: f64 = 25.0;
/// How long the crowd is watched, each time.
const WATCH: Duration = Duration::from_secs(30);
/// How long those who have just come are given to catch up.
const SETTLE: Duration = Duration::from_secs(5);
/// One in so many watchers says how late its lines were.
const SAMPLE: usize = 16;
/// What somebody who does not read may add to the latency of those who do: times, and where that is little, so much.
const DELAY: f64 = 1.5;
const NOTHING: Duration = Duration::from_millis(50);
/// A gateway lets a client go that has taken nothing for a minute.
const LET_GO: Duration = Duration::from_secs(150);

/// What all watchers tell.
#[derive(Default)]
struct Tally {
    lines: AtomicU64,
    /// Lines that were missing, came twice or out of order.
    wrong: AtomicU64,
    /// Streams that ended before the job did.
    broken: AtomicU64,
    /// The newest line that anybody has seen.
    newest: AtomicI64,
    /// Set once streams may end.
    over: AtomicBool,
    late: Mutex<Vec<Duration>>,
}

pub(crate) async fn measure(length: Length) -> Vec<Finding> {
    raise_open_files();
    let (watchers, stalled) = (length.of(WATCHERS), length.of(STALLED));
    let folders = Folders::new(8);
    let gateway = folders.stock(gateway(&folders).await).await;
    let process = Process(gateway.pid());
    let id = start(&gateway).await;
    let tally = Arc::new(Tally::default());

    let empty = process.resident_bytes();
    let mut reading = tokio::task::JoinSet::new();
    for n in 0..watchers {
        let socket = connect(&gateway, &id, None).await;
        reading.spawn(watch(socket, tally.clone(), n % SAMPLE == 0));
    }
    tokio::time::sleep(SETTLE).await;
    let (cpu, lines) = (process.cpu(), tally.lines.load(Ordering::Relaxed));
    let mut alone = latencies(&tally).await;
    let busy = (process.cpu() - cpu).as_secs_f64() / WATCH.as_secs_f64();
    let rate = (tally.lines.load(Ordering::Relaxed) - lines) as f64 / WATCH.as_secs_f64();
    let full = process.resident_bytes();

    let mut silent = Vec::with_capacity(stalled);
    for _ in 0..stalled {
        // With little room at this end, so that the gateway is the one who has to keep what is not read.
        silent.push(connect(&gateway, &id, Some(4096)).await);
    }
    tokio::time::sleep(SETTLE).await;
    let mut beside = latencies(&tally).await;
    let with_stalled = process.resident_bytes();
    let let_go = until_let_go(&gateway, watchers).await;
    drop(silent);
    // Once more without them: whatever else the machine does falls on both.
    alone.extend(latencies(&tally).await);

    tally.over.store(true, Ordering::Relaxed);
    gateway.post(&format!("/v1/jobs/{id}/cancel"), json!({})).await;
    let all = tokio::time::timeout(Duration::from_secs(60), reading.join_all()).await;
    let last = tally.newest.load(Ordering::Relaxed);
    let short = all.map_or(watchers, |seen| seen.iter().filter(|seen| **seen != last).count()) as u64;
    let [wrong, broken] = [&tally.wrong, &tally.broken].map(|count| count.load(Ordering::Relaxed));
    let lost = wrong + broken + short;
    gateway.stop().await;

    let kib = (full.saturating_sub(empty)) as f64 / 1024.0 / watchers as f64;
    let kib_stalled = (with_stalled.saturating_sub(full)) as f64 / 1024.0 / stalled as f64;
    let [p50, p99] = [0.5, 0.99].map(|share| percentile(&mut alone, share));
    let [p50_beside, p99_beside] = [0.5, 0.99].map(|share| percentile(&mut beside, share));
    let undelayed = |now: Duration, before: Duration| now <= before.mul_f64(DELAY).max(before + NOTHING);
    vec![
        Finding {
            what: format!("{watchers} watchers of one job, 10 events/s"),
            drydock: format!(
                "{} deliveries, {rate:.0} a second with {busy:.2} CPUs, p50 {p50:.0?}, p99 {p99:.0?} after the report",
                tally.lines.load(Ordering::Relaxed)
            ),
            peer: String::new(),
            came_to: format!("{lost} lost, doubled, out of order or cut off"),
            goal: "none".into(),
            met: lost == 0,
        },
        Finding {
            what: "memory of a watcher".into(),
            drydock: format!("{:.1} MiB beside {:.1} MiB without", mib(full), mib(empty)),
            peer: String::new(),
            came_to: format!("{kib:.1} KiB"),
            goal: format!("at most {KIB_EACH} KiB"),
            met: kib <= KIB_EACH,
        },
        Finding {
            what: format!("{stalled} more that never read"),
            drydock: format!("p50 {p50_beside:.0?}, p99 {p99_beside:.0?} for those who do"),
            peer: String::new(),
            came_to: format!("{:.2}x and {:.2}x", times(p50_beside, p50), times(p99_beside, p99)),
            goal: format!("at most {DELAY}x, or {NOTHING:?} more"),
            met: undelayed(p50_beside, p50) && undelayed(p99_beside, p99),
        },
        Finding {
            what: "memory of one that never reads".into(),
            drydock: match let_go {
                Some(after) => format!("{:.1} MiB; all were let go within {after:.0?}", mib(with_stalled)),
                None => format!("{:.1} MiB; not all were let go", mib(with_stalled)),
            },
            peer: String::new(),
            came_to: format!("{kib_stalled:.1} KiB"),
            goal: format!("at most 64 KiB, and let go within {LET_GO:?}"),
            met: kib_stalled <= 64.0 && let_go.is_some(),
        },
    ]
}

/// A gateway with room for one job.
async fn gateway(folders: &Folders) -> Gateway {
    let image = ("DRYDOCK_SANDBOX__IMAGE".into(), crate::image::probe().into());
    Gateway::start_with(&folders.state(), &folders.data(), &[image]).await
}

/// Starts a job that reports every 100 ms, and returns its id once it has said something.
async fn start(gateway: &Gateway) -> String {
    let job = json!({"finetune": {"model": "tiny", "dataset": "rows", "sample_prompts": ["linger 36000 100"]}});
    let limits = json!({"cpus": 0.25, "memory_mib": 64, "disk_mib": 32});
    let answer = gateway.post("/v1/jobs", json!({"job": job, "limits": limits})).await;
    let id = answer["job"]["id"].as_str().unwrap_or_else(|| panic!("{answer:#}")).to_owned();
    while gateway.get(&format!("/v1/jobs/{id}")).await["progress"].is_null() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    id
}

/// Asks for the job's events from the first one on.
async fn connect(gateway: &Gateway, id: &str, room: Option<usize>) -> TcpStream {
    let address = gateway.url.strip_prefix("http://").unwrap().parse().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(bytes) = room {
        set_socket_recv_buffer_size(&socket, bytes).unwrap();
    }
    let mut socket = socket.connect(address).await.unwrap();
    let request = format!("GET /v1/jobs/{id}/events HTTP/1.1\r\nhost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

/// Reads a stream to its end, and returns the number of its last line.
async fn watch(mut socket: TcpStream, tally: Arc<Tally>, samples: bool) -> i64 {
    let (mut text, mut last, mut ended) = (Vec::with_capacity(2048), 0_i64, false);
    loop {
        let read = socket.read_buf(&mut text).await;
        let mut begin = 0;
        // What comes in chunks has their sizes in between, on lines of their own.
        while let Some(end) = text[begin..].iter().position(|byte| *byte == b'\n') {
            let line = &text[begin..begin + end];
            begin += end + 1;
            if let Some(id) = line.strip_prefix(b"id: ") {
                let seq = number(id);
                if seq != last + 1 {
                    tally.wrong.fetch_add(1, Ordering::Relaxed);
                }
                last = seq;
                tally.lines.fetch_add(1, Ordering::Relaxed);
                tally.newest.fetch_max(seq, Ordering::Relaxed);
            } else if line == b"0\r" {
                ended = true;
            } else if samples && let Some(at) = at_ms(line) {
                tally.late.lock().await.push(Duration::from_millis(now_ms().saturating_sub(at)));
            }
        }
        text.drain(..begin);
        if ended || !matches!(read, Ok(bytes) if bytes > 0) {
            if !tally.over.load(Ordering::Relaxed) {
                tally.broken.fetch_add(1, Ordering::Relaxed);
            }
            return last;
        }
    }
}

fn number(digits: &[u8]) -> i64 {
    std::str::from_utf8(digits).unwrap().parse().unwrap()
}

/// When the line of the log that this line holds was stored.
fn at_ms(line: &[u8]) -> Option<u64> {
    const MARK: &[u8] = b"\"at_ms\":";
    let line = line.strip_prefix(b"data: ")?;
    let begin = line.windows(MARK.len()).position(|part| part == MARK)? + MARK.len();
    let digits = line[begin..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    u64::try_from(number(&line[begin..begin + digits])).ok()
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

/// How late lines are from now on, for a while.
async fn latencies(tally: &Tally) -> Vec<Duration> {
    tally.late.lock().await.clear();
    tokio::time::sleep(WATCH).await;
    std::mem::take(&mut *tally.late.lock().await)
}

/// Returns when the gateway has no more than so many watchers, and says how long that took.
async fn until_let_go(gateway: &Gateway, watchers: usize) -> Option<Duration> {
    let began = Instant::now();
    while began.elapsed() < LET_GO {
        let page = gateway.client.get(format!("{}/metrics", gateway.url)).send().await.unwrap().text().await.unwrap();
        let count = page.lines().find_map(|line| line.strip_prefix("drydock_watchers ")).unwrap();
        if count.parse::<usize>().unwrap() <= watchers {
            return Some(began.elapsed());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    None
}

fn times(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64().max(0.001)
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Each watcher is an open file at both ends.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}
