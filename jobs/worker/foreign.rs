//! Other people's code over other people's input: calls into libraries that were not made for input that means harm.
//!
//! A library that unwraps what it has not checked panics; one that has no limit of its own takes all memory or never
//! comes back. Here such a call is made so that either is the input's fault, and told as such. A panic is caught and
//! becomes an error. Memory and time are rationed; what a call takes beyond that cannot be refused with an error, as
//! the library asks for memory where it expects to get it, and cannot be interrupted either. So the process ends there,
//! after its last words, which are an ordinary failure: a worker does one attempt, and that attempt is over.

mod memory;
mod time;

use std::cell::Cell;
use std::fmt::Display;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use drydock_spec::contract::EXIT_FAILED;
use drydock_spec::{Failure, FailureKind};

/// What a call may take.
#[derive(Debug, Clone, Copy)]
pub struct Ration {
    /// Who takes it, as a sentence begins: `the model's chat template`.
    pub who: &'static str,
    /// More than it had before, at any time.
    pub bytes: usize,
    /// What to do about it.
    pub hint: &'static str,
}

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread will be caught, and is nothing to report.
pub fn is_contained() -> bool {
    CONTAINED.get()
}

/// Does some work of a library; if it panics, the error is what it said. What it worked on must not be used any more.
pub fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(before);
    result.map_err(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
        format!("it cannot be worked on ({})", said.unwrap_or("no reason given"))
    })
}

/// The same for work that may take only so much memory, and [`time::SECONDS`].
pub fn rationed<T>(ration: Ration, work: impl FnOnce() -> T) -> Result<T, String> {
    let _time = time::Call::begin(ration);
    let _memory = memory::Call::begin(ration);
    contained(work)
}

type LastWords = Box<dyn Fn(Failure) + Send + Sync>;
static LAST_WORDS: OnceLock<LastWords> = OnceLock::new();

/// What is done with the failure before a call that takes too much ends the process.
pub fn set_last_words(say: impl Fn(Failure) + Send + Sync + 'static) {
    // Whoever was first keeps the word.
    let _ = LAST_WORDS.set(Box::new(say));
}

static ENDING: AtomicBool = AtomicBool::new(false);

/// Ends the process because of what a call took.
fn end(ration: Ration, took: impl Display) -> ! {
    // Rows are rendered by several threads, and what one of them takes, the next will take as well. The first speaks
    // for all; a second one that left at once would cut its words off.
    if ENDING.swap(true, Ordering::SeqCst) {
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    let failure = Failure::new(FailureKind::BadModel, format!("{} {took}", ration.who)).with_hint(ration.hint);
    match LAST_WORDS.get() {
        Some(say) => say(failure),
        // There is no one left to tell if this fails.
        None => drop(writeln!(std::io::stderr(), "drydock-worker: {failure}; hint: {}", failure.hint)),
    }
    // SAFETY: it only ends the process. Destructors and other threads are left as they are: what they would still do
    // belongs to an attempt that has failed.
    unsafe { libc::_exit(EXIT_FAILED) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATION: Ration = Ration { who: "the test", bytes: 1 << 20, hint: "none" };

    #[test]
    fn a_panic_of_a_library_is_an_error_that_says_why() {
        let said = contained(|| -> u8 { panic!("no {}", "keel") }).unwrap_err();
        assert_eq!(said, "it cannot be worked on (no keel)");
        assert!(!is_contained());
        assert_eq!(contained(is_contained), Ok(true));
    }

    #[test]
    fn a_ration_counts_what_is_held_and_not_what_was_given_back() {
        let sum: usize = rationed(RATION, || (0..100).map(|_| vec![1u8; 900 << 10].len()).sum()).unwrap();
        assert_eq!(sum, 100 * (900 << 10));
        let after = vec![1u8; 2 << 20];
        assert_eq!(after.len(), 2 << 20, "and nothing once the call is over");
    }

    #[test]
    fn a_panic_ends_its_ration() {
        // A test's panic may be printed with a backtrace, which takes memory as well.
        let ration = Ration { bytes: 1 << 30, ..RATION };
        assert!(rationed(ration, || -> u8 { panic!("enough") }).is_err());
        assert_eq!(vec![0u8; 2 << 30].len(), 2 << 30);
    }
}
