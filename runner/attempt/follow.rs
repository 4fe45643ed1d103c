//! From a started container to its end: every report stored, every limit enforced.

use std::path::Path;
use std::time::Duration;

use drydock_gpu::health::GpuAccount;
use drydock_spec::{Report, ReportLine, Stage};
use futures::StreamExt;

use super::gpus::Readings;
use super::reports::ReportReader;
use super::{AttemptError, Attempts, Stop, blocking, hold, stopping};
use crate::clock::Clock;
use crate::diagnose::{End, Ending, UNSEEN};
use crate::fail_point::{self, Step};
use crate::gpus::Mark;
use crate::gpus::readings::peak_gpu_bytes;
use crate::sandbox::attempt_dir::{AttemptDir, Usage};
use crate::sandbox::{ContainerName, Exit, Status};
use crate::store::{Lease, Termination};

/// How often limits are looked at, and the events file where it cannot be watched.
const TICK: Duration = Duration::from_secs(1);
/// How long to wait before an engine that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long one question for a container's end is held open.
const WAIT: Duration = Duration::from_secs(20);
/// How long an engine may take to notice that a container's process is gone.
const UNNOTICED: Duration = Duration::from_secs(60);
/// Exit code of a container that was killed: 128 and the number of SIGKILL.
const KILLED: i64 = 137;
/// How long news of a kill for memory may come after the end.
const LATE_NEWS: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Bytes of reports that a job may write.
const MOST_EVENTS_BYTES: u64 = 256 << 20;
/// Files that a job may make before counting stops.
const MOST_FILES: u64 = 100_000;

/// What the reports so far add up to.
#[derive(Debug, Default)]
struct Tale {
    last: Option<Report>,
    stage: Option<Stage>,
    peak_rss_bytes: Option<u64>,
    gpus: Readings,
    /// Whether nothing may go on upon a GPU that it has.
    gpu_lost: bool,
    broken: Option<String>,
    times: Times,
}

/// When things happened, by the steady clock, which nobody can set: the time of day has to do only where the host was
/// booted since.
#[derive(Debug, Default)]
struct Times {
    launched_ms: i64,
    /// The last report, or when we began to listen: silence while nobody did is not the worker's.
    heard_ms: i64,
    /// When the container was asked to end.
    told_ms: Option<i64>,
}

impl Times {
    fn of(lease: &Lease, clock: &Clock) -> Self {
        let (now, steady) = (clock.now_ms(), clock.steady_ms());
        let row = lease.row();
        let same_boot = clock.boot().is_some() && row.boot.as_deref() == clock.boot();
        let then = |steady_ms: Option<i64>, day_ms: i64| match steady_ms {
            Some(then) if same_boot => then.min(steady),
            _ => steady - (now - day_ms).max(0),
        };
        Self {
            launched_ms: then(row.launched_steady_ms, row.launched_ms.unwrap_or(row.claimed_ms)),
            heard_ms: steady,
            told_ms: row.terminated.map(|(at_ms, _)| then(row.terminated_steady_ms, at_ms)),
        }
    }
}

impl Tale {
    /// Whether the worker has said that it is done, one way or another.
    fn is_over(&self) -> bool {
        self.last.as_ref().is_some_and(Report::is_last)
    }

    fn goes_on(&mut self, lines: &[ReportLine]) {
        for line in lines {
            match &line.report {
                Report::Stage { stage } => self.stage = Some(*stage),
                Report::Metrics(metrics) => {
                    self.peak_rss_bytes = self.peak_rss_bytes.max(Some(metrics.rss_bytes));
                }
                _ => {}
            }
            self.last = Some(line.report.clone());
        }
    }
}

impl Attempts {
    /// Follows the container until it has ended and everything it said is stored.
    pub(super) async fn follow(&self, lease: &mut Lease, dir: AttemptDir, gpus_before: &Mark) -> Result<Ending, Stop> {
        let name = ContainerName::of(lease.job().id, lease.attempt());
        let mut tale = self.tale_so_far(lease).await?;
        let mut reader = ReportReader::open(&dir.events_path(), lease.row().report_offset, tale.is_over())
            .map_err(AttemptError::Events)?;
        let mut written = watch(&dir.events_path());
        let mut news = self.store.changes().subscribe(lease.job().id);
        lease.refresh().await?;
        let clock = self.store.clock().clone();
        let mut tick = std::pin::pin!(clock.sleep(Duration::ZERO));
        let mut end = std::pin::pin!(self.end_of(&name));
        let mut exited: Option<End> = None;
        let mut renewed_ms = clock.steady_ms();
        let mut signalled = false;
        loop {
            let more = self.read(lease, &mut reader, &mut tale).await?;
            if let (false, Some(end)) = (more, &exited) {
                let in_order = tale.is_over() && matches!(end, End::Seen(exit) if exit.code == 0);
                let outage = !in_order && self.engine_restarted(lease).await?;
                fail_point::after(Step::Exit);
                tale.gpus.say(lease).await?;
                return Ok(ending(lease, tale, end.clone(), outage));
            }
            tokio::select! {
                biased;
                ended = &mut end, if exited.is_none() => {
                    fail_point::before(Step::Exit);
                    exited = Some(ended);
                }
                () = self.shutdown.cancelled() => return Err(Stop::Detached),
                // Mostly our own reports; only a cancellation cannot wait for the next tick.
                () = news.changed() => {
                    lease.refresh().await?;
                    if stopping(lease) {
                        self.enforce(lease, &dir, &mut tale, &name, &mut signalled).await?;
                    }
                }
                () = &mut tick => {
                    if clock.steady_ms() - renewed_ms > hold::renewal_ms(self.lease_ms) {
                        lease.renew(self.lease_ms).await?;
                        renewed_ms = clock.steady_ms();
                    }
                    tick.set(clock.sleep(TICK));
                    tale.gpus.go_on(self, lease).await?;
                    tale.gpu_lost = self.gpus.now().fatal(&lease.row().gpus, gpus_before).is_some();
                    self.enforce(lease, &dir, &mut tale, &name, &mut signalled).await?;
                }
                () = std::future::ready(()), if more => {}
                () = written.changed() => {}
            }
        }
    }

    /// Stores what has come; says whether there may be more right away.
    async fn read(&self, lease: &mut Lease, reader: &mut ReportReader, tale: &mut Tale) -> Result<bool, Stop> {
        if tale.broken.is_some() {
            return Ok(false);
        }
        let reading = reader.read_once().map_err(AttemptError::Events)?;
        let news = !reading.batch.lines.is_empty();
        if news {
            fail_point::before(Step::Report);
        }
        lease.record(&reading.batch).await?;
        if news {
            tale.times.heard_ms = self.store.clock().steady_ms();
            fail_point::after(Step::Report);
        }
        tale.goes_on(&reading.batch.lines);
        tale.broken = reading.unreadable;
        Ok(news)
    }

    /// What the reports that are stored already add up to.
    async fn tale_so_far(&self, lease: &Lease) -> Result<Tale, Stop> {
        let times = Times::of(lease, self.store.clock());
        let mut tale = Tale { times, gpus: Readings::of(lease).await?, ..Tale::default() };
        if lease.row().report_offset > 0 {
            let mut newest = self.store.newest_reports(&[lease.job().id]).await?;
            tale.goes_on(&newest.remove(&lease.job().id).unwrap_or_default());
            tale.last = lease.last_report().await?.map(|line| line.report);
        }
        Ok(tale)
    }

    /// Ends the container if it must not go on, gently at first. The reason is written down before the signal is sent.
    async fn enforce(
        &self,
        lease: &mut Lease,
        dir: &AttemptDir,
        tale: &mut Tale,
        name: &ContainerName,
        signalled: &mut bool,
    ) -> Result<(), Stop> {
        if lease.row().terminated.is_none() {
            let Some(why) = self.must_end(lease, dir, tale).await? else { return Ok(()) };
            tracing::info!(?why, "the container is asked to end");
            lease.terminating(why).await?;
        }
        let Some((_, why)) = lease.row().terminated else { return Ok(()) };
        let grace_ms = if is_at_once(why) { 0 } else { lease.job().limits.grace_ms };
        let steady = self.store.clock().steady_ms();
        let overdue = steady - *tale.times.told_ms.get_or_insert(steady) >= grace_ms;
        if overdue {
            tracing::warn!("the container did not end within its grace");
        }
        let sent = match (overdue, *signalled) {
            (true, _) => self.sandbox.kill(name).await,
            (false, false) => self.sandbox.terminate(name).await,
            (false, true) => Ok(()),
        };
        match sent {
            Ok(()) => *signalled = true,
            // The next tick tries again; the attempt's end is known only from the engine.
            Err(error) => tracing::warn!(%error, "the container could not be signalled"),
        }
        Ok(())
    }

    /// Whether the attempt must not go on, and why.
    async fn must_end(&self, lease: &Lease, dir: &AttemptDir, tale: &Tale) -> Result<Option<Termination>, Stop> {
        let job = lease.job();
        if stopping(lease) {
            return Ok(Some(Termination::Cancelled));
        }
        if tale.broken.is_some() {
            return Ok(Some(Termination::ContractBroken));
        }
        if tale.gpu_lost {
            return Ok(Some(Termination::GpuLost));
        }
        let now = self.store.clock().steady_ms();
        if now - tale.times.launched_ms >= job.limits.time_ms {
            return Ok(Some(Termination::TimeLimit));
        }
        if now - tale.times.heard_ms >= job.limits.silence_ms {
            return Ok(Some(Termination::Silent));
        }
        let most = Usage { bytes: job.limits.disk_bytes, files: MOST_FILES, events_bytes: MOST_EVENTS_BYTES };
        let dir = dir.clone();
        let used = blocking(move || dir.usage(most)).await?;
        let full = used.bytes > most.bytes || used.files > most.files || used.events_bytes > most.events_bytes;
        Ok(full.then_some(Termination::DiskFull))
    }

    /// How the container ended. An engine that does not answer is asked until it does.
    async fn end_of(&self, name: &ContainerName) -> End {
        let clock = self.store.clock();
        let mut lifeless_since_ms = None;
        loop {
            match self.sandbox.inspect(name).await {
                Ok(None) => return End::Gone,
                Ok(Some(found)) => match found.status {
                    Status::Exited(exit) if exit.code == UNSEEN && lifeless_since_ms.is_some() => return End::Unseen,
                    Status::Exited(exit) => return End::Seen(self.once_settled(name, exit).await),
                    // Followed is only what was seen running: an engine that says "never started" has forgotten it.
                    Status::Created { .. } => return End::Gone,
                    Status::Running => self.wait(name, WAIT).await,
                    Status::Lifeless => {
                        let now = clock.steady_ms();
                        let lifeless_ms = now - *lifeless_since_ms.get_or_insert(now);
                        if Duration::from_millis(lifeless_ms.unsigned_abs()) >= UNNOTICED {
                            tracing::warn!("the container's process is gone, and the engine does not notice");
                            return End::Unseen;
                        }
                        // A signal finds nobody, and the engine looks what has become of the container.
                        if lifeless_ms > 0
                            && let Err(error) = self.sandbox.terminate(name).await
                        {
                            tracing::debug!(%error, "the engine has not noticed the container's end");
                        }
                        self.wait(name, ASK_AGAIN).await;
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "the container cannot be looked up; nothing is concluded from that");
                    self.store.clock().sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    /// Waits until the container has ended, for so long at most.
    async fn wait(&self, name: &ContainerName, limit: Duration) {
        let clock = self.store.clock();
        let waited = tokio::select! {
            waited = self.sandbox.wait(name, limit) => waited,
            () = clock.sleep(limit) => Ok(()),
        };
        if let Err(error) = waited {
            tracing::warn!(%error, "waiting for the container was cut; nothing is concluded from that");
            clock.sleep(ASK_AGAIN).await;
        }
    }

    /// Whether the engine is another one than that which was asked for the container. One that does not answer is asked
    /// until it does.
    pub(super) async fn engine_restarted(&self, lease: &Lease) -> Result<bool, Stop> {
        let answer = async {
            loop {
                match self.sandbox.probe().await {
                    Ok(engine) => {
                        return lease.row().incarnation.as_ref().is_some_and(|then| *then != engine.incarnation);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the engine cannot be asked who it is; nothing is concluded from that");
                        self.store.clock().sleep(ASK_AGAIN).await;
                    }
                }
            }
        };
        tokio::select! {
            restarted = hold::renewing(lease, self.lease_ms, answer) => Ok(restarted?),
            () = self.shutdown.cancelled() => Err(Stop::Detached),
        }
    }

    /// The engine hears of the kernel's kill and of the container's end on different ways, and may tell the end first.
    /// A kill that is not explained yet is looked at again for a moment: an out-of-memory must not pass for a lost
    /// engine, which would be tried again.
    async fn once_settled(&self, name: &ContainerName, exit: Exit) -> Exit {
        if exit.code != KILLED || exit.oom_killed {
            return exit;
        }
        for _ in 0..LATE_NEWS.as_millis() / LOOK_AGAIN.as_millis() {
            self.store.clock().sleep(LOOK_AGAIN).await;
            if let Ok(Some(found)) = self.sandbox.inspect(name).await
                && let Status::Exited(later) = found.status
                && later.oom_killed
            {
                return later;
            }
        }
        exit
    }
}

/// Whether the attempt writes what it must not, which a grace would be time to go on with, or would use it to keep what a
/// damaged GPU has computed.
fn is_at_once(why: Termination) -> bool {
    match why {
        Termination::DiskFull | Termination::ContractBroken | Termination::GpuLost => true,
        Termination::Cancelled | Termination::TimeLimit | Termination::Silent => false,
    }
}

fn ending(lease: &Lease, tale: Tale, end: End, outage: bool) -> Ending {
    Ending {
        end,
        outage,
        last: tale.last,
        stage: tale.stage,
        peak_rss_bytes: tale.peak_rss_bytes,
        gpu_peak_bytes: peak_gpu_bytes(&tale.gpus.newest),
        cancel_requested: stopping(lease),
        terminated: lease.row().terminated.map(|(_, why)| why),
        broken: tale.broken,
        limits: lease.job().limits,
        gpus: GpuAccount::default(),
        has_gpus: false,
        gpu_lost: None,
    }
}

/// Tells when the events file has grown. Where the kernel has no watch left for us, the ticks have to do.
enum Written {
    Watched(Box<inotify::EventStream<[u8; 256]>>),
    Unwatched,
}

fn watch(path: &Path) -> Written {
    let watched = || {
        let inotify = inotify::Inotify::init()?;
        inotify.watches().add(path, inotify::WatchMask::MODIFY)?;
        inotify.into_event_stream([0; 256])
    };
    match watched() {
        Ok(events) => Written::Watched(Box::new(events)),
        Err(error) => {
            tracing::debug!(%error, "the events file cannot be watched; it is looked at every second");
            Written::Unwatched
        }
    }
}

impl Written {
    async fn changed(&mut self) {
        match self {
            Self::Watched(events) => {
                if !matches!(events.next().await, Some(Ok(_))) {
                    *self = Self::Unwatched;
                }
            }
            Self::Unwatched => std::future::pending().await,
        }
    }
}
