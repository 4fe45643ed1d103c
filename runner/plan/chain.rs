//! Whether the host's disk has room for a job and all those that it waits for: pure rules.

use drydock_spec::finetune::FinetuneSpec;
use drydock_spec::{JobId, JobSpec, Limits};

use super::needs::Needs;
use crate::blobs::size;
use crate::store::Job;

const MIB: u64 = 1 << 20;

/// A job that this one waits for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Link {
    pub(super) job: JobId,
    /// In a few words.
    pub(super) about: String,
    /// What its plan says that it writes; 0 where that was not kept.
    pub(super) disk_bytes: u64,
    /// Whether this job reads a whole model of it where an adapter would do for whoever can work it in.
    pub(super) merges: bool,
}

/// Room on the disk of the state folder, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) free: u64,
    /// With less, no job starts.
    pub(super) kept: u64,
}

impl Link {
    /// `is_read`: by this job itself, and not by another one that it waits for.
    pub(super) fn of(job: &Job, is_read: bool) -> Self {
        let merges = |spec: &FinetuneSpec| spec.method.has_adapter() && spec.keep.merged();
        Self {
            job: job.id,
            about: job.spec.about(),
            disk_bytes: job
                .estimate
                .as_ref()
                .map_or(0, |estimate| estimate.disk_bytes.saturating_add(estimate.download_bytes)),
            merges: is_read && matches!(&job.spec, JobSpec::Finetune(spec) if merges(spec)),
        }
    }
}

/// What is to be said of a job that reads what others have not made yet, when the disk has no room for all of them, or none
/// for this one's limit after them.
pub(super) fn warning(spec: &JobSpec, needs: &Needs, limits: &Limits, before: &[Link], room: Room) -> Option<String> {
    let largest = before.iter().max_by_key(|link| link.disk_bytes)?;
    let earlier = before.iter().map(|link| link.disk_bytes).fold(0, u64::saturating_add);
    let own = needs.estimate.disk_bytes.saturating_add(needs.estimate.download_bytes);
    let (all, left) = (earlier.saturating_add(own), room.free.saturating_sub(room.kept));
    if all > left {
        let ways: Vec<_> = ways(spec, needs, before).into_iter().chain(["free disk space".to_owned()]).collect();
        return Some(format!(
            "this job and the {} that it waits for will write about {}, the most of it {} by {}; {} can be written on the \
             disk of the state folder: {}",
            before.len(),
            size(all),
            if own > largest.disk_bytes { size(own) } else { size(largest.disk_bytes) },
            if own > largest.disk_bytes {
                "this one".to_owned()
            } else {
                format!("job {} ({})", largest.job, largest.about)
            },
            size(left),
            ways.join(", or ")
        ));
    }
    let after = room.free.saturating_sub(earlier);
    (limits.disk_bytes > after).then(|| {
        format!(
            "limits.disk_mib = {} is more than the {} that will be free after the {} that this job waits for, so that it \
             will not start; the artifacts need about {}: choose at most {}",
            limits.disk_bytes / MIB,
            size(after),
            before.len(),
            size(needs.estimate.disk_bytes),
            after / MIB
        )
    })
}

/// What would save room.
fn ways(spec: &JobSpec, needs: &Needs, before: &[Link]) -> Vec<String> {
    let takes_adapters = matches!(spec, JobSpec::Quantize(_) | JobSpec::Evaluate(_));
    let merging = before.iter().find(|link| link.merges && takes_adapters);
    let merging = merging.map(|link| {
        let saved = size(needs.model_bytes);
        format!(
            "submit job {} again with keep \"adapter\", which this job works in by itself: about {saved} less",
            link.job
        )
    });
    let own = needs.saving.as_ref().map(|saving| {
        let saved = needs.estimate.disk_bytes.saturating_sub(saving.disk_bytes);
        format!("{}: about {} less", saving.change, size(saved))
    });
    merging.into_iter().chain(own).collect()
}

#[cfg(test)]
mod tests {
    use drydock_gpu::estimate::{self, Part};
    use drydock_spec::{InvalidOption, JobArgs};
    use serde_json::json;

    use super::super::needs::{Saving, Terms};
    use super::*;

    fn spec(job: serde_json::Value) -> JobSpec {
        serde_json::from_value::<JobArgs>(job).unwrap().parse().unwrap()
    }

    fn needs(mib: u64) -> Needs {
        let disk = estimate::Needs::default().with(Part::Artifacts, mib * MIB);
        Needs::new([Default::default(), disk], &Default::default(), Terms::default(), [mib * MIB, 0, 0], |_, _| {
            InvalidOption::new("", "", "", "")
        })
    }

    fn limits(disk_mib: u64) -> Limits {
        let (memory_bytes, cpu_millis, pids, time_ms, silence_ms, grace_ms) = (1, 1, 1, 1, 1, 1);
        let disk_bytes = disk_mib * MIB;
        Limits {
            memory_bytes,
            cpu_millis,
            pids,
            disk_bytes,
            time_ms,
            silence_ms,
            grace_ms,
            max_attempts: 1,
            gpus: 0,
            gpu_memory_bytes: None,
        }
    }

    fn link(mib: u64, merges: bool) -> Link {
        Link { job: JobId::from_parts(1, 1), about: "finetune m on d".into(), disk_bytes: mib * MIB, merges }
    }

    fn room(free_mib: u64) -> Room {
        Room { free: free_mib * MIB, kept: 100 * MIB }
    }

    #[test]
    fn a_chain_needs_room_for_all_that_it_writes() {
        let quantize = spec(json!({"quantize": {"model": "job:x", "quant_type": "Q8_0"}}));
        let needs = needs(150).reading(500 * MIB);
        let said = |free| warning(&quantize, &needs, &limits(150), &[link(500, true)], room(free));
        assert_eq!(said(750), None);
        let expected = format!(
            "this job and the 1 that it waits for will write about 650.0 MiB, the most of it 500.0 MiB by job {} \
             (finetune m on d); 649.0 MiB can be written on the disk of the state folder: submit job {} again with keep \
             \"adapter\", which this job works in by itself: about 500.0 MiB less, or free disk space",
            JobId::from_parts(1, 1),
            JobId::from_parts(1, 1)
        );
        assert_eq!(said(749), Some(expected));
        assert_eq!(warning(&quantize, &needs, &limits(150), &[], room(1)), None, "it is refused or waits by itself");
    }

    #[test]
    fn a_job_can_save_room_of_its_own() {
        let finetune = spec(json!({"finetune": {"model": "job:x", "dataset": "d", "keep": "both"}}));
        let saving = Saving { change: "set keep to \"adapter\"".into(), disk_bytes: 10 * MIB };
        let needs = needs(600).or_less(Some(saving));
        let said = warning(&finetune, &needs, &limits(600), &[link(500, true)], room(900)).unwrap();
        assert!(said.contains("the most of it 600.0 MiB by this one"), "{said}");
        assert!(said.ends_with("set keep to \"adapter\": about 590.0 MiB less, or free disk space"), "{said}");
    }

    #[test]
    fn a_limit_that_will_not_be_free_after_the_others_keeps_the_job_waiting() {
        let quantize = spec(json!({"quantize": {"model": "job:x", "quant_type": "Q8_0"}}));
        let said = |limit| warning(&quantize, &needs(150), &limits(limit), &[link(500, false)], room(1000));
        assert_eq!(said(500), None);
        let expected = "limits.disk_mib = 501 is more than the 500.0 MiB that will be free after the 1 that this job waits \
                        for, so that it will not start; the artifacts need about 150.0 MiB: choose at most 500";
        assert_eq!(said(501).as_deref(), Some(expected));
    }
}
