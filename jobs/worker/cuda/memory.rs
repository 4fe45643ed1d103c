//! Memory of a GPU, and who holds how much of it.

use std::marker::PhantomData;
use std::ops::{Bound, Range, RangeBounds};

use cudarc::driver::result as driver;
use cudarc::driver::sys::{CUdeviceptr, CUresult};
use half::bf16;

use super::device::Device;
use super::error::{CudaError, OrSay, Result};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
    impl Sealed for u8 {}
}

/// Numbers that kernels know. All bit patterns are values, and all bits zero is zero.
pub trait Element: sealed::Sealed + Copy + Default + Send + Sync + 'static {}
impl Element for f32 {}
impl Element for bf16 {}
impl Element for u32 {}
impl Element for u64 {}
impl Element for u8 {}

/// Bytes that a worker holds on a GPU: now, and at most so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    pub held: u64,
    pub peak: u64,
}

/// Counts what is allocated: as buffers are asked for, before anybody rounds.
#[derive(Debug, Default)]
pub(super) struct Account(Memory);

impl Account {
    pub(super) fn memory(&self) -> Memory {
        self.0
    }

    pub(super) fn forget_peak(&mut self) {
        self.0.peak = self.0.held;
    }

    fn take(&mut self, bytes: u64) {
        self.0.held += bytes;
        self.0.peak = self.0.peak.max(self.0.held);
    }

    fn give_back(&mut self, bytes: u64) {
        self.0.held -= bytes;
    }
}

/// Values on a GPU. Freed in the stream's order: what was asked for before it is dropped still sees it.
pub struct Buffer<T: Element> {
    device: Device,
    pointer: CUdeviceptr,
    len: usize,
    values: PhantomData<T>,
}

/// Some of a buffer's values, to be read.
#[derive(Clone, Copy)]
pub struct View<'a, T: Element> {
    pub(super) pointer: CUdeviceptr,
    len: usize,
    lent: PhantomData<&'a T>,
}

/// Some of a buffer's values, to be written.
pub struct ViewMut<'a, T: Element> {
    pub(super) device: &'a Device,
    pub(super) pointer: CUdeviceptr,
    len: usize,
    lent: PhantomData<&'a mut T>,
}

impl Device {
    /// A buffer of `len` values that are yet to be written. Of no values, it takes no memory.
    pub fn buffer<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        self.bind()?;
        let bytes = len * size_of::<T>();
        let pointer = if bytes == 0 { 0 } else { self.allocate(bytes)? };
        Ok(Buffer { device: self.clone(), pointer, len, values: PhantomData })
    }

    /// A buffer of zeros.
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        let mut buffer = self.buffer(len)?;
        buffer.clear()?;
        Ok(buffer)
    }

    /// A buffer of the host's values.
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.buffer(values.len())?;
        buffer.write(values)?;
        Ok(buffer)
    }

    fn allocate(&self, bytes: usize) -> Result<CUdeviceptr> {
        // SAFETY: the stream is open; nobody reads the memory before it is written.
        let pointer = unsafe { driver::malloc_async(self.0.stream, bytes) }.map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                CudaError::OutOfMemory { wanted: bytes as u64, held: self.memory().held, total: self.facts().memory }
            }
            code => CudaError::Driver { tried: "asking for memory", code },
        })?;
        self.0.account().take(bytes as u64);
        Ok(pointer)
    }
}

/// How many values somebody holds or lends.
macro_rules! counted {
    ($($values:ty),*) => {
        $(impl<T: Element> $values {
            #[must_use]
            pub fn len(&self) -> usize {
                self.len
            }

            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }
        })*
    };
}
counted!(Buffer<T>, View<'_, T>, ViewMut<'_, T>);

impl<T: Element> Buffer<T> {
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All values, to be read.
    #[must_use]
    pub fn view(&self) -> View<'_, T> {
        View { pointer: self.pointer, len: self.len, lent: PhantomData }
    }

    /// All values, to be written.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut { device: &self.device, pointer: self.pointer, len: self.len, lent: PhantomData }
    }

    /// Some of the values, to be read.
    #[must_use]
    pub fn part(&self, range: impl RangeBounds<usize>) -> View<'_, T> {
        self.view().part(range)
    }

    /// Some of the values, to be written.
    pub fn part_mut(&mut self, range: impl RangeBounds<usize>) -> ViewMut<'_, T> {
        self.view_mut().into_part(range)
    }

    /// Sets all bits to zero.
    pub fn clear(&mut self) -> Result<()> {
        self.view_mut().clear()
    }

    /// Copies as many values from the host as there are.
    pub fn write(&mut self, values: &[T]) -> Result<()> {
        self.view_mut().write(values)
    }

    /// Copies as many values from the same GPU as there are.
    pub fn copy_from(&mut self, values: View<'_, T>) -> Result<()> {
        self.view_mut().copy_from(values)
    }

    /// Copies all values to the host, and waits for them.
    pub fn download(&self) -> Result<Vec<T>> {
        let mut values = vec![T::default(); self.len];
        self.read(&mut values)?;
        Ok(values)
    }

    /// Copies all values to the host, and waits for them.
    pub fn read(&self, values: &mut [T]) -> Result<()> {
        self.device.read(self.view(), values)
    }

    /// Where the values lie, for kernels that look it up in a table; as long as the buffer lives.
    pub(super) fn address(&self) -> u64 {
        self.pointer
    }

    /// Lets go of the memory without freeing it.
    pub(super) fn into_pointer(self) -> CUdeviceptr {
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped, so the device is held once as before.
        drop(unsafe { std::ptr::read(&this.device) });
        this.pointer
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.pointer == 0 {
            return;
        }
        self.device.0.account().give_back((self.len * size_of::<T>()) as u64);
        // A GPU that fails to free fails at everything that is asked for next, and tells it then.
        let _ = self.device.bind();
        // SAFETY: allocated from this stream, freed once.
        let _ = unsafe { driver::free_async(self.pointer, self.device.0.stream) };
    }
}

impl Device {
    /// Copies values to the host, and waits for them.
    pub fn read<T: Element>(&self, from: View<'_, T>, to: &mut [T]) -> Result<()> {
        assert_eq!(from.len, to.len(), "values to be copied, and room for them");
        if to.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `from` lies in a living buffer of as many values; `to` is not looked at before the stream is done.
        unsafe { driver::memcpy_dtoh_async(to, from.pointer, self.0.stream) }.or_say("copying from the GPU")?;
        self.wait()
    }
}

impl<'a, T: Element> View<'a, T> {
    #[must_use]
    pub fn part(self, range: impl RangeBounds<usize>) -> View<'a, T> {
        let (pointer, len) = stretch::<T>(self.pointer, range, self.len);
        View { pointer, len, ..self }
    }
}

impl<'a, T: Element> ViewMut<'a, T> {
    /// The same values, to be read.
    #[must_use]
    pub fn view(&self) -> View<'_, T> {
        View { pointer: self.pointer, len: self.len, lent: PhantomData }
    }

    /// The same values, lent on.
    pub fn again(&mut self) -> ViewMut<'_, T> {
        ViewMut { lent: PhantomData, ..*self }
    }

    /// Some of the values, lent on.
    pub fn part(&mut self, range: impl RangeBounds<usize>) -> ViewMut<'_, T> {
        self.again().into_part(range)
    }

    /// Some of the values.
    #[must_use]
    pub fn into_part(self, range: impl RangeBounds<usize>) -> ViewMut<'a, T> {
        let (pointer, len) = stretch::<T>(self.pointer, range, self.len);
        ViewMut { pointer, len, ..self }
    }

    /// The values before `at`, and those from there on.
    #[must_use]
    pub fn split(self, at: usize) -> (ViewMut<'a, T>, ViewMut<'a, T>) {
        let (device, pointer, len) = (self.device, self.pointer, self.len);
        let rest = ViewMut { device, pointer, len, lent: PhantomData }.into_part(at..);
        (self.into_part(..at), rest)
    }

    /// Sets all bits to zero.
    pub fn clear(&mut self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: the view lies in a living buffer.
        unsafe { driver::memset_d8_async(self.pointer, 0, self.len * size_of::<T>(), self.device.0.stream) }
            .or_say("clearing memory")
    }

    /// Copies as many values from the host as there are.
    pub fn write(&mut self, values: &[T]) -> Result<()> {
        assert_eq!(values.len(), self.len, "values to be copied, and room for them");
        if values.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: the view lies in a living buffer of as many values. From memory that is not pinned, of which the host's
        // is, the driver copies before it returns.
        unsafe { driver::memcpy_htod_async(self.pointer, values, self.device.0.stream) }.or_say("copying to the GPU")
    }

    /// Copies as many values from the same GPU as there are.
    pub fn copy_from(&mut self, values: View<'_, T>) -> Result<()> {
        assert_eq!(values.len, self.len, "values to be copied, and room for them");
        if values.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        let bytes = self.len * size_of::<T>();
        // SAFETY: both lie in living buffers, and not in the same place, as one of them is to be written.
        unsafe { driver::memcpy_dtod_async(self.pointer, values.pointer, bytes, self.device.0.stream) }
            .or_say("copying on the GPU")
    }
}

/// Where some of `of` values begin, and how many they are.
fn stretch<T>(pointer: CUdeviceptr, range: impl RangeBounds<usize>, of: usize) -> (CUdeviceptr, usize) {
    let range = within(range, of);
    (pointer + (range.start * size_of::<T>()) as u64, range.len())
}

fn within(range: impl RangeBounds<usize>, len: usize) -> Range<usize> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last + 1,
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    assert!(start <= end && end <= len, "part {start}..{end} of {len} values");
    start..end
}
