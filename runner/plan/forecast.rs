//! How well plans predict what jobs need: pure rules over what was predicted and what was measured.

use std::collections::BTreeMap;

use drydock_spec::{Attempt, FailureKind, JobSpec, Limits, Outcome, Report};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::Estimate;
use crate::gpus::readings::peak_gpu_bytes;

/// Something that is predicted of a job, in bytes; time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Largest resident memory of the worker.
    Memory,
    /// Artifacts, with the checkpoints that lay beside them on the way.
    Disk,
    /// Largest memory on one GPU.
    GpuMemory,
    /// From the start of the worker to its last report. What is predicted of it is work; see `drydock_gpu::estimate::Work`.
    Time,
}

/// What an attempt came to, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    Exactly(u64),
    /// It ran out of what it had, which was this much. Statisticians call such a value censored.
    MoreThan(u64),
}

/// A prediction and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    pub kind: String,
    /// Of a finetune: lora, qlora, dora or full.
    pub method: Option<String>,
    pub quantity: Quantity,
    /// In bytes, above 0.
    pub predicted: u64,
    pub measured: Measured,
}

/// How well something is predicted of jobs of one kind and method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Accuracy {
    pub kind: String,
    /// Of a finetune: lora, qlora, dora or full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// memory or disk
    pub quantity: Quantity,
    /// Jobs that were measured.
    pub jobs: u64,
    /// Jobs that ran out of it besides: they needed more than they had, and nobody knows how much.
    pub ran_out: u64,
    /// Jobs that certainly needed more than was predicted; those that ran out with as much as that among them.
    pub above: u64,
    /// Absent as long as none was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
}

/// What was measured, as a multiple of what was predicted. Percentiles are those of the nearest rank, so that each of them
/// is a value that was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spread {
    /// 5 of 100 jobs needed less.
    pub ratio_p5: f64,
    pub ratio_median: f64,
    /// 5 of 100 jobs needed more.
    pub ratio_p95: f64,
    /// By how much the prediction was wrong, up or down, in percent: exp(|ln ratio|) - 1.
    pub error_median_percent: f64,
    pub error_p95_percent: f64,
}

impl Quantity {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::GpuMemory => "gpu_memory",
            Self::Time => "time",
        }
    }

    /// What was predicted of it.
    #[must_use]
    pub fn of(self, estimate: &Estimate) -> u64 {
        let expected = estimate.needs.get(&self).map(|need| need.expected);
        match self {
            Self::Memory => estimate.memory_bytes,
            // What was planned before that was told apart has the room that is needed at most.
            Self::Disk => expected.unwrap_or(estimate.disk_bytes),
            Self::GpuMemory => expected.unwrap_or(0),
            Self::Time => estimate.work_ms,
        }
    }
}

/// How a finetune trains, and whether a job computes on GPUs: predictions differ by both.
#[must_use]
pub fn method_of(spec: &JobSpec, gpus: u32) -> Option<String> {
    let method = match spec {
        JobSpec::Finetune(spec) => Some(spec.method.name()),
        JobSpec::Train(_) | JobSpec::Quantize(_) | JobSpec::Evaluate(_) => None,
    };
    match (method, gpus) {
        (method, 0) => method.map(str::to_owned),
        (method, _) => Some(format!("{} on gpu", method.unwrap_or("all")).trim_start_matches("all ").to_owned()),
    }
}

/// How long a job took whose worker spoke for the last time `elapsed_ms` after its start. Of one that went on from a
/// checkpoint, or failed, nobody knows.
#[must_use]
pub fn took(outcome: &Outcome, attempt: Attempt, elapsed_ms: Option<u64>) -> Option<(Quantity, Measured)> {
    let whole = *outcome == Outcome::Succeeded && attempt.0 == 1;
    elapsed_ms.filter(|ms| whole && *ms > 0).map(|ms| (Quantity::Time, Measured::Exactly(ms)))
}

/// What an attempt that ended so can be measured by. `said` are its final report and its last two checkpoints,
/// `artifact_bytes` is what was taken over. An attempt that was cut short has not shown what it needs, unless it was for
/// want of just that. A worker that says that it had more memory than its limit is not believed.
#[must_use]
pub fn measured(outcome: &Outcome, limits: &Limits, said: &[Report], artifact_bytes: u64) -> Vec<(Quantity, Measured)> {
    match outcome {
        Outcome::Succeeded => {
            let peak = said.iter().find_map(|report| match report {
                Report::Finished(finished) => Some(finished.peak_rss_bytes),
                _ => None,
            });
            let checkpoints = said.iter().map(|report| match report {
                Report::Checkpoint(checkpoint) => checkpoint.bytes,
                _ => 0,
            });
            let disk = checkpoints.fold(artifact_bytes, u64::saturating_add);
            let peak = peak.filter(|peak| (1..=limits.memory_bytes).contains(peak));
            let disk = Some(disk).filter(|disk| (1..=limits.disk_bytes).contains(disk));
            let exactly = |quantity, bytes: Option<u64>| Some((quantity, Measured::Exactly(bytes?)));
            let gpu = said.iter().find_map(|report| match report {
                Report::Gpus { gpus } => peak_gpu_bytes(gpus),
                _ => None,
            });
            let all = [(Quantity::Memory, peak), (Quantity::Disk, disk), (Quantity::GpuMemory, gpu)];
            all.into_iter().filter_map(|(quantity, bytes)| exactly(quantity, bytes)).collect()
        }
        Outcome::Failed(failure) => match failure.kind {
            FailureKind::GpuOutOfMemory => {
                let shared = limits.gpu_memory_bytes;
                shared.map(|bytes| (Quantity::GpuMemory, Measured::MoreThan(bytes))).into_iter().collect()
            }
            FailureKind::OutOfMemory => vec![(Quantity::Memory, Measured::MoreThan(limits.memory_bytes))],
            FailureKind::DiskFull => vec![(Quantity::Disk, Measured::MoreThan(limits.disk_bytes))],
            _ => Vec::new(),
        },
        Outcome::Cancelled => Vec::new(),
    }
}

/// How well predictions went, by kind of job, method and what was predicted.
#[must_use]
pub fn judge(forecasts: &[Forecast]) -> Vec<Accuracy> {
    let mut groups: BTreeMap<_, Vec<&Forecast>> = BTreeMap::new();
    // Work is no time: what is predicted of it is not meant to be what is measured.
    for forecast in forecasts.iter().filter(|forecast| forecast.quantity != Quantity::Time) {
        groups.entry((&forecast.kind, &forecast.method, forecast.quantity)).or_default().push(forecast);
    }
    groups.into_iter().map(|((kind, method, quantity), group)| accuracy(kind, method, quantity, &group)).collect()
}

fn accuracy(kind: &str, method: &Option<String>, quantity: Quantity, group: &[&Forecast]) -> Accuracy {
    let ratios: Vec<_> = group
        .iter()
        .filter_map(|forecast| match forecast.measured {
            Measured::Exactly(bytes) => Some(bytes as f64 / forecast.predicted as f64),
            Measured::MoreThan(_) => None,
        })
        .collect();
    let above = |forecast: &&&Forecast| match forecast.measured {
        Measured::Exactly(bytes) => bytes > forecast.predicted,
        Measured::MoreThan(bytes) => bytes >= forecast.predicted,
    };
    Accuracy {
        kind: kind.to_owned(),
        method: method.clone(),
        quantity,
        jobs: ratios.len() as u64,
        ran_out: (group.len() - ratios.len()) as u64,
        above: group.iter().filter(above).count() as u64,
        spread: spread(ratios),
    }
}

fn spread(mut ratios: Vec<f64>) -> Option<Spread> {
    let mut errors: Vec<_> = ratios.iter().map(|ratio| 100.0 * ratio.ln().abs().exp_m1()).collect();
    ratios.sort_by(f64::total_cmp);
    errors.sort_by(f64::total_cmp);
    Some(Spread {
        ratio_p5: percentile(&ratios, 5)?,
        ratio_median: percentile(&ratios, 50)?,
        ratio_p95: percentile(&ratios, 95)?,
        error_median_percent: percentile(&errors, 50)?,
        error_p95_percent: percentile(&errors, 95)?,
    })
}

/// The value of the nearest rank in a sorted list.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (percent * sorted.len()).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

impl Accuracy {
    /// The jobs, in words: `finetunes by lora`.
    fn subject(&self) -> String {
        match &self.method {
            Some(method) => format!("{} ({method})", self.kind),
            None => self.kind.clone(),
        }
    }

    /// By how much predictions were wrong, for a list of them.
    #[must_use]
    pub fn error(&self) -> String {
        let what = format!("{} of {}", self.quantity.name(), self.subject());
        let found = match self.spread {
            None => "none measured".to_owned(),
            Some(spread) => format!(
                "{} measured, off by {:.1} % (median) and {:.1} % (95 of 100), {} above what was predicted",
                self.jobs, spread.error_median_percent, spread.error_p95_percent, self.above
            ),
        };
        format!("{what}: {found}{}", self.and_ran_out())
    }

    fn and_ran_out(&self) -> String {
        if self.ran_out > 0 { format!("; {} ran out of it", self.ran_out) } else { String::new() }
    }
}

#[cfg(test)]
mod tests;
