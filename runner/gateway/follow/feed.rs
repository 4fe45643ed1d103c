//! What is new in a job's log, read and written out once for everybody who follows the job.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::body::Bytes;
use drydock_spec::{JobId, TraceId};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::Gateway;
use super::write_event;
use crate::desk::{Desk, DeskError, log_line};
use crate::store::{Entry, Job, LogLine, StoreError, Subscription};

/// Lines, and about how many bytes of them, that are read at a time.
const PAGE: u32 = 256;
const PAGE_BYTES: usize = 256 << 10;

/// What is kept for those who are a little late, in bytes.
const KEPT_BYTES: usize = 256 << 10;

/// Proxies and clients take a silent connection for a dead one.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// News wakes everybody, and each of them costs some ten microseconds of writing. So much time for each is let pass
/// before there are news again: a crowd gets several lines at once, and a few get each at once.
const PACE: Duration = Duration::from_micros(10);
const A_FEW: u32 = 100;

/// The feeds that somebody follows.
#[derive(Default)]
pub(in super::super) struct Feeds(Mutex<Open>);

#[derive(Default)]
struct Open {
    by_job: HashMap<JobId, Weak<Feed>>,
    /// Entries at which those that nobody follows any more are thrown out.
    sweep_at: usize,
}

/// A job's feed, which goes on until nobody has it any more.
pub(super) struct Feed {
    news: watch::Receiver<Recent>,
    _goes_on: DropGuard,
}

impl Feeds {
    /// The job's feed, begun if nobody follows the job yet.
    pub(super) fn of(&self, gateway: &Gateway, job: &Job) -> Arc<Feed> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = open.by_job.get(&job.id).and_then(Weak::upgrade);
        // One whose reader has ended without a last word has nothing more to say to anybody.
        if let Some(feed) = running.filter(|feed| feed.news.has_changed().is_ok() || feed.news.borrow().end.is_some()) {
            return feed;
        }
        if open.by_job.len() >= open.sweep_at {
            open.by_job.retain(|_, feed| feed.strong_count() > 0);
            open.sweep_at = 2 * open.by_job.len() + 64;
        }
        let feed = Arc::new(begin(gateway, job));
        open.by_job.insert(job.id, Arc::downgrade(&feed));
        feed
    }
}

impl Feed {
    /// Lines, and when there are more of them.
    pub(super) fn news(&self) -> watch::Receiver<Recent> {
        self.news.clone()
    }
}

fn begin(gateway: &Gateway, job: &Job) -> Feed {
    let stop = gateway.shutdown.child_token();
    // Not more than the last page: who wants the whole log reads it for himself.
    let after = (job.last_seq - i64::from(PAGE)).max(0);
    let (sender, news) = watch::channel(Recent::starting(after));
    let reader = Reader {
        desk: gateway.desk.clone(),
        id: job.id,
        trace_id: job.trace_id.clone(),
        // Subscribe first, read afterwards: a line that comes in between is announced, and found.
        changes: gateway.desk.store.changes().subscribe(job.id),
        recent: sender,
        stop: stop.clone(),
    };
    let id = job.id;
    gateway.begun.spawn(async move {
        if let Err(error) = reader.read().await {
            tracing::warn!(job = %id, %error, "a feed of events broke off");
        }
    });
    Feed { news, _goes_on: stop.drop_guard() }
}

/// Brings the news.
struct Reader {
    desk: Desk,
    id: JobId,
    trace_id: TraceId,
    changes: Subscription,
    recent: watch::Sender<Recent>,
    /// Cancelled when nobody follows any more, or the gateway shuts down.
    stop: CancellationToken,
}

impl Reader {
    /// Reads until the job's last line, or until nobody wants to know any more.
    async fn read(mut self) -> Result<(), DeskError> {
        let mut may_be_over = true;
        loop {
            let after = self.recent.borrow().last;
            let lines = self.desk.store.log_within(self.id, after, PAGE, PAGE_BYTES).await?;
            if lines.is_empty() {
                if may_be_over && let Some(end) = self.end(after).await? {
                    self.recent.send_modify(|recent| recent.end = Some(end));
                    return Ok(());
                }
                may_be_over = false;
                tokio::select! {
                    () = self.changes.changed() => {}
                    () = tokio::time::sleep(KEEP_ALIVE) => self.recent.send_modify(|recent| recent.beats += 1),
                    () = self.stop.cancelled() => return Ok(()),
                }
                continue;
            }
            // Whatever its last event was: the job's row knows whether it was the end.
            may_be_over = matches!(lines.last(), Some(LogLine { entry: Entry::Event(_), .. }));
            let stretch = Stretch::of(lines, &self.trace_id)?;
            self.recent.send_modify(|recent| recent.push(stretch));
            let crowd = u32::try_from(self.recent.receiver_count()).unwrap_or(u32::MAX);
            if crowd > A_FEW {
                tokio::select! {
                    () = tokio::time::sleep(PACE.saturating_mul(crowd)) => {}
                    () = self.stop.cancelled() => return Ok(()),
                }
            }
        }
    }

    /// The last word, if the job is done and line `last` was its last.
    async fn end(&self, last: i64) -> Result<Option<Bytes>, DeskError> {
        let job = self.desk.store.job(self.id).await?;
        if !job.state.is_done() || job.last_seq > last {
            return Ok(None);
        }
        let view = serde_json::to_string(&self.desk.job(self.id).await?).map_err(unwritable)?;
        let mut text = String::new();
        write_event(&mut text, None, "done", &view);
        Ok(Some(text.into()))
    }
}

/// The newest part of a job's log, as it goes out to clients.
pub(super) struct Recent {
    /// Number of the line before the first that is kept.
    first: i64,
    /// Number of the newest line.
    last: i64,
    stretches: VecDeque<Stretch>,
    bytes: usize,
    /// Signs of life so far, of times when there was nothing else to say.
    beats: u64,
    /// The last word, once it was said.
    end: Option<Bytes>,
}

/// What there is for somebody who has come to a certain line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Lines {
        bytes: Bytes,
        last: i64,
    },
    /// The next lines are kept no more, up to this one.
    Older {
        until: i64,
    },
    Beat {
        beats: u64,
    },
    End(Bytes),
    Nothing,
}

impl Recent {
    fn starting(after: i64) -> Self {
        Self { first: after, last: after, stretches: VecDeque::new(), bytes: 0, beats: 0, end: None }
    }

    fn push(&mut self, stretch: Stretch) {
        self.last = stretch.last().max(self.last);
        self.bytes += stretch.bytes.len();
        self.stretches.push_back(stretch);
        while self.bytes > KEPT_BYTES
            && self.stretches.len() > 1
            && let Some(gone) = self.stretches.pop_front()
        {
            self.bytes -= gone.bytes.len();
            self.first = gone.last();
        }
    }

    /// What follows line `after`, for somebody who has had `beats` signs of life.
    pub(super) fn after(&self, after: i64, beats: u64) -> Found {
        if after < self.first {
            return Found::Older { until: self.first };
        }
        let next = self.stretches.partition_point(|stretch| stretch.last() <= after);
        if let Some(stretch) = self.stretches.get(next) {
            let (bytes, last) = stretch.since(after);
            return Found::Lines { bytes, last };
        }
        match &self.end {
            Some(end) => Found::End(end.clone()),
            None if beats < self.beats => Found::Beat { beats: self.beats },
            None => Found::Nothing,
        }
    }
}

/// Lines that were read together, as they go out. Everybody's are the same bytes.
pub(super) struct Stretch {
    bytes: Bytes,
    /// Each line's number, and where it ends.
    ends: Vec<(i64, usize)>,
}

impl Stretch {
    pub(super) fn of(lines: Vec<LogLine>, trace_id: &TraceId) -> Result<Self, StoreError> {
        let (mut text, mut ends) = (String::new(), Vec::with_capacity(lines.len()));
        for line in lines {
            let seq = line.seq;
            let name = match &line.entry {
                Entry::Event(_) => "event",
                Entry::Report { .. } => "report",
            };
            let data = serde_json::to_string(&log_line(line, trace_id)).map_err(unwritable)?;
            write_event(&mut text, Some(seq), name, &data);
            ends.push((seq, text.len()));
        }
        text.shrink_to_fit();
        Ok(Self { bytes: text.into(), ends })
    }

    /// Number of the last line; 0 of no lines.
    fn last(&self) -> i64 {
        self.ends.last().map_or(0, |(seq, _)| *seq)
    }

    /// The lines after number `after`, and the number of the last of them; `after` itself if there are none.
    pub(super) fn since(&self, after: i64) -> (Bytes, i64) {
        let had = self.ends.partition_point(|(seq, _)| *seq <= after);
        let begin = had.checked_sub(1).map_or(0, |line| self.ends[line].1);
        (self.bytes.slice(begin..), self.last().max(after))
    }
}

fn unwritable(error: serde_json::Error) -> StoreError {
    StoreError::Corrupt(error.to_string())
}

#[cfg(test)]
mod tests {
    use drydock_spec::JobEvent;
    use proptest::prelude::*;

    use super::*;

    fn stretch(seqs: &[i64]) -> Stretch {
        let line = |seq: &i64| LogLine { seq: *seq, at_ms: 1, entry: Entry::Event(JobEvent::Submitted) };
        Stretch::of(seqs.iter().map(line).collect(), &TraceId::from_bits(1)).unwrap()
    }

    fn numbers(bytes: &Bytes) -> Vec<i64> {
        let text = std::str::from_utf8(bytes).unwrap();
        text.lines().filter_map(|line| line.strip_prefix("id: ")).map(|id| id.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_kept_has_a_bound_and_the_rest_is_older() {
        let mut recent = Recent::starting(0);
        for seq in 1..=10_000 {
            recent.push(stretch(&[seq]));
            assert!(recent.bytes <= KEPT_BYTES);
        }
        assert_eq!(recent.after(0, 0), Found::Older { until: recent.first });
        let Found::Lines { bytes, last } = recent.after(recent.first, 0) else { panic!() };
        assert_eq!((numbers(&bytes), last), (vec![recent.first + 1], recent.first + 1));
    }

    #[test]
    fn a_sign_of_life_is_given_once_and_only_in_silence() {
        let mut recent = Recent::starting(0);
        recent.beats = 3;
        assert_eq!(recent.after(0, 0), Found::Beat { beats: 3 });
        assert_eq!(recent.after(0, 3), Found::Nothing);
        recent.push(stretch(&[1]));
        assert!(matches!(recent.after(0, 0), Found::Lines { last: 1, .. }));
    }

    proptest! {
        #[test]
        fn whoever_follows_sees_each_line_once_and_in_order(
            gaps in proptest::collection::vec(1..4i64, 1..60),
            cuts in proptest::collection::vec(1..9usize, 1..30),
            start in 0..100i64,
        ) {
            let seqs: Vec<i64> = gaps.iter().scan(0, |seq, gap| { *seq += gap; Some(*seq) }).collect();
            let (mut recent, mut rest) = (Recent::starting(0), &seqs[..]);
            let (mut after, mut seen) = (start, Vec::new());
            let mut cuts = cuts.into_iter().cycle();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                recent.push(stretch(now));
                rest = later;
                // Not after every push: some are behind.
                while now.len() % 2 == 0 || rest.is_empty() {
                    let Found::Lines { bytes, last } = recent.after(after, 0) else { break };
                    seen.extend(numbers(&bytes));
                    after = last;
                }
            }
            let wanted: Vec<_> = seqs.into_iter().filter(|seq| *seq > start).collect();
            prop_assert_eq!(seen, wanted);
        }
    }
}
