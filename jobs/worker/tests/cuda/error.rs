//! What a GPU's answers mean for an attempt.

use cudarc::driver::sys::CUresult;
use drydock_spec::{Failure, FailureKind};
use drydock_worker::cuda::error::CudaError;

#[test]
fn what_the_driver_says_becomes_a_failure_of_its_kind() {
    let driver = |code| CudaError::Driver { tried: "a launch", code }.kind();
    assert_eq!(driver(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS), FailureKind::GpuFault);
    assert_eq!(driver(CUresult::CUDA_ERROR_ECC_UNCORRECTABLE), FailureKind::GpuHardware);
    assert_eq!(driver(CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH), FailureKind::GpuDriver);
    assert_eq!(driver(CUresult::CUDA_ERROR_NO_DEVICE), FailureKind::GpuMissing);
}

#[test]
fn messages_say_fact_and_value() {
    let failure = Failure::from(CudaError::OutOfMemory { wanted: 3 << 30, held: 1 << 30, total: 2 << 30 });
    assert_eq!(
        failure.message,
        "3072 MiB of GPU memory were asked for in addition to 1024 MiB, and the GPU has 2048 MiB"
    );
    let failure = Failure::from(CudaError::OldDriver { speaks: 12040, needed: 13000 });
    assert_eq!(failure.message, "the GPU's driver speaks CUDA 12.4, and the worker needs 13.0");
    assert!(failure.hint.contains("580"));
}
