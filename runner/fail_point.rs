//! Places in the life of an attempt at which a test can have the gateway die.
//!
//! A process that is killed runs nothing any more: no destructor, no buffer that is written out. So a fail point kills
//! the process itself, with the signal that nothing can catch, exactly between two steps that a kill from outside would
//! hit only by luck.
//!
//! The crate `fail`, which the idea is from, is not used: it knows panics, delays and early returns, all of which are
//! gentler than what has to be survived here, and keeps a registry for them that this one purpose does not need.
//!
//! In a release build the functions are empty: whoever can set a variable of the gateway's environment must not be able
//! to take it down again and again, and nobody should have to ask what a fail point costs.

/// The steps of an attempt whose effects outlive the process, in the order in which they are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The job leaves the queue.
    Claim,
    /// The container is created.
    Create,
    /// The container is started.
    Start,
    /// The first reports are stored.
    Report,
    /// The engine tells how the container ended, and the rest of the reports is stored.
    Exit,
    /// The artifacts are taken over.
    Collect,
    /// The end is written down.
    Commit,
    /// The container is removed.
    Remove,
}

impl Step {
    pub const ALL: [Self; 8] =
        [Self::Claim, Self::Create, Self::Start, Self::Report, Self::Exit, Self::Collect, Self::Commit, Self::Remove];

    /// What it is called in [`VARIABLE`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Create => "create",
            Self::Start => "start",
            Self::Report => "report",
            Self::Exit => "exit",
            Self::Collect => "collect",
            Self::Commit => "commit",
            Self::Remove => "remove",
        }
    }
}

/// The environment variable that says where to die: `before` or `after`, a step's name, and which time it is, as
/// in `before:commit:1`. It is read once.
pub const VARIABLE: &str = "DRYDOCK_DIE";

/// The gateway is about to take the step.
#[cfg(debug_assertions)]
pub(crate) fn before(step: Step) {
    reached("before", step);
}

/// The gateway has taken the step, and its effect is there.
#[cfg(debug_assertions)]
pub(crate) fn after(step: Step) {
    reached("after", step);
}

#[cfg(not(debug_assertions))]
pub(crate) fn before(_: Step) {}

#[cfg(not(debug_assertions))]
pub(crate) fn after(_: Step) {}

#[cfg(debug_assertions)]
fn reached(when: &str, step: Step) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static PLACE: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static TIMES: AtomicU32 = AtomicU32::new(0);
    let place = PLACE.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let (place, time) = text.rsplit_once(':')?;
        Some((place.to_owned(), time.parse().ok()?))
    });
    let Some((place, time)) = place else { return };
    if place.split_once(':') == Some((when, step.name())) && TIMES.fetch_add(1, Ordering::SeqCst) + 1 == *time {
        tracing::warn!(place, time, "the fail point is reached");
        // Nothing here could answer an error: who is killed does not go on.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
