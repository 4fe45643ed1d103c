//! How long a call takes, watched from a thread of its own.
//!
//! What counts is the time that the caller's thread has computed: a machine that is busy elsewhere, or a container that
//! is paused, takes nothing from it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::{Ration, end};

/// What a call takes at most. What is rationed takes some milliseconds where nothing is wrong with it.
pub(super) const SECONDS: u64 = 10;
/// Between two looks.
const TICK: Duration = Duration::from_millis(250);

/// A thread that makes calls.
struct Caller {
    /// Its clock; none where the system has none for others to read.
    clock: Option<libc::clockid_t>,
    /// Nanoseconds on its clock when its call began; none while there is no call.
    since: AtomicU64,
    /// Whose call it is.
    ration: Mutex<Option<Ration>>,
}

const NONE: u64 = u64::MAX;

static CALLERS: Mutex<Vec<Arc<Caller>>> = Mutex::new(Vec::new());
static WATCH: OnceLock<()> = OnceLock::new();

thread_local! {
    static CALLER: Arc<Caller> = {
        let caller = Caller { clock: own_clock(), since: AtomicU64::new(NONE), ration: Mutex::new(None) };
        let caller = Arc::new(caller);
        CALLERS.lock().unwrap_or_else(PoisonError::into_inner).push(caller.clone());
        WATCH.get_or_init(watch);
        caller
    };
}

/// The clock of this thread, for others to read.
fn own_clock() -> Option<libc::clockid_t> {
    let mut clock = 0;
    // SAFETY: this thread is alive, and the place is there to be written to.
    let refused = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
    (refused == 0).then_some(clock)
}

/// Nanoseconds on a clock; none where its thread has ended.
fn read(clock: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place is there to be written to; any number may be asked for as a clock.
    let refused = unsafe { libc::clock_gettime(clock, &mut time) };
    let nanoseconds = Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?).as_nanos();
    (refused == 0).then_some(u64::try_from(nanoseconds).ok()?)
}

/// A call that is under way, until it is dropped.
pub(super) struct Call(Arc<Caller>);

impl Call {
    pub(super) fn begin(ration: Ration) -> Self {
        let caller = CALLER.with(Arc::clone);
        *caller.ration.lock().unwrap_or_else(PoisonError::into_inner) = Some(ration);
        caller.since.store(caller.clock.and_then(read).unwrap_or(NONE), Ordering::Release);
        Self(caller)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.since.store(NONE, Ordering::Release);
    }
}

impl Caller {
    /// The ration of a call that has taken too long.
    fn excess(&self) -> Option<Ration> {
        // Only while there is a call: a clock's number may come to mean another thread once its own has ended.
        let since = Some(self.since.load(Ordering::Acquire)).filter(|since| *since != NONE)?;
        let taken = read(self.clock?)?.saturating_sub(since);
        let ration = *self.ration.lock().unwrap_or_else(PoisonError::into_inner);
        // Still the same call?
        let same = self.since.load(Ordering::Acquire) == since;
        ration.filter(|_| same && taken > Duration::from_secs(SECONDS).as_nanos() as u64)
    }
}

/// Starts the thread that watches. Without one there is no limit but the job's own.
fn watch() {
    let look = || {
        loop {
            std::thread::sleep(TICK);
            let callers = CALLERS.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(ration) = callers.iter().find_map(|caller| caller.excess()) {
                end(ration, format_args!("takes more than {SECONDS} seconds"));
            }
        }
    };
    drop(std::thread::Builder::new().name("watch".to_owned()).spawn(look));
}
