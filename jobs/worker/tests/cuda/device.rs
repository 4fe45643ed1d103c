//! What is beneath the training engine: memory, launches, products, and what a GPU says when they fail.

use std::process::Command;

use drydock_spec::{Failure, FailureKind};
use drydock_worker::cuda::device::{Device, WORKSPACE, devices};
use drydock_worker::cuda::error::CudaError;
use drydock_worker::cuda::memory::Buffer;
use drydock_worker::cuda::module::{Shape, arguments};
use drydock_worker::cuda::product::{Matrix, MatrixMut, Mix};
use half::bf16;

use crate::emulated_gpu;

fn open() -> Device {
    emulated_gpu::plug_in();
    Device::open(0).unwrap()
}

/// Numbers that look like none in particular.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + 13) % 1009) as f32 / 504.0 - 1.0).collect()
}

fn times(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
    let at = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
    (0..m * n).map(|i| at(i / n, i % n)).collect()
}

fn assert_close(ours: &[f32], theirs: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), theirs.len());
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "value {i}: {a}, not {b}");
    }
}

#[test]
fn an_emulated_gpu_says_that_it_is_none() {
    let device = open();
    assert_eq!(device.facts().name, "emulated GPU (CPU)");
    assert_eq!(devices().unwrap(), [device.facts().clone()]);
    assert!(matches!(Device::open(1), Err(CudaError::NoDevice { ordinal: 1, devices: 1 })));
}

#[test]
fn values_come_back_as_they_went() {
    let device = open();
    let values = numbers(1001);
    let mut buffer = device.upload(&values).unwrap();
    assert_eq!(buffer.download().unwrap(), values);
    buffer.part_mut(3..5).write(&[8.0, 9.0]).unwrap();
    buffer.part_mut(1000..).clear().unwrap();
    let mut copy: Buffer<f32> = device.buffer(3).unwrap();
    copy.copy_from(buffer.part(2..5)).unwrap();
    assert_eq!(copy.download().unwrap(), [values[2], 8.0, 9.0]);
    assert_eq!(buffer.download().unwrap()[999..], [values[999], 0.0]);
    assert!(device.upload::<f32>(&[]).unwrap().download().unwrap().is_empty());
}

#[test]
fn what_is_held_is_counted() {
    let device = open();
    let first = device.memory().held;
    assert_eq!(first, WORKSPACE as u64);
    let a: Buffer<f32> = device.buffer(1000).unwrap();
    let b: Buffer<bf16> = device.buffer(1000).unwrap();
    assert_eq!(device.memory().held - first, 6000);
    drop(a);
    assert_eq!(device.memory().held - first, 2000);
    assert_eq!(device.memory().peak - first, 6000);
    device.forget_peak();
    assert_eq!(device.memory().peak - first, 2000);
    drop(b);
}

#[test]
fn a_kernel_runs_over_all_values() {
    let device = open();
    let values = numbers(70_001);
    let from = device.upload(&values).unwrap();
    let mut narrowed: Buffer<bf16> = device.buffer(values.len()).unwrap();
    let count = values.len() as u64;
    let shape = Shape::over(values.len(), 256);
    device.launch("narrow_f32", shape, arguments![&from, &mut narrowed, count]).unwrap();
    let rounded: Vec<_> = values.iter().map(|&value| bf16::from_f32(value)).collect();
    assert_eq!(narrowed.download().unwrap(), rounded);
    let mut widened: Buffer<f32> = device.buffer(values.len()).unwrap();
    device.launch("widen_bf16", shape, arguments![&narrowed, &mut widened, count]).unwrap();
    assert_eq!(widened.download().unwrap(), rounded.iter().map(|value| value.to_f32()).collect::<Vec<_>>());
    device.launch("fill_f32", Shape::of(0, 256), arguments![&mut widened, 1.0f32, 0u64]).unwrap();
}

#[test]
fn products_are_those_of_row_major_matrices() {
    let device = open();
    let (m, k, n) = (5, 7, 3);
    let (a, b) = (numbers(m * k), numbers(k * n + 100).split_off(100));
    let expected = times(&a, &b, m, k, n);
    let turn = |values: &[f32], cols: usize| -> Vec<f32> {
        let rows = values.len() / cols;
        (0..values.len()).map(|i| values[i % rows * cols + i / rows]).collect()
    };
    let plain = (device.upload(&a).unwrap(), device.upload(&b).unwrap());
    let turned = (device.upload(&turn(&a, k)).unwrap(), device.upload(&turn(&b, n)).unwrap());
    let (a0, b0) = (Matrix::new(plain.0.view(), k), Matrix::new(plain.1.view(), n));
    let (a1, b1) = (Matrix::new(turned.0.view(), m).t(), Matrix::new(turned.1.view(), k).t());
    for (a, b) in [(a0, b0), (a1, b0), (a0, b1), (a1, b1)] {
        let mut c: Buffer<f32> = device.buffer(m * n).unwrap();
        device.multiply(a, b, Mix::SET, MatrixMut::new(c.view_mut(), n)).unwrap();
        assert_close(&c.download().unwrap(), &expected, 1e-6);
        device.multiply(a, b, Mix::ADD, MatrixMut::new(c.view_mut(), n)).unwrap();
        device.multiply(a, b, Mix { scale: 2.0, keep: 0.5 }, MatrixMut::new(c.view_mut(), n)).unwrap();
        assert_close(&c.download().unwrap(), &expected.iter().map(|c| 3.0 * c).collect::<Vec<_>>(), 1e-6);
    }
}

#[test]
fn products_of_bf16_are_summed_in_f32() {
    let device = open();
    let (m, k, n) = (4, 300, 6);
    let round = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let widen = |values: &[bf16]| values.iter().map(|value| value.to_f32()).collect::<Vec<_>>();
    let (a, b) = (round(numbers(m * k)), round(numbers(k * n)));
    let expected = times(&widen(&a), &widen(&b), m, k, n);
    let (a, b) = (device.upload(&a).unwrap(), device.upload(&b).unwrap());
    let (a, b) = (Matrix::new(a.view(), k), Matrix::new(b.view(), n));
    let mut wide: Buffer<f32> = device.buffer(m * n).unwrap();
    device.multiply(a, b, Mix::SET, MatrixMut::new(wide.view_mut(), n)).unwrap();
    assert_close(&wide.download().unwrap(), &expected, 1e-4);
    let mut short: Buffer<bf16> = device.buffer(m * n).unwrap();
    device.multiply(a, b, Mix::SET, MatrixMut::new(short.view_mut(), n)).unwrap();
    assert_close(&widen(&short.download().unwrap()), &expected, 1e-2);
}

#[test]
fn a_batch_is_of_strided_matrices() {
    // Three heads of four values side by side in each of five rows: their products with themselves.
    let (rows, heads, width) = (5, 3, 4);
    let device = open();
    let values = numbers(rows * heads * width);
    let x = device.upload(&values).unwrap();
    let head = Matrix::strided(x.view(), rows, width, heads * width).every(width);
    let mut scores: Buffer<f32> = device.buffer(heads * rows * rows).unwrap();
    let target = MatrixMut::new(scores.view_mut().into_part(..rows * rows), rows);
    device.multiply(head, head.t(), Mix::SET, target).unwrap();
    let target = MatrixMut::strided(scores.view_mut(), rows, rows, rows).every(rows * rows);
    device.multiply_batch(heads, head, head.t(), Mix::scaled(0.5), target).unwrap();
    let at = |row: usize, head: usize, i: usize| values[(row * heads + head) * width + i];
    let expected: Vec<f32> = (0..heads * rows * rows)
        .map(|i| (i / (rows * rows), i / rows % rows, i % rows))
        .map(|(h, a, b)| 0.5 * (0..width).map(|i| at(a, h, i) * at(b, h, i)).sum::<f32>())
        .collect();
    assert_close(&scores.download().unwrap(), &expected, 1e-6);
}

#[test]
fn threads_of_a_block_meet_and_share() {
    let device = open();
    let values = numbers(2 * 96);
    let from = device.upload(&values).unwrap();
    let [mut blocks, mut warps] = [(), ()].map(|()| device.buffer::<f32>(values.len()).unwrap());
    device.launch("check_sums", Shape::of(2, 96), arguments![&from, &mut blocks, &mut warps]).unwrap();
    let sums = |size: usize| -> Vec<f32> {
        values.chunks(size).flat_map(|part| std::iter::repeat_n(part.iter().sum(), size)).collect()
    };
    assert_close(&blocks.download().unwrap(), &sums(96), 1e-5);
    assert_close(&warps.download().unwrap(), &sums(32), 1e-5);
    let mut turned = device.upload(&values[..128]).unwrap();
    let shape = Shape::of(2, 64).with_shared(64 * size_of::<f32>());
    device.launch("check_shared", shape, arguments![&mut turned, 5u32]).unwrap();
    let expected: Vec<f32> = (0..128).map(|i| values[i / 64 * 64 + (i % 64 + 5) % 64]).collect();
    assert_eq!(turned.download().unwrap(), expected);
}

#[test]
#[should_panic(expected = "bytes of the arguments")]
fn arguments_of_the_wrong_size_are_told_before_anything_runs() {
    let device = open();
    let mut x: Buffer<f32> = device.buffer(8).unwrap();
    let _ = device.launch("fill_f32", Shape::over(8, 256), arguments![&mut x, 1.0f32, 8u32]);
}

#[test]
#[should_panic(expected = "matrices laid as")]
fn a_product_that_reaches_beyond_its_buffer_is_told_before_anything_runs() {
    let device = open();
    let x: Buffer<f32> = device.zeros(15).unwrap();
    let mut y: Buffer<f32> = device.zeros(16).unwrap();
    let a = Matrix::strided(x.view(), 4, 4, 4);
    let _ = device.multiply(a, a.t(), Mix::SET, MatrixMut::new(y.view_mut(), 4));
}

/// A GPU that has failed stays so: these have a process of their own, in which the test of the given name does the work.
pub(crate) fn in_a_process_of_its_own(name: &str, settings: &[(&str, &str)]) -> Option<String> {
    if std::env::var_os("DRYDOCK_TEST_INSIDE").is_some() {
        return None;
    }
    let mut inside = Command::new(std::env::current_exe().unwrap());
    inside.args(["--exact", name, "--nocapture"]).env("DRYDOCK_TEST_INSIDE", "1").envs(settings.iter().copied());
    let output = inside.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
    Some(said)
}

#[test]
fn memory_that_is_not_there_is_told_with_the_numbers() {
    let name = "device::memory_that_is_not_there_is_told_with_the_numbers";
    if in_a_process_of_its_own(name, &[("EMULATED_GPU_MEMORY_MIB", "64")]).is_some() {
        return;
    }
    let device = open();
    let held: Buffer<u8> = device.buffer(16 << 20).unwrap();
    let error = device.buffer::<u8>(17 << 20).err().unwrap();
    let failure = Failure::from(error);
    assert_eq!(failure.kind, FailureKind::GpuOutOfMemory);
    assert_eq!(failure.message, "17 MiB of GPU memory were asked for in addition to 48 MiB, and the GPU has 64 MiB");
    // Nothing is broken: what fits is still given.
    drop(held);
    device.buffer::<u8>(17 << 20).unwrap();
}

#[test]
fn a_kernel_that_leaves_its_memory_is_a_fault_of_the_gpu() {
    let name = "device::a_kernel_that_leaves_its_memory_is_a_fault_of_the_gpu";
    if let Some(said) = in_a_process_of_its_own(name, &[]) {
        assert!(said.contains("kernel `fill_f32`, block (3, 0, 0), thread (232, 0, 0)"), "{said}");
        return;
    }
    let device = open();
    let mut x: Buffer<f32> = device.buffer(1000).unwrap();
    device.launch("fill_f32", Shape::over(1024, 256), arguments![&mut x, 1.0f32, 1024u64]).unwrap();
    let failure = Failure::from(device.wait().unwrap_err());
    assert_eq!(failure.kind, FailureKind::GpuFault);
    assert_eq!(failure.message, "waiting for the GPU: CUDA_ERROR_ILLEGAL_ADDRESS");
    assert!(x.download().is_err());
}

#[test]
fn threads_that_never_meet_are_a_fault_of_the_gpu() {
    let name = "device::threads_that_never_meet_are_a_fault_of_the_gpu";
    if let Some(said) = in_a_process_of_its_own(name, &[]) {
        assert!(said.contains("kernel `check_deadlock`"), "{said}");
        return;
    }
    let device = open();
    let mut x: Buffer<f32> = device.zeros(64).unwrap();
    device.launch("check_deadlock", Shape::of(1, 64), arguments![&mut x]).unwrap();
    assert_eq!(Failure::from(device.wait().unwrap_err()).message, "waiting for the GPU: CUDA_ERROR_LAUNCH_FAILED");
}

#[test]
fn a_misaligned_address_is_a_fault_of_the_gpu() {
    let name = "device::a_misaligned_address_is_a_fault_of_the_gpu";
    if let Some(said) = in_a_process_of_its_own(name, &[]) {
        assert!(said.contains("kernel `check_misaligned`, block (0, 0, 0), thread (0, 0, 0): a misaligned"), "{said}");
        return;
    }
    let device = open();
    let mut x: Buffer<f32> = device.zeros(64).unwrap();
    device.launch("check_misaligned", Shape::of(1, 32), arguments![&mut x]).unwrap();
    assert_eq!(Failure::from(device.wait().unwrap_err()).kind, FailureKind::GpuFault);
}

#[test]
fn a_driver_that_is_too_old_is_told() {
    let name = "device::a_driver_that_is_too_old_is_told";
    if in_a_process_of_its_own(name, &[("EMULATED_GPU_DRIVER", "12040")]).is_some() {
        return;
    }
    emulated_gpu::plug_in();
    assert_eq!(devices(), Err(CudaError::OldDriver { speaks: 12_040, needed: 13_000 }));
}

#[test]
fn a_driver_without_gpus_is_no_gpu() {
    let name = "device::a_driver_without_gpus_is_no_gpu";
    if in_a_process_of_its_own(name, &[("EMULATED_GPU_COUNT", "0")]).is_some() {
        return;
    }
    emulated_gpu::plug_in();
    assert_eq!(devices(), Ok(Vec::new()));
    let failure = Failure::from(Device::open(0).err().unwrap());
    assert_eq!((failure.kind, &*failure.message), (FailureKind::GpuMissing, "the driver sees no GPU"));
}
