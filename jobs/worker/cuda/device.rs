//! A GPU: found, opened, and asked what it is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::cublas::result as cublas;
use cudarc::cublas::sys as cublas_sys;
use cudarc::driver::result::{self as driver, DriverError};
use cudarc::driver::sys;

use super::error::{CudaError, OrSay, Result};
use super::memory::{Account, Buffer, Memory};
use super::module::Kernels;

/// The CUDA that kernels and bindings are of: 1000 * major + 10 * minor.
const CUDA: u32 = 13_000;
/// The oldest generation that the kernels are built for: the first that multiplies bf16.
const CAPABILITY: (u32, u32) = (8, 0);
/// What cuBLAS computes in, bytes. Given by us, it is in the account, and nothing is allocated inside a product.
pub const WORKSPACE: usize = drydock_spec::device::WORKSPACE_BYTES as usize;

/// What a GPU is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// As NVIDIA calls it.
    pub name: String,
    /// Compute capability: generation and variant.
    pub capability: (u32, u32),
    /// All of its memory in bytes, also what others use.
    pub memory: u64,
    pub multiprocessors: u32,
}

/// An open GPU, with one stream that everything goes through. Cloning gives another hold of the same.
#[derive(Clone)]
pub struct Device(pub(super) Arc<Open>);

/// What is closed when nobody holds it any more.
pub(super) struct Open {
    facts: Facts,
    ordinal: sys::CUdevice,
    context: sys::CUcontext,
    pool: sys::CUmemoryPool,
    pub(super) stream: sys::CUstream,
    pub(super) account: Mutex<Account>,
    pub(super) kernels: Kernels,
    cublas: Mutex<Cublas>,
}

/// cuBLAS keeps state for one caller at a time.
struct Cublas {
    handle: cublas_sys::cublasHandle_t,
    workspace: sys::CUdeviceptr,
}

// SAFETY: the driver's calls may come from any thread that the context is bound to, which every entry sees to; the
// handle of cuBLAS is behind a mutex.
unsafe impl Send for Open {}
// SAFETY: as above.
unsafe impl Sync for Open {}

/// The GPUs that the driver lets this process see. Without a driver that is an error.
pub fn devices() -> Result<Vec<Facts>> {
    (0..start()?).map(|ordinal| facts(device(ordinal)?)).collect()
}

/// Wakes the driver and says how many GPUs it sees.
fn start() -> Result<u32> {
    // SAFETY: opens a library of the system, as linking to it would.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: writes a number.
    unsafe { sys::cuDriverGetVersion(&mut version).result() }.or_say("asking the driver's version")?;
    if (version as u32) < CUDA {
        return Err(CudaError::OldDriver { speaks: version as u32, needed: CUDA });
    }
    match driver::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        started => {
            started.or_say("starting the driver")?;
            Ok(driver::device::get_count().or_say("counting the GPUs")? as u32)
        }
    }
}

fn device(ordinal: u32) -> Result<sys::CUdevice> {
    driver::device::get(ordinal as i32).or_say("asking for a GPU")
}

fn facts(device: sys::CUdevice) -> Result<Facts> {
    use sys::CUdevice_attribute_enum::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
    };
    // SAFETY: the device is one that the driver gave.
    let ask = |what| unsafe { driver::device::get_attribute(device, what) }.or_say("asking what the GPU is");
    Ok(Facts {
        name: driver::device::get_name(device).or_say("asking the GPU's name")?,
        capability: (ask(MAJOR)? as u32, ask(MINOR)? as u32),
        // SAFETY: as above.
        memory: unsafe { driver::device::total_mem(device) }.or_say("asking how much memory the GPU has")? as u64,
        multiprocessors: ask(MULTIPROCESSORS)? as u32,
    })
}

impl Device {
    /// Opens the GPU that is the `ordinal`th that this process may see.
    pub fn open(ordinal: u32) -> Result<Self> {
        let devices = start()?;
        if ordinal >= devices {
            return Err(CudaError::NoDevice { ordinal, devices });
        }
        // SAFETY: opens a library, as linking to it would.
        if !unsafe { cublas_sys::is_culib_present() } {
            return Err(CudaError::NoCublas);
        }
        let ordinal = device(ordinal)?;
        let facts = facts(ordinal)?;
        if facts.capability < CAPABILITY {
            return Err(CudaError::OldDevice { name: facts.name, capability: facts.capability });
        }
        // SAFETY: the device is one that the driver gave, and the context the device's.
        let context = unsafe {
            let context = driver::primary_ctx::retain(ordinal).or_say("opening the GPU")?;
            driver::ctx::set_current(context).or_say("opening the GPU")?;
            context
        };
        // Whoever waits sleeps: a training waits once a step, and the host's CPUs have other work.
        driver::ctx::set_flags(sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC).or_say("opening the GPU")?;
        let kernels = Kernels::load()?;
        let pool = keeping_pool(ordinal)?;
        let stream = driver::stream::create(driver::stream::StreamKind::NonBlocking).or_say("making a stream")?;
        let account = Account::default();
        let cublas = Cublas::open(stream)?;
        let open = Open {
            facts,
            ordinal,
            context,
            pool,
            stream,
            account: Mutex::new(account),
            kernels,
            cublas: Mutex::new(cublas),
        };
        let device = Self(Arc::new(open));
        device.give_workspace()?;
        Ok(device)
    }

    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// Waits until everything that was asked for is done; what went wrong on the way is told now.
    pub fn wait(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream is open.
        unsafe { driver::stream::synchronize(self.0.stream) }.or_say("waiting for the GPU")
    }

    /// Whether everything that was asked for is done; what went wrong on the way is told now.
    pub(super) fn is_done(&self) -> Result<bool> {
        self.bind()?;
        // SAFETY: the stream is open.
        match unsafe { sys::cuStreamQuery(self.0.stream) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => answer.result().or_say("asking whether the GPU is done").map(|()| true),
        }
    }

    /// The stream that everything goes through.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.0.stream
    }

    /// What this worker holds of the GPU's memory.
    #[must_use]
    pub fn memory(&self) -> Memory {
        self.0.account().memory()
    }

    /// Forgets the peak, so that the next one is that of what comes.
    pub fn forget_peak(&self) {
        self.0.account().forget_peak();
    }

    /// The most bytes that the driver's pool took from the GPU for this process. Above [`Memory::peak`] by what lies in
    /// gaps between buffers.
    pub fn reserved_peak(&self) -> Result<u64> {
        self.bind()?;
        let mut bytes = 0u64;
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH;
        // SAFETY: the attribute is a 64-bit number.
        unsafe { sys::cuMemPoolGetAttribute(self.0.pool, attribute, (&raw mut bytes).cast()).result() }
            .or_say("asking how much memory is reserved")?;
        Ok(bytes)
    }

    /// Lends cuBLAS to one caller.
    pub(super) fn cublas<R>(&self, f: impl FnOnce(cublas_sys::cublasHandle_t) -> R) -> Result<R> {
        self.bind()?;
        Ok(f(self.0.cublas.lock().unwrap_or_else(PoisonError::into_inner).handle))
    }

    /// Every thread that speaks to the driver says first which GPU it means.
    pub(super) fn bind(&self) -> Result<()> {
        self.0.bind()
    }

    fn give_workspace(&self) -> Result<()> {
        let workspace: Buffer<u32> = self.buffer(WORKSPACE / size_of::<u32>())?;
        // cuBLAS has it from here on; it goes when the device does.
        let pointer = workspace.into_pointer();
        let mut cublas = self.0.cublas.lock().unwrap_or_else(PoisonError::into_inner);
        cublas.workspace = pointer;
        // SAFETY: the workspace is allocated, and lives as long as the handle.
        unsafe { cublas_sys::cublasSetWorkspace_v2(cublas.handle, pointer as *mut _, WORKSPACE).result() }
            .or_say("giving cuBLAS its workspace")
    }
}

/// The device's pool, which from now on keeps what is freed: a training step frees what the next one asks for.
fn keeping_pool(device: sys::CUdevice) -> Result<sys::CUmemoryPool> {
    let mut everything = u64::MAX;
    let threshold = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is one that the driver gave, and the attribute is a 64-bit number.
    unsafe {
        let pool = driver::device::get_default_mem_pool(device).or_say("asking for the memory pool")?;
        sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut everything).cast())
            .result()
            .or_say("setting up the memory pool")?;
        Ok(pool)
    }
}

impl Cublas {
    fn open(stream: sys::CUstream) -> Result<Self> {
        let handle = cublas::create_handle().or_say("starting cuBLAS")?;
        let full_sums = cublas_sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: handle and stream are open. Sums of bf16 products stay f32, also where a product is cut into parts.
        unsafe {
            cublas::set_stream(handle, stream.cast()).or_say("starting cuBLAS")?;
            cublas_sys::cublasSetMathMode(handle, full_sums).result().or_say("starting cuBLAS")?;
        }
        Ok(Self { handle, workspace: 0 })
    }
}

impl Open {
    pub(super) fn bind(&self) -> Result<()> {
        let bound = driver::ctx::get_current().or_say("asking for the context")?;
        if bound != Some(self.context) {
            // SAFETY: the context lives until `self` is dropped.
            unsafe { driver::ctx::set_current(self.context) }.or_say("binding the GPU to a thread")?;
        }
        Ok(())
    }

    pub(super) fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A GPU that has failed answers every call with the same error, of which everybody has heard by now.
impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.bind();
        let cublas = self.cublas.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: all of it was opened by `Device::open`, and nobody holds it any more.
        unsafe {
            let _ = driver::stream::synchronize(self.stream);
            let _ = cublas::destroy_handle(cublas.handle);
            if cublas.workspace != 0 {
                let _ = driver::free_async(cublas.workspace, self.stream);
            }
            let _ = driver::stream::destroy(self.stream);
            let _ = driver::primary_ctx::release(self.ordinal);
        }
    }
}
