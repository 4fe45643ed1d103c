//! The kernels: found by name, and launched with arguments that are held against what they take.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::result::{self as driver, DriverError};
use cudarc::driver::sys;

use super::device::Device;
use super::error::{CudaError, OrSay, Result};
use super::memory::{Buffer, Element, View, ViewMut};

/// The driver reads its headers in place.
#[repr(align(16))]
struct Aligned<T: ?Sized>(T);

/// All kernels, in one image that has machine code for each generation of GPUs; or an empty one: see `build.rs`.
static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin")));

/// A kernel that is there if any is.
const PROBE: &str = "fill_f32";

/// Shared memory that a block may have without asking, bytes.
const SHARED_UNASKED: u32 = 48 << 10;

pub(super) struct Kernels {
    module: sys::CUmodule,
    found: Mutex<HashMap<&'static str, Kernel>>,
}

#[derive(Clone)]
struct Kernel {
    function: sys::CUfunction,
    /// Bytes of each parameter.
    parameters: Vec<usize>,
    /// Dynamic shared memory that it may have, bytes.
    shared_bytes: u32,
}

// SAFETY: modules and functions belong to a context, not to a thread.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Loads them into the context that is bound.
    pub(super) fn load() -> Result<Self> {
        // SAFETY: the image is whole, or ends with a zero where it is text.
        let module = unsafe { driver::module::load_data(IMAGE.0.as_ptr().cast()) }.or_say("loading the kernels")?;
        let kernels = Self { module, found: Mutex::default() };
        match kernels.find(PROBE) {
            Err(CudaError::Driver { code: sys::CUresult::CUDA_ERROR_NOT_FOUND, .. }) => Err(CudaError::NoKernels),
            found => found.map(|_| kernels),
        }
    }

    fn find(&self, name: &'static str) -> Result<Kernel> {
        let c_name = CString::new(name).map_err(|_| missing())?;
        // SAFETY: the module is loaded.
        let function = unsafe { driver::module::get_function(self.module, c_name) }.or_say("looking for a kernel")?;
        let (mut parameters, mut offset, mut size) = (Vec::new(), 0, 0);
        // SAFETY: writes two numbers; past the last parameter it writes nothing and fails.
        while unsafe { sys::cuFuncGetParamInfo(function, parameters.len(), &mut offset, &mut size) }.result().is_ok() {
            parameters.push(size);
        }
        Ok(Kernel { function, parameters, shared_bytes: SHARED_UNASKED })
    }

    /// The kernel, which from now on may have so much shared memory.
    fn get(&self, name: &'static str, shared_bytes: u32) -> Result<Kernel> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if !found.contains_key(name) {
            found.insert(name, self.find(name)?);
        }
        let kernel = found.get_mut(name).ok_or_else(missing)?;
        if shared_bytes > kernel.shared_bytes {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            unsafe { driver::function::set_function_attribute(kernel.function, attribute, shared_bytes as i32) }
                .or_say("asking for shared memory")?;
            kernel.shared_bytes = shared_bytes;
        }
        Ok(kernel.clone())
    }
}

fn missing() -> CudaError {
    CudaError::Driver { tried: "looking for a kernel", code: sys::CUresult::CUDA_ERROR_NOT_FOUND }
}

/// How many threads run a kernel, and how they share memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks in x, y and z. Of no blocks, a launch does nothing.
    pub blocks: [u32; 3],
    /// Threads of a block in x, y and z.
    pub threads: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Shape {
    /// `blocks` blocks of `threads` threads.
    #[must_use]
    pub fn of(blocks: usize, threads: u32) -> Self {
        let blocks = u32::try_from(blocks).expect("fewer than 2^31 blocks");
        Self { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared_bytes: 0 }
    }

    /// For a kernel that strides over `count` values with all of its threads: enough blocks to fill a GPU, and no more.
    #[must_use]
    pub fn over(count: usize, threads: u32) -> Self {
        Self::of(count.div_ceil(threads as usize).min(4096), threads)
    }

    #[must_use]
    pub fn with_shared(self, shared_bytes: usize) -> Self {
        Self { shared_bytes: u32::try_from(shared_bytes).expect("less than 4 GiB of shared memory"), ..self }
    }
}

/// What a kernel is given: a number, or where values lie.
#[derive(Debug, Clone, Copy)]
pub struct Argument<'a> {
    bits: u64,
    bytes: usize,
    lent: PhantomData<&'a ()>,
}

impl Argument<'_> {
    /// Of an optional pointer, none.
    pub const NULL: Self = Self { bits: 0, bytes: 8, lent: PhantomData };

    fn new(bits: u64, bytes: usize) -> Self {
        Self { bits, bytes, lent: PhantomData }
    }
}

impl From<u32> for Argument<'_> {
    fn from(value: u32) -> Self {
        Self::new(value.into(), 4)
    }
}

impl From<i32> for Argument<'_> {
    fn from(value: i32) -> Self {
        Self::new((value as u32).into(), 4)
    }
}

impl From<f32> for Argument<'_> {
    fn from(value: f32) -> Self {
        Self::new(value.to_bits().into(), 4)
    }
}

impl From<u64> for Argument<'_> {
    fn from(value: u64) -> Self {
        Self::new(value, 8)
    }
}

impl<'a, T: Element> From<View<'a, T>> for Argument<'a> {
    fn from(view: View<'a, T>) -> Self {
        Self::new(view.pointer, 8)
    }
}

impl<'a, T: Element> From<ViewMut<'a, T>> for Argument<'a> {
    fn from(view: ViewMut<'a, T>) -> Self {
        Self::new(view.pointer, 8)
    }
}

impl<'a, T: Element> From<&'a Buffer<T>> for Argument<'a> {
    fn from(buffer: &'a Buffer<T>) -> Self {
        buffer.view().into()
    }
}

impl<'a, T: Element> From<&'a mut Buffer<T>> for Argument<'a> {
    fn from(buffer: &'a mut Buffer<T>) -> Self {
        buffer.view_mut().into()
    }
}

impl<'a, T: Element> From<Option<View<'a, T>>> for Argument<'a> {
    fn from(view: Option<View<'a, T>>) -> Self {
        view.map_or(Self::NULL, Self::from)
    }
}

/// The arguments of a launch, in the kernel's order: `arguments![&x, &mut y, rows as u32, 1e-5f32]`.
#[macro_export]
macro_rules! arguments {
    ($($value:expr),* $(,)?) => { &[$($crate::cuda::module::Argument::from($value)),*] };
}
pub use crate::arguments;

impl Device {
    /// Asks for a kernel to be run once everything before it is done.
    ///
    /// A kernel reaches no memory of the host's; what it does wrong on the GPU is told by a later call, at the latest by
    /// [`Device::wait`].
    ///
    /// # Panics
    /// If the arguments are not of the number and sizes that the kernel takes: that is a mistake of the caller.
    pub fn launch(&self, name: &'static str, shape: Shape, arguments: &[Argument<'_>]) -> Result<()> {
        if shape.blocks.contains(&0) {
            return Ok(());
        }
        self.bind()?;
        let kernel = self.0.kernels.get(name, shape.shared_bytes)?;
        let given: Vec<usize> = arguments.iter().map(|argument| argument.bytes).collect();
        assert_eq!(given, kernel.parameters, "bytes of the arguments given to `{name}`, and of those that it takes");
        let mut pointers: Vec<*mut c_void> =
            arguments.iter().map(|argument| (&raw const argument.bits).cast_mut().cast()).collect();
        let [x, y, z] = shape.blocks;
        let [a, b, c] = shape.threads;
        let (stream, shared) = (self.0.stream, shape.shared_bytes);
        // SAFETY: as many arguments as the kernel takes, each of its size, and all read before the call returns.
        unsafe { driver::launch_kernel(kernel.function, (x, y, z), (a, b, c), shared, stream, &mut pointers) }
            .map_err(|DriverError(code)| CudaError::Driver { tried: name, code })
    }
}
