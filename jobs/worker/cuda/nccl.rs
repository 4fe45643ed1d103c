//! NVIDIA's library that sums values among GPUs, as far as it is used here.
//!
//! It is opened when a training has several GPUs, and never linked. The calls are bound by hand: cudarc's bindings look
//! for it under names that no package gives it (`libnccl.so.13`), end the process where a call is missing, and know no
//! answer that is newer than they are.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::sync::atomic::AtomicPtr;

use cudarc::driver::sys::CUstream;
use libloading::Library;

use super::error::{CudaError, Result};

/// The oldest version that has what is used: 10,000 * major + 100 * minor + patch. Communicators that do not block are
/// of 2.14; those before 2.22 connect all ranks at once and may wait for it in a call that must not.
const NEEDED: c_int = 22_200;
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

/// A rank's end of a clique.
pub(super) type Communicator = *mut c_void;

/// What the ranks of a clique know each other by.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId([c_char; 128]);

/// As version 2.14 has it. Later ones have more behind it, and take their defaults for what is not there.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

const NOT_BLOCKING: Config = Config { size: size_of::<Config>(), magic: 0xcafe_beef, version: 21_400, blocking: 0 };

/// The library's calls.
pub(super) struct Nccl {
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    comm_init_rank_config: unsafe extern "C" fn(*mut Communicator, c_int, UniqueId, c_int, *const Config) -> c_int,
    comm_get_async_error: unsafe extern "C" fn(Communicator, *mut c_int) -> c_int,
    comm_abort: unsafe extern "C" fn(Communicator) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Communicator, CUstream) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    get_last_error: unsafe extern "C" fn(Communicator) -> *const c_char,
    /// Closed when the process ends: what is above lies in it.
    _library: Library,
}

/// The library, opened once.
pub(super) fn nccl() -> Result<&'static Nccl> {
    static NCCL: OnceLock<Result<Nccl>> = OnceLock::new();
    NCCL.get_or_init(open).as_ref().map_err(Clone::clone)
}

fn open() -> Result<Nccl> {
    // SAFETY: opens a library of the system, as linking to it would.
    let opened = NAMES.into_iter().find_map(|name| unsafe { Library::new(name) }.ok());
    let library = opened.ok_or(CudaError::NoNccl)?;
    let mut version = 0;
    // SAFETY: the call is as NVIDIA's header has it, and writes a number.
    let answer =
        unsafe { call::<unsafe extern "C" fn(*mut c_int) -> c_int>(&library, "ncclGetVersion")?(&mut version) };
    if answer != SUCCESS || version < NEEDED {
        return Err(CudaError::OldNccl { version: version.unsigned_abs(), needed: NEEDED.unsigned_abs() });
    }
    // SAFETY: every type is that of NVIDIA's header, version 2.28, none of which has changed since 2.14.
    unsafe {
        Ok(Nccl {
            get_unique_id: call(&library, "ncclGetUniqueId")?,
            comm_init_rank_config: call(&library, "ncclCommInitRankConfig")?,
            comm_get_async_error: call(&library, "ncclCommGetAsyncError")?,
            comm_abort: call(&library, "ncclCommAbort")?,
            group_start: call(&library, "ncclGroupStart")?,
            group_end: call(&library, "ncclGroupEnd")?,
            all_reduce: call(&library, "ncclAllReduce")?,
            get_error_string: call(&library, "ncclGetErrorString")?,
            get_last_error: call(&library, "ncclGetLastError")?,
            _library: library,
        })
    }
}

/// # Safety
/// `F` is the type of the call in NVIDIA's header.
unsafe fn call<F: Copy>(library: &Library, name: &'static str) -> Result<F> {
    // SAFETY: by the contract of this function.
    unsafe { library.get::<F>(name) }.map(|call| *call).map_err(|_| CudaError::NoNccl)
}

impl Nccl {
    pub(super) fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: the id is as large as the library's.
        self.accepted(unsafe { (self.get_unique_id)(&mut id) }, "making the GPUs known to each other")?;
        Ok(id)
    }

    /// Does in one group what `calls` asks for: none of it waits for the rest.
    pub(super) fn group(&self, tried: &'static str, calls: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: no arguments; the group is this thread's.
        self.accepted(unsafe { (self.group_start)() }, tried)?;
        let asked = calls();
        // SAFETY: the group has been started.
        let ended = self.accepted(unsafe { (self.group_end)() }, tried);
        asked.and(ended)
    }

    /// Puts a rank's end of the clique into `end`. The calling thread has the rank's GPU. Within a group: the
    /// communicator is ready some time after its end.
    ///
    /// # Safety
    /// Until it is ready, `end` stays where it is: the library may write there once more.
    pub(super) unsafe fn join(&self, id: UniqueId, rank: usize, of: usize, end: &AtomicPtr<c_void>) -> Result<()> {
        let config = NOT_BLOCKING;
        // SAFETY: the config lives longer than the call, which copies it; `end` by the contract of this function.
        let answer = unsafe { (self.comm_init_rank_config)(end.as_ptr(), of as c_int, id, rank as c_int, &config) };
        self.accepted(answer, "making the GPUs known to each other")
    }

    /// Puts into `values` the sums over all ranks, in the order of the stream. The calling thread has the rank's GPU.
    ///
    /// # Safety
    /// The `len` values lie in memory of the rank's GPU, and stay there until the stream is done.
    pub(super) unsafe fn sum(&self, values: u64, len: usize, rank: Communicator, stream: CUstream) -> Result<()> {
        let at = values as *mut c_void;
        // SAFETY: by the contract of this function.
        let answer = unsafe { (self.all_reduce)(at, at, len, FLOAT32, SUM, rank, stream) };
        self.accepted(answer, "summing gradients")
    }

    /// How far a communicator is with what was asked of it.
    pub(super) fn state(&self, rank: Communicator) -> c_int {
        let mut state = SUCCESS;
        // SAFETY: the communicator has not been let go.
        let answer = unsafe { (self.comm_get_async_error)(rank, &mut state) };
        if answer == SUCCESS { state } else { answer }
    }

    /// Ends what a communicator does, and lets it go. Whether it can is of no matter any more.
    pub(super) fn let_go(&self, rank: Communicator) {
        // SAFETY: nobody uses the communicator after this.
        let _ = unsafe { (self.comm_abort)(rank) };
    }

    fn accepted(&self, answer: c_int, tried: &'static str) -> Result<()> {
        if matches!(answer, SUCCESS | IN_PROGRESS) { Ok(()) } else { Err(self.error(answer, tried)) }
    }

    /// What an answer other than success means, in the library's words.
    pub(super) fn error(&self, answer: c_int, tried: &'static str) -> CudaError {
        // SAFETY: any number has a string, and the last error needs no communicator.
        let [meaning, last] =
            unsafe { [(self.get_error_string)(answer), (self.get_last_error)(std::ptr::null_mut())] }.map(words);
        let last = last.trim();
        CudaError::Exchange { tried, said: if last.is_empty() { meaning } else { format!("{meaning}: {last}") } }
    }
}

fn words(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the library's strings end with a zero, and live as long as it does.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
