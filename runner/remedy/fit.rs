//! What the numbers of a failure say that is needed.

use drydock_gpu::estimate::limit_for;
use drydock_spec::{Failure, FailureKind, JobSpec, Limits};
use serde_json::Value;

use crate::blobs::size;
use crate::diagnose::evidence::Evidence;
use crate::plan::cut::Longer;

const MIB: u64 = 1 << 20;
/// What is added to a time that was reckoned from the pace so far, and to what is known to be too little.
const SPARE: f64 = 1.3;
const MORE: f64 = 1.5;

/// What a job with a certain batch is expected to need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    pub batch: u32,
    pub memory_bytes: u64,
}

/// The numbers that remedies are made of.
#[derive(Debug, Clone, Copy)]
pub struct Numbers<'a> {
    pub failure: &'a Failure,
    pub evidence: &'a Evidence,
    pub spec: &'a JobSpec,
    pub limits: &'a Limits,
    /// What the planner expects of the job as it was, and of the same with smaller batches, the largest first.
    pub expected: &'a [Expected],
    /// Bytes of what the job leaves, as the planner expects.
    pub disk_bytes: u64,
    /// The length, in tokens, that would cut fewer of the rows, and how many rows it would still cut.
    pub longer: Option<Longer>,
}

/// A value that follows from numbers, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    pub value: Value,
    pub said: String,
}

impl Numbers<'_> {
    /// What the option must be, where the numbers say.
    #[must_use]
    pub fn fit(&self, option: &str) -> Option<Fitted> {
        match (option, self.failure.kind) {
            ("limits.memory_mib", FailureKind::OutOfMemory) => Some(self.memory()),
            ("limits.disk_mib", FailureKind::DiskFull) => self.disk(),
            ("limits.time_limit_s", FailureKind::TimeLimit) => self.time(),
            ("max_seq_length", FailureKind::NothingToLearn) => self.length(),
            ("per_device_train_batch_size", FailureKind::OutOfMemory) => {
                let (batch, said) = self.batch()?;
                Some(Fitted { value: batch.into(), said })
            }
            ("gradient_accumulation_steps", FailureKind::OutOfMemory) => {
                let (batch, said) = self.batch()?;
                let recipe = self.spec.recipe()?;
                let times = recipe.per_device_train_batch_size / batch;
                Some(Fitted { value: recipe.gradient_accumulation_steps.saturating_mul(times).into(), said })
            }
            _ => None,
        }
    }

    /// A quarter more than the planner expects, which it may have been wrong about; and where it had as much already, half as much again.
    fn memory(&self) -> Fitted {
        let had = self.limits.memory_bytes;
        let expected = self.expected.first().map_or(0, |expected| expected.memory_bytes);
        let wanted = limit_for(expected / 4 * 5).max((had as f64 * MORE) as u64);
        let said = match expected > had {
            true => format!("it had {}, and is expected to need {}", size(had), size(expected)),
            false => format!("it had {}, which was too little", size(had)),
        };
        Fitted { value: wanted.div_ceil(MIB).into(), said }
    }

    /// The largest part of the batch that fits into the memory that there was, if the estimate is as far off for it as it
    /// was for the whole one. Only parts that divide it, so that a step still learns from as many rows.
    fn batch(&self) -> Option<(u32, String)> {
        let had = self.limits.memory_bytes as f64;
        let (whole, parts) = self.expected.split_first()?;
        let off = (had / whole.memory_bytes as f64).max(1.0) * 1.05;
        let part = parts.iter().find(|part| part.memory_bytes as f64 * off <= had && whole.batch % part.batch == 0)?;
        let said = format!(
            "a batch of {} needed more than {}; {} rows are expected to need {}",
            whole.batch,
            size(self.limits.memory_bytes),
            part.batch,
            size((part.memory_bytes as f64 * off) as u64)
        );
        Some((part.batch, said))
    }

    fn disk(&self) -> Option<Fitted> {
        let had = self.limits.disk_bytes;
        (self.disk_bytes > had / 2).then(|| Fitted {
            value: (self.disk_bytes / 4 * 5).max((had as f64 * MORE) as u64).div_ceil(MIB).into(),
            said: format!("it had {}, and is expected to leave {}", size(had), size(self.disk_bytes)),
        })
    }

    /// The shortest length at which next to no row is cut.
    fn length(&self) -> Option<Fitted> {
        let Longer { max_seq_length, rows } = self.longer?;
        let said = format!("{max_seq_length} tokens would cut {rows} row(s) at most");
        Some(Fitted { value: max_seq_length.into(), said })
    }

    /// As long as all steps take at the pace of those that were taken.
    fn time(&self) -> Option<Fitted> {
        let metrics = self.evidence.metrics.as_ref().filter(|metrics| metrics.step > 0)?;
        let had_s = self.limits.time_ms as f64 / 1e3;
        let all_s = had_s * metrics.total_steps as f64 / metrics.step as f64;
        let said = format!("{} of {} steps took {had_s:.0} s", metrics.step, metrics.total_steps);
        Some(Fitted { value: ((all_s * SPARE).max(had_s * MORE).ceil() as u64).into(), said })
    }
}

#[cfg(test)]
mod tests {
    use drydock_spec::report::Metrics;
    use drydock_spec::{FinetuneArgs, JobArgs};

    use super::*;

    fn fit(kind: FailureKind, option: &str, step: u64, expected: &[(u32, u64)]) -> Option<(Value, String)> {
        let args = FinetuneArgs {
            model: "m".into(),
            dataset: "d".into(),
            per_device_train_batch_size: Some(12),
            ..FinetuneArgs::default()
        };
        let spec = JobArgs::Finetune(args).parse().unwrap();
        let limits = Limits {
            memory_bytes: 1000 * MIB,
            cpu_millis: 1000,
            pids: 1,
            disk_bytes: 100 * MIB,
            time_ms: 60_000,
            silence_ms: 1,
            grace_ms: 1,
            max_attempts: 1,
            gpus: 0,
            gpu_memory_bytes: None,
        };
        let metrics = Metrics {
            step,
            total_steps: 100,
            epoch: 0.0,
            loss: 1.0,
            preferences: None,
            learning_rate: 0.0,
            grad_norm: 0.0,
            tokens_per_second: 1.0,
            eta_ms: 0,
            rss_bytes: 0,
        };
        let evidence = Evidence { metrics: Some(metrics), ..Evidence::default() };
        let expected: Vec<_> =
            expected.iter().map(|(batch, mib)| Expected { batch: *batch, memory_bytes: mib * MIB }).collect();
        let failure = Failure::new(kind, "x");
        let numbers = Numbers {
            failure: &failure,
            evidence: &evidence,
            spec: &spec,
            limits: &limits,
            expected: &expected,
            disk_bytes: 80 * MIB,
            longer: Some(Longer { max_seq_length: 64, rows: 2 }),
        };
        numbers.fit(option).map(|fitted| (fitted.value, fitted.said))
    }

    #[test]
    fn memory_is_what_is_expected_with_a_margin_and_more_than_there_was() {
        let (value, said) = fit(FailureKind::OutOfMemory, "limits.memory_mib", 1, &[(12, 4000)]).unwrap();
        assert_eq!((value, said.as_str()), (5084.into(), "it had 1000.0 MiB, and is expected to need 3.9 GiB"));
        let (value, _) = fit(FailureKind::OutOfMemory, "limits.memory_mib", 1, &[(12, 500)]).unwrap();
        assert_eq!(value, 1500);
    }

    #[test]
    fn the_batch_is_the_largest_part_that_fits() {
        let expected = [(12, 3000), (6, 1600), (3, 900), (1, 500)];
        let of = |option: &str| fit(FailureKind::OutOfMemory, option, 1, &expected).unwrap().0;
        assert_eq!((of("per_device_train_batch_size"), of("gradient_accumulation_steps")), (3.into(), 4.into()));
        // The whole batch was expected to fit, and did not: so much is added to the parts as well.
        let off = [(12, 500), (6, 495), (3, 400)];
        assert_eq!(fit(FailureKind::OutOfMemory, "per_device_train_batch_size", 1, &off).unwrap().0, 3);
        assert_eq!(fit(FailureKind::OutOfMemory, "per_device_train_batch_size", 1, &[(12, 3000), (6, 2000)]), None);
    }

    #[test]
    fn the_time_is_reckoned_from_the_steps_that_were_taken() {
        let (value, said) = fit(FailureKind::TimeLimit, "limits.time_limit_s", 20, &[]).unwrap();
        assert_eq!((value, said.as_str()), (390.into(), "20 of 100 steps took 60 s"));
        assert_eq!(fit(FailureKind::TimeLimit, "limits.time_limit_s", 0, &[]), None);
    }

    #[test]
    fn the_length_is_the_one_that_cuts_next_to_no_row() {
        let fitted = fit(FailureKind::NothingToLearn, "max_seq_length", 0, &[]);
        assert_eq!(fitted, Some((64.into(), "64 tokens would cut 2 row(s) at most".into())));
        assert_eq!(fit(FailureKind::OutOfMemory, "max_seq_length", 0, &[(12, 4000)]), None);
    }

    #[test]
    fn numbers_say_nothing_about_what_was_not_short() {
        assert_eq!(fit(FailureKind::Diverged, "limits.memory_mib", 1, &[(12, 4000)]), None);
        assert_eq!(fit(FailureKind::DiskFull, "limits.disk_mib", 1, &[]).unwrap().0, 150);
    }
}
