//! What an attempt holds of its GPUs: pure rules over a look at them.

use drydock_gpu::inventory::Inventory;
use drydock_spec::report::GpuReading;
use drydock_spec::{Attempt, JobId};

/// How the units that an attempt has are now. `before` is what was read of them last: the most that was ever held is
/// carried on in it. A unit that the look knows nothing of is not there.
#[must_use]
pub fn readings(
    look: &Inventory,
    units: &[String],
    (job, attempt): (JobId, Attempt),
    before: &[GpuReading],
) -> Vec<GpuReading> {
    let reading = |unit: &String| {
        let gpu = look.gpu_of(unit).filter(|gpu| !gpu.lost)?;
        // The driver counts processes by GPU, so those on a slice are not told from those on its other slices.
        let is_whole = gpu.uuid == *unit;
        let own = gpu.processes.iter().filter(|process| process.job == Some(job) && process.attempt == Some(attempt));
        let own: Option<u64> = own.map(|process| process.memory_bytes).sum();
        let own = own.filter(|bytes| is_whole && *bytes > 0);
        let memory_used_bytes = own.unwrap_or_else(|| gpu.memory_of(unit).used_bytes());
        let peak = before.iter().find(|reading| reading.uuid == *unit).map_or(0, |reading| reading.memory_peak_bytes);
        Some(GpuReading {
            uuid: unit.clone(),
            memory_used_bytes,
            memory_peak_bytes: peak.max(memory_used_bytes),
            utilization_percent: gpu.utilization.filter(|_| is_whole).map(|of| of.gpu_percent),
            power_watts: gpu.power_watts,
        })
    };
    units.iter().filter_map(reading).collect()
}

/// The most memory of one of its GPUs that an attempt was seen to hold, in bytes.
#[must_use]
pub fn peak_gpu_bytes(readings: &[GpuReading]) -> Option<u64> {
    readings.iter().map(|reading| reading.memory_peak_bytes).max()
}

#[cfg(test)]
mod tests {
    use drydock_gpu::inventory::{Gpu, Memory, Process, Slice, Utilization};

    use super::*;

    fn own() -> JobId {
        JobId::from_parts(1, 1)
    }

    fn process(job: JobId, memory_bytes: Option<u64>) -> Process {
        Process { memory_bytes, job: Some(job), attempt: Some(Attempt::FIRST), ..Process::default() }
    }

    /// A GPU of 100 bytes of which 60 are held.
    fn gpu(processes: Vec<Process>) -> Gpu {
        Gpu {
            uuid: "GPU-0".into(),
            memory: Memory { total_bytes: 100, reserved_bytes: 10, free_bytes: 30 },
            utilization: Some(Utilization { gpu_percent: 97, memory_percent: 40 }),
            power_watts: Some(300.0),
            processes,
            ..Gpu::default()
        }
    }

    fn read(gpu: Gpu, unit: &str, before: &[GpuReading]) -> Vec<GpuReading> {
        let look = Inventory { gpus: vec![gpu], ..Inventory::default() };
        readings(&look, &[unit.to_owned()], (own(), Attempt::FIRST), before)
    }

    #[test]
    fn an_attempt_holds_what_its_processes_hold_and_where_nobody_tells_all_that_is_held() {
        let other = JobId::from_parts(1, 2);
        let shared = vec![process(own(), Some(7)), process(other, Some(40)), process(own(), Some(5))];
        let reading = &read(gpu(shared), "GPU-0", &[])[0];
        assert_eq!((reading.memory_used_bytes, reading.memory_peak_bytes), (12, 12));
        assert_eq!((reading.utilization_percent, reading.power_watts), (Some(97), Some(300.0)));
        for untold in [vec![], vec![process(own(), None)], vec![process(other, Some(40))]] {
            assert_eq!(read(gpu(untold), "GPU-0", &[])[0].memory_used_bytes, 60);
        }
    }

    #[test]
    fn the_peak_stays_when_memory_is_given_back() {
        let high = read(gpu(vec![process(own(), Some(50))]), "GPU-0", &[]);
        let low = read(gpu(vec![process(own(), Some(5))]), "GPU-0", &high);
        assert_eq!((low[0].memory_used_bytes, low[0].memory_peak_bytes), (5, 50));
        assert_eq!((peak_gpu_bytes(&low), peak_gpu_bytes(&[])), (Some(50), None));
    }

    #[test]
    fn of_a_slice_its_own_memory_counts_and_its_use_is_not_told() {
        let memory = Memory { total_bytes: 20, reserved_bytes: 0, free_bytes: 11 };
        let slices = vec![Slice { uuid: "MIG-0".into(), memory, ..Slice::default() }];
        let divided = Gpu { slices, ..gpu(vec![process(own(), Some(50))]) };
        let reading = &read(divided, "MIG-0", &[])[0];
        assert_eq!((reading.memory_used_bytes, reading.utilization_percent), (9, None));
        assert_eq!(read(Gpu { lost: true, ..gpu(vec![]) }, "GPU-0", &[]), []);
        assert_eq!(read(gpu(vec![]), "GPU-9", &[]), []);
    }
}
