//! The limits that are in force for a job: what was asked for, what the estimate and the configuration say where
//! nothing was, and never more than jobs may use.

use std::time::Duration;

use drydock_gpu::Capacity;
use drydock_spec::option::Complaints;
use drydock_spec::{InvalidOption, InvalidOptions, JobSpec, LimitArgs, Limits};

use super::forecast::{Accuracy, Quantity};
use super::needs::Needs;
use super::{Host, gpus};
use crate::api::Estimate;
use crate::blobs::size;
use crate::config::LimitsConfig;

const MIB: u64 = 1 << 20;
/// Jobs that must have been measured before their spread says anything.
const LEAST_MEASURED: u64 = 5;

/// Every limit set, or why the job cannot run on this host; all complaints come at once.
pub(super) fn in_force(
    asked: &LimitArgs,
    config: &LimitsConfig,
    (spec, needs): (&JobSpec, &Needs),
    host: &Host,
) -> Result<Limits, InvalidOptions> {
    let mut wrong = Complaints::default();
    let memory_bytes = asked.memory_mib.map_or_else(|| needs.memory_limit(), |mib| mib * MIB);
    let disk_bytes = asked.disk_mib.map_or(config.disk.0, |mib| mib * MIB);
    if let Ok(capacity) = &host.capacity {
        check_capacity(&mut wrong, asked, memory_bytes, needs, *capacity);
    }
    if let Some(offer) = &host.gpus {
        gpus::check(&mut wrong, asked, spec, offer);
        if let Some(too_large) = offer.memory_for(asked).and_then(|bytes| needs.too_large_for_gpu(bytes)) {
            wrong.require(false, || too_large);
        }
    }
    wrong.require(needs.estimate.disk_bytes <= disk_bytes, || {
        let problem = format!("the artifacts need about {}", size(needs.estimate.disk_bytes));
        let enough = |bytes: u64| bytes.div_ceil(MIB);
        let least = format!("choose at least {}", enough(needs.estimate.disk_bytes));
        let next = match &needs.saving {
            Some(saving) => {
                format!("{least}, or {}, with which {} are enough", saving.change, enough(saving.disk_bytes))
            }
            None => least,
        };
        InvalidOption::new("limits.disk_mib", disk_bytes / MIB, problem, next)
    });
    wrong.into_result(Limits {
        memory_bytes,
        cpu_millis: cpu_millis(asked, config, host),
        pids: config.pids,
        disk_bytes,
        time_ms: asked.time_limit_s.map_or_else(|| millis(config.time), seconds),
        silence_ms: asked.silence_limit_s.map_or_else(|| millis(config.silence), seconds),
        grace_ms: millis(config.grace),
        max_attempts: asked.max_attempts.unwrap_or(config.max_attempts),
        gpus: asked.gpus.unwrap_or(0),
        gpu_memory_bytes: asked.gpu_memory_mib.map(|mib| mib * MIB),
    })
}

fn check_capacity(wrong: &mut Complaints, asked: &LimitArgs, memory: u64, needs: &Needs, capacity: Capacity) {
    let most = capacity.memory_bytes;
    match asked.memory_mib {
        None => wrong.require(memory <= most, || needs.too_large(most)),
        Some(mib) => wrong.require(memory <= most, || {
            let problem = format!("jobs may use {} on this host", size(most));
            let estimated = needs.memory_limit();
            let next = match estimated <= most {
                true => format!("choose at most {}, or leave it out: about {} are needed", most / MIB, size(estimated)),
                false => needs.too_large(most).next,
            };
            InvalidOption::new("limits.memory_mib", mib, problem, next)
        }),
    }
    if let Some(cpus) = asked.cpus {
        let most = capacity.cpu_millis as f64 / 1e3;
        wrong.require(cpus <= most, || {
            let problem = format!("jobs may use {most} CPUs on this host");
            InvalidOption::new("limits.cpus", cpus, problem, format!("choose at most {most}, or leave it out"))
        });
    }
}

/// Thousandths of a CPU: as asked for, as configured, or of all that jobs may use what goes with the job's GPUs.
pub(super) fn cpu_millis(asked: &LimitArgs, config: &LimitsConfig, host: &Host) -> u32 {
    let all = match &host.capacity {
        Ok(capacity) => capacity.cpu_millis,
        // Without an engine to ask, this host's own count is the best guess.
        Err(_) => 1000 * std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
    };
    let wanted = match (asked.cpus, config.cpus) {
        (Some(cpus), _) => (cpus * 1e3) as u64,
        (None, Some(cpus)) => ((cpus * 1e3) as u64).min(all),
        (None, None) => gpus::cpu_millis(asked, all, host.gpus.as_ref()),
    };
    u32::try_from(wanted).unwrap_or(u32::MAX)
}

/// What somebody should know about these limits.
pub(super) fn warnings(limits: &Limits, estimate: &Estimate, forecasts: &[Accuracy], host: &Host) -> Vec<String> {
    let mut warnings = Vec::from_iter(memory_warning(limits.memory_bytes, estimate.memory_bytes, forecasts));
    match (&host.capacity, &host.image) {
        (Err(problem), _) => {
            warnings
                .push(format!("not compared with what this host can give, and waits until it can start: {problem}"));
        }
        (Ok(_), Err(problem)) => warnings.push(format!("waits until it can start: {problem}")),
        (Ok(_), Ok(())) => {}
    }
    warnings
}

/// Whether the memory is little for what the job is expected to need, and for what others have needed.
fn memory_warning(limit: u64, predicted: u64, forecasts: &[Accuracy]) -> Option<String> {
    let mib = limit / MIB;
    let known = forecasts.iter().find(|known| known.quantity == Quantity::Memory && known.jobs >= LEAST_MEASURED);
    let ratio = known.and_then(|known| known.spread).map(|spread| spread.ratio_p95);
    let needed = ratio.map(|ratio| (ratio, (predicted as f64 * ratio) as u64));
    let below = format!("limits.memory_mib = {mib} is below the {} that the job is expected to need", size(predicted));
    match needed {
        Some((ratio, needed)) if limit < predicted && needed <= limit => Some(format!(
            "{below}; it may be enough all the same: 95 of 100 jobs of this kind needed at most {ratio:.2}x of what was \
             predicted, which would be {}",
            size(needed)
        )),
        _ if limit < predicted => Some(format!("{below}; it may end out of memory")),
        Some((ratio, needed)) if limit < needed => Some(format!(
            "limits.memory_mib = {mib} is within the error of the prediction: 5 of 100 jobs of this kind needed \
             {ratio:.2}x of what was predicted or more, which would be {}; choose at least {}",
            size(needed),
            needed.div_ceil(MIB)
        )),
        _ => None,
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn seconds(seconds: u64) -> i64 {
    i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX)
}
