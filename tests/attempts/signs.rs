//! What a worker that died without a word had printed says why, where nothing better does: recorded ends of programs.

use drydock::store::KeptFailure;
use drydock_spec::report::Report;
use drydock_spec::{Attempt, Failure, FailureKind, Stage};

use super::{Step, World, exit, limits, scripted, started};

/// Python 3.11 and PyTorch 2.x on one of several ranks; the numbers are slots.
fn torch_out_of_memory(step: u32, wanted: &str) -> String {
    format!(
        "{step:>4}%|##  | {step}/900 [00:12<01:40,  7.31it/s][rank0]: Traceback (most recent call last):\n\
         [rank0]:   File \"/app/train.py\", line {step}, in train\n\
         [rank0]:     loss = model(**batch).loss\n\
         [rank0]:   File \"/usr/lib/python3.11/site-packages/torch/nn/modules/module.py\", line 1751, in _call_impl\n\
         [rank0]:     return forward_call(*args, **kwargs)\n\
         [rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {wanted}. GPU 0 has a total capacity of \
         23.68 GiB of which 97.12 MiB is free.\n\
         E1120 16:20:01.{step:06} 140 torch/distributed/elastic/api.py:874] failed (exitcode: 1) local_rank: 0 (pid: {step})\n\
         torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n"
    )
}

fn panicked(error: &str) -> String {
    format!(
        "\nthread 'main' (7) panicked at src/device.rs:31:9:\ncalled `Result::unwrap()` on an `Err` value: {error}\n\
         note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n"
    )
}

/// How a worker ended that printed this and left.
async fn left_behind(printed: String, code: i64) -> KeptFailure {
    let world = World::with(scripted([vec![
        Step::Say(started()),
        Step::Say(Report::Stage { stage: Stage::Train }),
        Step::Print(printed),
        exit(code),
    ]]))
    .await;
    let id = world.submit(limits()).await;
    let job = world.until_done(id).await;
    assert_eq!(job.attempt, 1, "what was printed has nothing tried again");
    let kept = world.house.desk.store.failure_of(id, Attempt::FIRST).await.unwrap();
    kept.expect("a failure is kept")
}

#[tokio::test]
async fn failures_of_gpus_are_known_by_what_their_drivers_say() {
    use FailureKind::*;
    for (printed, again, expected, hint) in [
        (
            torch_out_of_memory(12, "144.00 MiB"),
            torch_out_of_memory(777, "2,25 GiB"),
            GpuOutOfMemory,
            "gradient_checkpointing",
        ),
        (
            "Error: backend op failed: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")\n".into(),
            "step 9\nError: backend op failed: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")\n".into(),
            GpuOutOfMemory,
            "per_device_train_batch_size",
        ),
        (
            panicked("DriverError(CUDA_ERROR_NO_DEVICE, \"no CUDA-capable device is detected\")"),
            panicked("DriverError(CUDA_ERROR_NO_DEVICE, \"no device\")"),
            GpuMissing,
            "nvidia-smi",
        ),
        (
            panicked("DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, \"a toolchain\") when loading cast_u32_f32"),
            panicked("DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, \"another\") when loading cast_u32_f32"),
            GpuDriver,
            "update the host's NVIDIA driver",
        ),
        (
            "[ 5512.100001] NVRM: Xid (PCI:0000:06:00): 31, pid=77, name=worker, Ch 00000008, MMU Fault\n".into(),
            "[ 9.5] NVRM: Xid (PCI:0000:2b:00): 31, pid=1896, name=worker, Ch 00000011, MMU Fault\n".into(),
            GpuFault,
            "the program is at fault",
        ),
        (
            "NVRM: Xid (PCI:0000:2b:00): 79, pid=1896, GPU has fallen off the bus.\n".into(),
            "NVRM: Xid (PCI:0000:06:00): 79, pid=7, GPU has fallen off the bus.\n".into(),
            GpuHardware,
            "take the GPU out of use",
        ),
        (
            panicked("DriverError(CUDA_ERROR_ECC_UNCORRECTABLE, \"uncorrectable ECC error encountered\")"),
            panicked("DriverError(CUDA_ERROR_ECC_UNCORRECTABLE, \"uncorrectable\")"),
            GpuHardware,
            "another GPU",
        ),
        (
            "Unable to determine the device handle for GPU0000:2B:00.0: GPU is lost.  Reboot the system\n".into(),
            "Unable to determine the device handle for GPU0000:81:00.0: GPU is lost.  Reboot the system\n".into(),
            GpuHardware,
            "take the GPU out of use",
        ),
    ] {
        let one = left_behind(printed.clone(), 1).await;
        assert_eq!(
            (one.failure.kind, one.failure.stage),
            (expected, Some(Stage::Train)),
            "{printed}: {:?}",
            one.failure
        );
        assert!(one.failure.hint.contains(hint), "{}", one.failure.hint);
        assert!(one.failure.message.contains("; it had printed: "), "{}", one.failure.message);
        let other = left_behind(again, 1).await;
        assert_eq!(one.fingerprint, other.fingerprint, "{:?} {:?}", one.record.signature, other.record.signature);
    }
}

#[tokio::test]
async fn what_the_facts_say_is_not_talked_away() {
    let words = || torch_out_of_memory(1, "1 GiB");
    for (code, expected) in [(1, FailureKind::GpuOutOfMemory), (134, FailureKind::GpuOutOfMemory)] {
        assert_eq!(left_behind(words(), code).await.failure.kind, expected, "{code}");
    }
    for (code, expected) in
        [(139, FailureKind::Crashed), (159, FailureKind::NotPermitted), (153, FailureKind::DiskFull)]
    {
        assert_eq!(left_behind(words(), code).await.failure.kind, expected, "{code}");
    }
    let said = Failure::new(FailureKind::Diverged, "loss is NaN").at(Stage::Train);
    let steps = vec![Step::Say(started()), Step::Print(words()), Step::Say(Report::Failed(said.clone())), exit(1)];
    let world = World::with(scripted([steps])).await;
    let id = world.submit(limits()).await;
    assert_eq!(world.until_done(id).await.failure, Some(said), "the worker knows best");
}

#[tokio::test]
async fn what_no_rule_knows_stays_unexplained_and_is_quoted() {
    let printed =
        "Traceback (most recent call last):\n  File \"/app/t.py\", line 3, in f\nKeyError: 'CUDA out of memory'\n";
    let kept = left_behind(printed.into(), 1).await;
    assert_eq!(kept.failure.kind, FailureKind::Unexplained);
    let message = "the worker ended with exit code 1 and without a final report; it had printed: KeyError: 'CUDA out of \
                   memory' (what that comes from is not known)";
    assert_eq!(kept.failure.message, message);
    assert_eq!(kept.record.signature.frame.as_deref(), Some("t.py:f"));
}

#[tokio::test]
async fn a_reason_that_was_printed_long_before_the_end_is_found_and_kept() {
    let noise = "step 12, loss 0.5, nothing new\n".repeat(9000);
    let printed = format!("{noise}{}{noise}", torch_out_of_memory(5, "1 GiB"));
    let world = World::with(scripted([vec![Step::Say(started()), Step::Print(printed), exit(1)]])).await;
    let id = world.submit(limits()).await;
    let job = world.until_done(id).await;
    assert_eq!(job.failure.unwrap().kind, FailureKind::GpuOutOfMemory);
    world.until_tidy().await;
    let words = world.house.desk.logs(id, None, 10).await.unwrap().last_words.unwrap();
    assert!(words.contains("CUDA out of memory") && words.contains("bytes left out]"), "{words}");
    assert!(words.len() < 4300, "{}", words.len());
}
