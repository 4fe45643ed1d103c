//! What a GPU can answer instead of doing its work.

use cudarc::cublas::result::CublasError;
use cudarc::driver::result::DriverError;
use cudarc::driver::sys::CUresult;
use drydock_spec::{Failure, FailureKind};

use crate::ending::Ending;

/// Why something did not work on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaError {
    /// The driver's library is not there, which is how it is on a host without a GPU.
    NoDriver,
    /// The library of the products is not there: the worker does not run in the image that was made for it.
    NoCublas,
    /// The library of sums among GPUs is not there, or lacks a call.
    NoNccl,
    /// It is too old; versions as 10,000 * major + 100 * minor + patch.
    OldNccl { version: u32, needed: u32 },
    /// The driver knows of no such GPU.
    NoDevice { ordinal: u32, devices: u32 },
    /// The program was built without kernels.
    NoKernels,
    /// The driver is older than the kernels; versions as 1000 * major + 10 * minor.
    OldDriver { speaks: u32, needed: u32 },
    /// The GPU is of a generation that the kernels were not built for.
    OldDevice { name: String, capability: (u32, u32) },
    /// Bytes that were asked for, that the worker held already, and that the GPU has.
    OutOfMemory { wanted: u64, held: u64, total: u64 },
    /// Any other answer of the driver to what was tried.
    Driver { tried: &'static str, code: CUresult },
    /// An answer of cuBLAS to what was tried.
    Product { tried: &'static str, status: cudarc::cublas::sys::cublasStatus_t },
    /// The GPUs of a training could not do something together; in NCCL's words.
    Exchange { tried: &'static str, said: String },
    /// They were not done after so long.
    ExchangeStuck { tried: &'static str, seconds: u64 },
}

/// What operations on a GPU return.
pub type Result<T, E = CudaError> = std::result::Result<T, E>;

/// Says what was tried when a call fails.
pub(super) trait OrSay<T> {
    fn or_say(self, tried: &'static str) -> Result<T>;
}

impl<T> OrSay<T> for std::result::Result<T, DriverError> {
    fn or_say(self, tried: &'static str) -> Result<T> {
        self.map_err(|DriverError(code)| CudaError::Driver { tried, code })
    }
}

impl<T> OrSay<T> for std::result::Result<T, CublasError> {
    fn or_say(self, tried: &'static str) -> Result<T> {
        self.map_err(|CublasError(status)| CudaError::Product { tried, status })
    }
}

impl CudaError {
    /// What kind of failure it is for the attempt.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::NoDriver | Self::NoDevice { .. } | Self::NoKernels => FailureKind::GpuMissing,
            Self::NoCublas | Self::NoNccl | Self::OldNccl { .. } => FailureKind::GpuMissing,
            Self::OldDriver { .. } | Self::OldDevice { .. } => FailureKind::GpuDriver,
            Self::OutOfMemory { .. } => FailureKind::GpuOutOfMemory,
            Self::Exchange { .. } | Self::ExchangeStuck { .. } => FailureKind::GpuFault,
            Self::Driver { code, .. } => kind_of(*code),
            Self::Product { status, .. } => match status {
                cudarc::cublas::sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => FailureKind::GpuOutOfMemory,
                cudarc::cublas::sys::cublasStatus_t::CUBLAS_STATUS_ARCH_MISMATCH => FailureKind::GpuDriver,
                _ => FailureKind::GpuFault,
            },
        }
    }
}

/// As `runner/diagnose/signs.rs` reads the same words in a log.
fn kind_of(code: CUresult) -> FailureKind {
    use CUresult::*;
    match code {
        CUDA_ERROR_OUT_OF_MEMORY => FailureKind::GpuOutOfMemory,
        CUDA_ERROR_NO_DEVICE | CUDA_ERROR_INVALID_DEVICE | CUDA_ERROR_SYSTEM_NOT_READY => FailureKind::GpuMissing,
        CUDA_ERROR_STUB_LIBRARY
        | CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        | CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
        | CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUDA_ERROR_INVALID_PTX
        | CUDA_ERROR_UNSUPPORTED_PTX_VERSION => FailureKind::GpuDriver,
        CUDA_ERROR_ECC_UNCORRECTABLE | CUDA_ERROR_NVLINK_UNCORRECTABLE | CUDA_ERROR_DEVICE_UNAVAILABLE => {
            FailureKind::GpuHardware
        }
        _ => FailureKind::GpuFault,
    }
}

impl std::fmt::Display for CudaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoDriver => f.write_str("NVIDIA's driver (libcuda.so.1) is not here"),
            Self::NoCublas => f.write_str("cuBLAS (libcublas.so.13) is not on the library path"),
            Self::NoNccl => {
                f.write_str("NCCL (libnccl.so.2), by which GPUs compute together, is not on the library path")
            }
            Self::OldNccl { version, needed } => {
                let numbers = |version: &u32| format!("{}.{}", version / 10_000, version % 10_000 / 100);
                write!(f, "NCCL (libnccl.so.2) is of version {}; {} is needed", numbers(version), numbers(needed))
            }
            Self::NoDevice { ordinal: 0, devices: 0 } => f.write_str("the driver sees no GPU"),
            Self::NoDevice { ordinal, devices } => {
                write!(f, "of GPU {ordinal} the driver sees nothing; it has {devices}, from 0 on")
            }
            Self::NoKernels => f.write_str("this worker was built without GPU kernels"),
            Self::OldDriver { speaks, needed } => write!(
                f,
                "the GPU's driver speaks CUDA {}.{}, and the worker needs {}.{}",
                speaks / 1000,
                speaks % 1000 / 10,
                needed / 1000,
                needed % 1000 / 10
            ),
            Self::OldDevice { name, capability: (major, minor) } => {
                write!(f, "the GPU {name} has compute capability {major}.{minor}, and the worker needs 8.0")
            }
            Self::OutOfMemory { wanted, held, total } => write!(
                f,
                "{} MiB of GPU memory were asked for in addition to {} MiB, and the GPU has {} MiB",
                wanted.div_ceil(1 << 20),
                held.div_ceil(1 << 20),
                total >> 20
            ),
            Self::Driver { tried, code } => write!(f, "{tried}: {code:?}"),
            Self::Product { tried, status } => write!(f, "{tried}: {status:?}"),
            Self::Exchange { tried, said } => write!(f, "{tried}: {said}"),
            Self::ExchangeStuck { tried, seconds } => write!(f, "{tried}: the GPUs were not done after {seconds} s"),
        }
    }
}

impl std::error::Error for CudaError {}

impl From<CudaError> for Failure {
    fn from(error: CudaError) -> Self {
        let failure = Self::new(error.kind(), error.to_string());
        match error {
            CudaError::NoKernels => failure.with_hint("build the worker with `make worker-cuda`"),
            CudaError::NoCublas => failure.with_hint(
                "use an image made by `make image-cuda`, or put the folder of libcublas.so.13 on LD_LIBRARY_PATH",
            ),
            CudaError::NoNccl | CudaError::OldNccl { .. } => failure.with_hint(
                "set limits.gpus to 1, use an image made by `make image-cuda`, or put the folder of libnccl.so.2 on \
                 LD_LIBRARY_PATH",
            ),
            CudaError::Exchange { .. } | CudaError::ExchangeStuck { .. } => failure.with_hint(
                "set limits.gpus to 1, or run `drydock-worker selfcheck --device cuda` on the host with NCCL_DEBUG=INFO",
            ),
            CudaError::OldDriver { .. } => {
                failure.with_hint("update the host's NVIDIA driver to 580 or newer and reboot the host")
            }
            _ => failure,
        }
    }
}

impl From<CudaError> for Ending {
    fn from(error: CudaError) -> Self {
        Failure::from(error).into()
    }
}
