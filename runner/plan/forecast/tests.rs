use drydock_spec::Failure;
use drydock_spec::report::{Checkpoint, Finished, GpuReading};
use proptest::prelude::*;

use super::*;

fn forecast(predicted: u64, measured: Measured) -> Forecast {
    let (kind, method) = ("finetune".to_owned(), Some("lora".to_owned()));
    Forecast { kind, method, quantity: Quantity::Memory, predicted, measured }
}

fn exactly(predicted: u64, measured: u64) -> Forecast {
    forecast(predicted, Measured::Exactly(measured))
}

fn limits() -> Limits {
    Limits {
        memory_bytes: 1000,
        cpu_millis: 1000,
        pids: 64,
        disk_bytes: 500,
        time_ms: 1,
        silence_ms: 1,
        grace_ms: 1,
        max_attempts: 1,
        gpus: 0,
        gpu_memory_bytes: None,
    }
}

fn finished(peak_rss_bytes: u64) -> Report {
    Report::Finished(Finished { steps: 1, train_loss: None, tokens: 1, peak_rss_bytes })
}

#[test]
fn errors_count_up_and_down_alike() {
    let all = judge(&[exactly(100, 50), exactly(100, 100), exactly(100, 200)]);
    let spread = all[0].spread.unwrap();
    assert_eq!((spread.ratio_p5, spread.ratio_median, spread.ratio_p95), (0.5, 1.0, 2.0));
    // Half and twice are both wrong by a factor of two.
    assert!((spread.error_median_percent - 100.0).abs() < 1e-9, "{spread:?}");
    assert!((spread.error_p95_percent - 100.0).abs() < 1e-9, "{spread:?}");
    assert_eq!((all[0].jobs, all[0].above, all[0].ran_out), (3, 1, 0));
}

#[test]
fn a_job_that_ran_out_is_counted_and_not_measured() {
    let short = forecast(100, Measured::MoreThan(80));
    let enough = forecast(100, Measured::MoreThan(100));
    let all = judge(&[exactly(100, 99), short, enough]);
    assert_eq!((all[0].jobs, all[0].ran_out, all[0].above), (1, 2, 1), "80 of 100 says nothing of the prediction");
    let none = judge(&[forecast(100, Measured::MoreThan(80))]);
    assert_eq!(none[0].error(), "memory of finetune (lora): none measured; 1 ran out of it");
    assert_eq!(none[0].spread, None);
}

#[test]
fn kinds_methods_and_quantities_are_judged_apart() {
    let train = Forecast { kind: "train".into(), method: None, ..exactly(100, 100) };
    let disk = Forecast { quantity: Quantity::Disk, ..exactly(100, 10) };
    let found: Vec<_> = judge(&[train, exactly(100, 110), disk]).iter().map(Accuracy::error).collect();
    assert_eq!(
        found,
        [
            "memory of finetune (lora): 1 measured, off by 10.0 % (median) and 10.0 % (95 of 100), 1 above what was \
             predicted",
            "disk of finetune (lora): 1 measured, off by 900.0 % (median) and 900.0 % (95 of 100), 0 above what was \
             predicted",
            "memory of train: 1 measured, off by 0.0 % (median) and 0.0 % (95 of 100), 0 above what was predicted",
        ]
    );
}

#[test]
fn a_success_is_measured_by_its_peak_and_by_what_it_left_and_wrote_on_its_way() {
    let checkpoint = |bytes| Report::Checkpoint(Checkpoint { step: 1, path: "c".into(), bytes });
    let said = [checkpoint(30), checkpoint(30), finished(700)];
    let found = measured(&Outcome::Succeeded, &limits(), &said, 40);
    assert_eq!(found, [(Quantity::Memory, Measured::Exactly(700)), (Quantity::Disk, Measured::Exactly(100))]);
    assert_eq!(measured(&Outcome::Succeeded, &limits(), &[finished(1001)], 0), [], "more than its limit let it have");
}

#[test]
fn what_an_attempt_holds_of_a_gpu_is_measured_by_the_host() {
    let reading = |memory_peak_bytes| GpuReading {
        uuid: "GPU-1".into(),
        memory_used_bytes: 1,
        memory_peak_bytes,
        utilization_percent: None,
        power_watts: None,
    };
    let said = [finished(700), Report::Gpus { gpus: vec![reading(30), reading(50)] }];
    let found = measured(&Outcome::Succeeded, &limits(), &said, 0);
    assert_eq!(found[1], (Quantity::GpuMemory, Measured::Exactly(50)), "each of its GPUs must have as much");
    let full = Outcome::Failed(Failure::new(FailureKind::GpuOutOfMemory, ""));
    let shares = Limits { gpu_memory_bytes: Some(40), ..limits() };
    assert_eq!(measured(&full, &shares, &[], 0), [(Quantity::GpuMemory, Measured::MoreThan(40))]);
    assert_eq!(measured(&full, &limits(), &[], 0), [], "how much there was of a whole one is not known here");
}

#[test]
fn an_attempt_that_was_cut_short_has_not_shown_what_it_needs() {
    let failed = |kind| Outcome::Failed(Failure::new(kind, ""));
    let found = |outcome: Outcome| measured(&outcome, &limits(), &[], 40);
    assert_eq!(found(failed(FailureKind::OutOfMemory)), [(Quantity::Memory, Measured::MoreThan(1000))]);
    assert_eq!(found(failed(FailureKind::DiskFull)), [(Quantity::Disk, Measured::MoreThan(500))]);
    assert_eq!(found(failed(FailureKind::TimeLimit)), []);
    assert_eq!(found(Outcome::Cancelled), []);
}

proptest! {
    #[test]
    fn percentiles_are_in_order_and_among_what_was_measured(bytes in proptest::collection::vec(1..10_000u64, 1..60)) {
        let all: Vec<_> = bytes.iter().map(|bytes| exactly(1000, *bytes)).collect();
        let Spread { ratio_p5, ratio_median, ratio_p95, error_median_percent, error_p95_percent } =
            judge(&all)[0].spread.unwrap();
        prop_assert!(ratio_p5 <= ratio_median && ratio_median <= ratio_p95);
        prop_assert!(0.0 <= error_median_percent && error_median_percent <= error_p95_percent);
        for ratio in [ratio_p5, ratio_median, ratio_p95] {
            prop_assert!(bytes.iter().any(|bytes| *bytes as f64 / 1000.0 == ratio));
        }
    }
}
