//! GPUs of a job: how many it gets that does not say, and whether the host has what one asks for.

use drydock_gpu::Shortage;
use drydock_gpu::assign::{GpuNeed, Host, HostUnit, Need};
use drydock_spec::option::Complaints;
use drydock_spec::{InvalidOption, JobSpec, LimitArgs, Recipe};

use crate::blobs::size;
use crate::config::DefaultGpus;

const MIB: u64 = 1 << 20;

/// What jobs may have of the host's GPUs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Offer {
    pub(super) units: Vec<HostUnit>,
    /// GPUs that the worker computes a job on at most.
    pub(super) most: u32,
    /// Why no container can have any.
    pub(super) barrier: Option<String>,
}

/// The limits with the GPUs that the job gets, where it does not say: on the CPU it gets none.
pub(super) fn decided(asked: &LimitArgs, spec: &JobSpec, default: DefaultGpus, offer: Option<&Offer>) -> LimitArgs {
    let computes = spec.computes_on_gpu();
    let there = offer.is_some_and(|offer| offer.barrier.is_none() && !offer.units.is_empty());
    let gpus = match (asked.gpus, asked.gpu_memory_mib, default) {
        (Some(count), _, _) => count,
        (None, Some(_), _) => 1,
        (None, None, DefaultGpus::Count(count)) if computes => {
            let rows = spec.recipe().map_or(u64::MAX, Recipe::rows_per_step);
            count.min(offer.map_or(count, |offer| offer.most_for(spec))).min(u32::try_from(rows).unwrap_or(u32::MAX))
        }
        (None, None, DefaultGpus::Auto) if computes && there => 1,
        (None, None, _) => 0,
    };
    LimitArgs { gpus: Some(gpus), ..asked.clone() }
}

/// Refuses a job for which the host has no GPUs, or too few, or too small ones, even if nobody else has any.
pub(super) fn check(wrong: &mut Complaints, asked: &LimitArgs, spec: &JobSpec, offer: &Offer) {
    let count = asked.gpus.unwrap_or(0);
    if count == 0 {
        return;
    }
    const CPU: &str = "set gpus to 0 to compute on the CPU";
    if let Some(barrier) = &offer.barrier {
        wrong.require(false, || InvalidOption::new("limits.gpus", count, barrier.clone(), CPU));
        return;
    }
    let most = offer.most_for(spec);
    wrong.require(count <= most, || {
        let problem = format!("the worker computes such a job on {most} at most");
        InvalidOption::new("limits.gpus", count, problem, format!("choose {most}, or {CPU}"))
    });
    if let Some(recipe) = spec.recipe() {
        let rows = recipe.rows_per_step();
        wrong.require(rows >= u64::from(count), || {
            let problem = format!("{count} GPUs need as many rows in a step, and it has {rows}");
            let steps = u64::from(count).div_ceil(u64::from(recipe.per_device_train_batch_size));
            let next = format!("choose at most {rows}, or raise gradient_accumulation_steps to {steps}");
            InvalidOption::new("limits.gpus", count, problem, next)
        });
    }
    let host = Host { units: offer.units.clone(), sharers: 1, ..Host::default() };
    let gpus = match asked.gpu_memory_mib {
        Some(mib) => GpuNeed::Share { bytes: mib * MIB },
        None => GpuNeed::Own { count, least_bytes: 0 },
    };
    match host.takes(&Need { gpus, ..Need::default() }) {
        Err(Shortage::GpuMemory { free, .. }) if free > 0 => {
            let problem = format!("the largest GPU has {}", size(free));
            let next = format!("choose at most {}, or {CPU}", free / MIB);
            let mib = asked.gpu_memory_mib.unwrap_or(0);
            wrong.require(false, || InvalidOption::new("limits.gpu_memory_mib", mib, problem, next));
        }
        Err(_) if offer.units.is_empty() => {
            wrong.require(false, || InvalidOption::new("limits.gpus", count, "this host has no GPU for jobs", CPU));
        }
        Err(Shortage::Gpus { free, .. }) => {
            let most = free.max(1);
            let problem = format!("of one kind, and whole, jobs may use {free} GPUs on this host");
            let next = format!("choose at most {most}, or {CPU}");
            wrong.require(false, || InvalidOption::new("limits.gpus", count, problem, next));
        }
        Ok(()) | Err(_) => {}
    }
}

impl Offer {
    /// GPUs that the worker computes such a job on at most. What an image says of a number is said of trainings, whose rows
    /// GPUs share; one that names none is somebody's own.
    fn most_for(&self, spec: &JobSpec) -> u32 {
        let is_shared = spec.recipe().is_some() || self.most == u32::MAX;
        if is_shared { self.most } else { self.most.min(1) }
    }

    /// Memory of a GPU that a job can have at most, in bytes: what it asks for, or all of the largest. Nothing of a host
    /// on which it gets none.
    pub(super) fn memory_for(&self, asked: &LimitArgs) -> Option<u64> {
        let largest = self.units.iter().map(|of| of.unit.memory_bytes).max()?;
        Some(asked.gpu_memory_mib.map_or(largest, |mib| largest.min(mib * MIB)))
    }
}

/// The part of the host's CPUs, in thousandths, that goes with the GPUs of a job that does not say: as much as of these.
pub(super) fn cpu_millis(asked: &LimitArgs, all: u64, offer: Option<&Offer>) -> u64 {
    let units = offer.map_or(&[][..], |offer| &offer.units);
    let count = u64::from(asked.gpus.unwrap_or(0));
    if count == 0 || units.is_empty() {
        return all;
    }
    let part = match asked.gpu_memory_mib {
        Some(mib) => {
            let bytes: u64 = units.iter().map(|of| of.unit.memory_bytes).sum();
            (mib * MIB) as f64 / bytes.max(1) as f64
        }
        None => count as f64 / units.len() as f64,
    };
    ((all as f64 * part) as u64).clamp(all.min(1000), all)
}

#[cfg(test)]
mod tests {
    use drydock_gpu::inventory::Unit;
    use drydock_spec::JobArgs;
    use serde_json::json;

    use super::*;

    fn offer(gib: &[u64]) -> Offer {
        let unit = |(at, gib): (usize, &u64)| {
            let uuid = format!("GPU-{at}");
            let unit = Unit { uuid: uuid.clone(), gpu: uuid, memory_bytes: gib << 30 };
            HostUnit { unit, name: "a".into(), foreign_bytes: gib << 30 }
        };
        Offer { units: gib.iter().enumerate().map(unit).collect(), most: u32::MAX, barrier: None }
    }

    fn spec(job: serde_json::Value) -> JobSpec {
        serde_json::from_value::<JobArgs>(job).unwrap().parse().unwrap()
    }

    fn said(asked: &LimitArgs, offer: &Offer) -> Option<String> {
        said_of(&spec(json!({"finetune": {"model": "m", "dataset": "d"}})), asked, offer)
    }

    fn said_of(spec: &JobSpec, asked: &LimitArgs, offer: &Offer) -> Option<String> {
        let mut wrong = Complaints::default();
        check(&mut wrong, asked, spec, offer);
        wrong.into_result(()).err().map(|refused| refused.to_string())
    }

    fn asking(gpus: u32, memory: Option<u64>) -> LimitArgs {
        LimitArgs { gpus: Some(gpus), gpu_memory_mib: memory, ..LimitArgs::default() }
    }

    #[test]
    fn a_job_that_does_not_say_gets_a_gpu_where_it_can_compute_on_one() {
        let finetune = spec(json!({"finetune": {"model": "m", "dataset": "d"}}));
        let evaluate = spec(json!({"evaluate": {"model": "m", "dataset": "d"}}));
        let quantize = spec(json!({"quantize": {"model": "m", "quant_type": "Q8_0"}}));
        let count =
            |spec, default, offer: Option<&Offer>| decided(&LimitArgs::default(), spec, default, offer).gpus.unwrap();
        let (two, none) = (offer(&[80, 80]), offer(&[]));
        let barred = Offer { barrier: Some("no injector".into()), ..two.clone() };
        assert_eq!(count(&finetune, DefaultGpus::Auto, Some(&two)), 1);
        assert_eq!(count(&evaluate, DefaultGpus::Auto, Some(&two)), 1);
        assert_eq!(count(&quantize, DefaultGpus::Auto, Some(&two)), 0);
        for without in [Some(&none), Some(&barred), None] {
            assert_eq!(count(&finetune, DefaultGpus::Auto, without), 0);
        }
        assert_eq!(count(&finetune, DefaultGpus::Count(2), None), 2);
        assert_eq!(decided(&asking(0, None), &finetune, DefaultGpus::Count(2), None).gpus, Some(0));
        let shares = LimitArgs { gpu_memory_mib: Some(1024), ..LimitArgs::default() };
        assert_eq!(decided(&shares, &finetune, DefaultGpus::Auto, None).gpus, Some(1));
    }

    #[test]
    fn more_gpus_than_the_worker_computes_on_are_given_to_nobody_and_refused_where_they_are_asked_for() {
        let single = Offer { most: 1, ..offer(&[80, 80]) };
        assert_eq!(said(&asking(1, None), &single), None);
        let refused = said(&asking(2, None), &single).unwrap();
        assert!(refused.contains("the worker computes such a job on 1 at most; choose 1, or"), "{refused}");
        assert_eq!(
            decided(
                &LimitArgs::default(),
                &spec(json!({"train": {"dataset": "d"}})),
                DefaultGpus::Count(2),
                Some(&single)
            )
            .gpus,
            Some(1)
        );
    }

    #[test]
    fn several_gpus_are_for_trainings_with_a_row_for_each_of_them() {
        let four = Offer { most: 4, ..offer(&[80; 8]) };
        assert_eq!(said(&asking(4, None), &four), None);
        let refused = said(&asking(5, None), &four).unwrap();
        assert!(refused.contains("on 4 at most; choose 4, or"), "{refused}");
        let evaluate = spec(json!({"evaluate": {"model": "m", "dataset": "d"}}));
        let refused = said_of(&evaluate, &asking(2, None), &four).unwrap();
        assert!(refused.contains("the worker computes such a job on 1 at most; choose 1, or"), "{refused}");
        let own_worker = offer(&[80; 8]);
        assert_eq!(said_of(&evaluate, &asking(2, None), &own_worker), None);
        let few = |steps| {
            spec(json!({"finetune": {
                "model": "m", "dataset": "d", "per_device_train_batch_size": 1, "gradient_accumulation_steps": steps,
            }}))
        };
        let refused = said_of(&few(3), &asking(4, None), &four).unwrap();
        assert!(refused.contains("4 GPUs need as many rows in a step, and it has 3"), "{refused}");
        assert!(refused.contains("choose at most 3, or raise gradient_accumulation_steps to 4"), "{refused}");
        assert_eq!(said_of(&few(4), &asking(4, None), &four), None);
        let by_default = decided(&LimitArgs::default(), &few(3), DefaultGpus::Count(4), Some(&four));
        assert_eq!(by_default.gpus, Some(3), "a job that does not say is not refused for it");
    }

    #[test]
    fn what_the_host_never_has_is_refused_with_what_would_be_accepted() {
        let two = offer(&[80, 80]);
        assert_eq!(said(&asking(2, None), &two), None, "what other programs hold they may give back");
        assert_eq!(said(&asking(1, Some(80 << 10)), &two), None);
        let three = said(&asking(3, None), &two).unwrap();
        assert!(three.contains("jobs may use 2 GPUs on this host"), "{three}");
        assert!(three.contains("choose at most 2, or set gpus to 0 to compute on the CPU"), "{three}");
        let large = said(&asking(1, Some(81 << 10)), &two).unwrap();
        assert!(large.contains("the largest GPU has 80.0 GiB"), "{large}");
        assert!(large.contains("choose at most 81920, or set gpus to 0"), "{large}");
        let none = said(&asking(1, None), &offer(&[])).unwrap();
        assert!(none.contains("this host has no GPU for jobs") && none.contains("set gpus to 0"), "{none}");
        let barred =
            said(&asking(1, None), &Offer { barrier: Some("the worker image says so".into()), ..two }).unwrap();
        assert!(barred.contains("the worker image says so"), "{barred}");
        assert_eq!(said(&asking(0, None), &offer(&[])), None);
    }

    #[test]
    fn a_job_with_some_of_the_gpus_gets_as_much_of_the_cpus_and_one_at_least() {
        let four = offer(&[80; 4]);
        let cpus = |asked: &LimitArgs, all| cpu_millis(asked, all, Some(&four));
        assert_eq!(cpus(&asking(1, None), 16_000), 4_000);
        assert_eq!(cpus(&asking(1, Some(40 << 10)), 16_000), 2_000);
        assert_eq!(cpus(&asking(1, None), 2_000), 1_000);
        assert_eq!(cpus(&asking(0, None), 16_000), 16_000);
        assert_eq!(cpu_millis(&asking(1, None), 500, None), 500);
    }
}
