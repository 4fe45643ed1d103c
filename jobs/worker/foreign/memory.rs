//! How much memory a call takes, counted where all memory comes from.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::{Ration, end};

/// The system's allocator, which counts for those threads that have a ration.
struct Counted;

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// What a thread without a ration has left.
const UNLIMITED: isize = isize::MAX;

thread_local! {
    // Neither of them needs a destructor or memory of its own, so that an allocator may use them.
    static LEFT: Cell<isize> = const { Cell::new(UNLIMITED) };
    static RATION: Cell<Option<Ration>> = const { Cell::new(None) };
}

/// A ration of this thread's memory, until it is dropped. One lies within another only if it is smaller.
pub(super) struct Call {
    before: isize,
}

impl Call {
    pub(super) fn begin(ration: Ration) -> Self {
        RATION.set(Some(ration));
        Self { before: LEFT.replace(isize::try_from(ration.bytes).unwrap_or(UNLIMITED)) }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        LEFT.set(self.before);
    }
}

fn take(bytes: usize) {
    let left = LEFT.get();
    if left == UNLIMITED {
        return;
    }
    match left.checked_sub_unsigned(bytes) {
        Some(left) if left >= 0 => LEFT.set(left),
        _ => {
            // Last words take memory, too.
            LEFT.set(UNLIMITED);
            if let Some(ration) = RATION.get() {
                end(ration, format_args!("takes more than {} MiB of memory", ration.bytes >> 20));
            }
        }
    }
}

fn give_back(bytes: usize) {
    let left = LEFT.get();
    if left != UNLIMITED {
        // Memory that was taken before the ration began may be given back within it.
        LEFT.set(left.saturating_add_unsigned(bytes).min(UNLIMITED - 1));
    }
}

// SAFETY: every call goes to the system's allocator as it is. What is done before neither unwinds nor touches the
// memory in question; at its end it ends the process.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: by the caller's contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: by the caller's contract, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        give_back(layout.size());
        // SAFETY: by the caller's contract, which is the same.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        take(size);
        give_back(layout.size());
        // SAFETY: by the caller's contract, which is the same.
        unsafe { System.realloc(memory, layout, size) }
    }
}
