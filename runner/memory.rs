//! What the allocator does with memory that is given back.

/// Arenas that threads share. glibc makes eight for each processor.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Has all threads of this process share a few arenas; to be called before there are any.
///
/// A gateway reads much and keeps little, in hundreds of threads that come and go for blocking calls. With an arena for
/// each, what one thread has given back is of no use to the next, and a gateway that had run a few hundred jobs took
/// half as much memory again.
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number, and there is no other thread yet that could read it. If it is refused, all stays as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}
