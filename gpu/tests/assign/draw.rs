//! Hosts and jobs of all kinds.

use std::ops::Range;

use drydock_gpu::assign::{Capacity, GpuNeed, Host, HostUnit, Need, Policy, Waiting};
use drydock_gpu::inventory::Unit;
use drydock_spec::{JobId, Owner, Priority};
use proptest::prelude::*;

use crate::yard::Coming;

pub(crate) const OWNERS: usize = 4;

/// A job, in numbers.
#[derive(Debug, Clone)]
pub(crate) struct Drawn {
    owner: usize,
    priority: i8,
    after_ms: i64,
    cpu_millis: u64,
    memory_bytes: u64,
    gpus: GpuNeed,
    longest_ms: i64,
    /// How much of that it takes, in thousandths.
    part: i64,
}

impl Drawn {
    pub(crate) fn of_nobody_special(self) -> Self {
        Self { owner: 0, priority: 0, ..self }
    }
}

pub(crate) fn policy() -> Policy {
    Policy { half_life_ms: 3_600_000, patience_ms: 4 * 3_600_000 }
}

/// Alike GPUs of 80 bytes, with CPUs and memory enough.
pub(crate) fn gpus(count: usize) -> Host {
    let units = (0..count).map(|at| unit(&format!("GPU-{at}"), &format!("GPU-{at}"), "a", 80)).collect();
    Host { capacity: Capacity { cpu_millis: 1 << 20, memory_bytes: 1 << 20 }, disk_bytes: 100, units, sharers: 3 }
}

fn unit(uuid: &str, gpu: &str, name: &str, memory_bytes: u64) -> HostUnit {
    let unit = Unit { uuid: uuid.into(), gpu: gpu.into(), memory_bytes };
    HostUnit { unit, name: name.into(), foreign_bytes: 0 }
}

/// A host with up to four GPUs of one kind and two of another, up to three slices, and other programs on some.
pub(crate) fn host() -> impl Strategy<Value = Host> {
    let foreign = proptest::collection::vec(prop_oneof![4 => Just(0), 1 => 0..40u64], 9);
    (0..5usize, 0..3usize, 0..4usize, foreign).prop_map(|(large, small, slices, foreign)| {
        let mut host = gpus(large);
        host.capacity = Capacity { cpu_millis: 8_000, memory_bytes: 1000 };
        host.units.extend((4..4 + small).map(|at| unit(&format!("GPU-{at}"), &format!("GPU-{at}"), "b", 40)));
        host.units.extend((0..slices).map(|at| unit(&format!("MIG-{at}"), "GPU-9", "slice", [10, 20, 40][at])));
        for (of, bytes) in host.units.iter_mut().zip(foreign) {
            of.foreign_bytes = bytes.min(of.unit.memory_bytes);
        }
        host
    })
}

pub(crate) fn jobs(count: Range<usize>) -> impl Strategy<Value = Vec<Drawn>> {
    let gpus = prop_oneof![
        2 => Just(GpuNeed::Nothing),
        4 => (1..4u32, 0..60u64).prop_map(|(count, least_bytes)| GpuNeed::Own { count, least_bytes }),
        2 => (1..60u64).prop_map(|bytes| GpuNeed::Share { bytes }),
    ];
    let drawn =
        (0..OWNERS, -1..2i8, 0..1_200_000i64, 100..5_000u64, 1..600u64, gpus, 60_000..7_200_000i64, 50..1001i64);
    let drawn = drawn.prop_map(|(owner, priority, after_ms, cpu_millis, memory_bytes, gpus, longest_ms, part)| Drawn {
        owner,
        priority,
        after_ms,
        cpu_millis,
        memory_bytes,
        gpus,
        longest_ms,
        part,
    });
    proptest::collection::vec(drawn, count)
}

/// The jobs one after the other.
pub(crate) fn coming(jobs: Vec<Drawn>) -> Vec<Coming> {
    let mut now = 0;
    let one = |(n, drawn): (usize, Drawn)| {
        now += drawn.after_ms;
        let capacity = Capacity { cpu_millis: drawn.cpu_millis, memory_bytes: drawn.memory_bytes };
        Coming {
            waiting: Waiting {
                job: JobId::from_parts(0, n as u128),
                owner: Owner(drawn.owner.to_string()),
                priority: Priority::new(drawn.priority).unwrap(),
                position: n as i64,
                submitted_ms: now,
                need: Need { capacity, disk_bytes: 1, gpus: drawn.gpus },
                longest_ms: drawn.longest_ms,
                expected_ms: None,
            },
            lasts_ms: (drawn.longest_ms * drawn.part / 1000).max(1),
        }
    };
    jobs.into_iter().enumerate().map(one).collect()
}
