//! How the process is set up before anything else happens in it.

/// To be called first in `main`, while there is one thread only.
pub fn set_up() {
    tune_allocator();
    keep_candle_single_threaded();
    #[cfg(feature = "cuda")]
    keep_nccl_in_the_process();
}

/// All ranks of a training are threads of this process, which is all that NCCL need look at; what the environment says
/// already stays.
#[cfg(feature = "cuda")]
fn keep_nccl_in_the_process() {
    const SETTINGS: [(&str, &str); 5] = [
        // It introduces its ranks to each other by TCP; in a container there is no other interface.
        ("NCCL_SOCKET_IFNAME", "lo"),
        ("NCCL_IB_DISABLE", "1"),
        // One order of sums, whatever their size, and no buffers for the ways that are not taken.
        ("NCCL_ALGO", "Ring"),
        ("NCCL_NVLS_ENABLE", "0"),
        // Memory of a NUMA node of its choice is refused in a container; it falls back to /dev/shm only where it is told.
        ("NCCL_CUMEM_HOST_ENABLE", "0"),
    ];
    for (name, value) in SETTINGS.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()) {
        // SAFETY: no other thread has been started yet, by the contract of `set_up`.
        unsafe { std::env::set_var(name, value) };
    }
}

/// candle's own operations stay on one thread: its pool waits by spinning, which takes more time from the kernels,
/// whose threads are rayon's, than it saves.
fn keep_candle_single_threaded() {
    // SAFETY: no other thread has been started yet, by the contract of `set_up`.
    unsafe {
        std::env::set_var("RAYON_NUM_THREADS", "1");
        std::env::set_var("CANDLE_BARRIER_POOL_SPIN_LIMIT", "0");
    }
}

/// Every training step takes and gives back the same few hundred MiB. glibc would return them to the kernel each time,
/// and the kernel would clear each page again when it is touched; so memory is kept, and all threads share one heap.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn tune_allocator() {
    /// The largest that glibc takes; above it blocks are mapped and unmapped one by one.
    const MMAP_THRESHOLD: libc::c_int = 32 << 20;
    // SAFETY: only numbers are handed over, before any other thread runs; a refusal leaves the default.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn tune_allocator() {}
