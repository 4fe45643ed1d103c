//! SIGTERM: asks the worker to stop at the next place where nothing is half done.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::ending::{Ending, Result};

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_signal: libc::c_int) {
    // An atomic store is among the few things that are allowed while a signal is taken.
    ASKED.store(true, Ordering::Relaxed);
}

/// Listens to SIGTERM, and to SIGINT for those who run the worker by hand.
pub fn listen() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let action: extern "C" fn(libc::c_int) = on_signal;
        // SAFETY: the action only stores to an atomic.
        unsafe { libc::signal(signal, action as libc::sighandler_t) };
    }
}

/// Called between any two pieces of work that take a while.
pub fn check() -> Result<()> {
    if ASKED.load(Ordering::Relaxed) { Err(Ending::Stopped) } else { Ok(()) }
}
