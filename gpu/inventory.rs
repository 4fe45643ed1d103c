//! Which GPUs a host has, how they are, what of them is free, and who uses them.
//!
//! One look at all of them is an [`Inventory`]; [`crate::nvml`] takes it, and [`crate::health`] tells from two of them
//! what has befallen a GPU in between.

use drydock_spec::{Attempt, JobId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The host's GPUs, with the software that drives them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Inventory {
    /// The driver's version, such as `580.159.04`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The newest CUDA version that the driver supports, such as `13.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<String>,
    pub gpus: Vec<Gpu>,
    /// Places of GPUs that the driver has lost, and that do not say any more which they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<u32>,
}

/// A GPU. What it does not tell is not there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gpu {
    /// Its place among the host's, from 0; changes when one is added or lost.
    pub index: u32,
    /// Such as `GPU-5a2e...`: what it is known by everywhere.
    pub uuid: String,
    /// Such as `NVIDIA H200`.
    pub name: String,
    /// Compute capability, major and minor, such as 9 and 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<(u32, u32)>,
    pub memory: Memory,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization: Option<Utilization>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<u32>,
    /// What it draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_watts: Option<f64>,
    /// What it may draw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_watts: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecc: Option<Ecc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remapped_rows: Option<RemappedRows>,
    /// Whether it is divided (MIG): then it is to be had in slices only, even where there are none yet.
    #[serde(default, skip_serializing_if = "is_false")]
    pub divided: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<Slice>,
    /// Who holds memory of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Process>,
    /// Whether the driver has lost it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lost: bool,
    /// Why no job gets it, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordoned: Option<String>,
}

/// Memory of a GPU or slice, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    pub total_bytes: u64,
    /// What the driver keeps for itself.
    pub reserved_bytes: u64,
    pub free_bytes: u64,
}

/// Shares of the time since the look before, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Utilization {
    /// In which a kernel ran.
    pub gpu_percent: u32,
    /// In which memory was read or written.
    pub memory_percent: u32,
}

/// Errors of a GPU's memory that its checksums found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ecc {
    pub enabled: bool,
    /// Corrected since the driver was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrected: Option<u64>,
    /// Not to be corrected, since the driver was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncorrected: Option<u64>,
    /// The same since the GPU was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncorrected_ever: Option<u64>,
}

/// Rows of a GPU's memory that were replaced by spare ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RemappedRows {
    /// After errors that could be corrected.
    pub corrected: u32,
    /// After errors that could not.
    pub uncorrected: u32,
    /// Whether rows are to be replaced at the next reset.
    pub pending: bool,
    /// Whether there was nothing left to replace one with.
    pub failed: bool,
}

/// A part of a GPU with memory and processors of its own (MIG).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Slice {
    /// Its place among the GPU's, from 0; there are gaps where others were removed.
    #[serde(skip)]
    pub index: u32,
    /// Numbers of the GPU instance and of the compute instance in it, by which its device files are found.
    #[serde(skip)]
    pub instances: Option<(u32, u32)>,
    /// Such as `MIG-41b3...`.
    pub uuid: String,
    /// Such as `1g.18gb`, where the driver tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    pub memory: Memory,
}

/// A process that computes on a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// As the host counts.
    pub pid: u32,
    /// Of the GPU's memory; the driver does not tell it of every process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The program's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The user that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The container that it runs in, as its engine calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The job whose attempt it is; absent of what is not drydock's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
}

/// What a job can be given: a whole GPU, or a slice of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The GPU's UUID or the slice's.
    pub uuid: String,
    /// The UUID of the GPU that it is, or that it is a slice of.
    pub gpu: String,
    /// What jobs can use of its memory when nobody else does.
    pub memory_bytes: u64,
}

impl Inventory {
    /// Everything that jobs can be given: of a divided GPU its slices, and nothing of one that is cordoned or lost.
    #[must_use]
    pub fn units(&self) -> Vec<Unit> {
        let sound = self.gpus.iter().filter(|gpu| gpu.cordoned.is_none() && !gpu.lost);
        sound.flat_map(Gpu::units).collect()
    }

    /// The GPU that this is, or that it is a slice of.
    #[must_use]
    pub fn gpu_of(&self, unit: &str) -> Option<&Gpu> {
        let has = |gpu: &&Gpu| gpu.uuid == unit || gpu.slices.iter().any(|slice| slice.uuid == unit);
        self.gpus.iter().find(has)
    }
}

impl Gpu {
    fn units(&self) -> Vec<Unit> {
        let unit = |uuid: &str, memory: Memory| Unit {
            uuid: uuid.to_owned(),
            gpu: self.uuid.clone(),
            memory_bytes: memory.total_bytes.saturating_sub(memory.reserved_bytes),
        };
        if self.divided || !self.slices.is_empty() {
            return self.slices.iter().map(|slice| unit(&slice.uuid, slice.memory)).collect();
        }
        vec![unit(&self.uuid, self.memory)]
    }

    /// Memory of the unit, which is this GPU or a slice of it.
    #[must_use]
    pub fn memory_of(&self, unit: &str) -> Memory {
        self.slices.iter().find(|slice| slice.uuid == unit).map_or(self.memory, |slice| slice.memory)
    }

    /// What to call it in a sentence.
    #[must_use]
    pub fn called(&self) -> String {
        format!("{} ({})", self.name, self.uuid)
    }
}

impl Memory {
    /// Bytes that somebody holds.
    #[must_use]
    pub fn used_bytes(self) -> u64 {
        self.total_bytes.saturating_sub(self.reserved_bytes).saturating_sub(self.free_bytes)
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(index: u32) -> Gpu {
        let memory = Memory { total_bytes: 100, reserved_bytes: 10, free_bytes: 40 };
        Gpu { index, uuid: format!("GPU-{index}"), name: "NVIDIA H200".into(), memory, ..Gpu::default() }
    }

    #[test]
    fn of_a_divided_gpu_its_slices_are_given_and_nothing_of_one_that_is_cordoned_or_lost() {
        let slice = |uuid: &str| Slice {
            uuid: uuid.into(),
            memory: Memory { total_bytes: 30, ..Memory::default() },
            ..Slice::default()
        };
        let divided = Gpu { slices: vec![slice("MIG-a"), slice("MIG-b")], ..gpu(1) };
        let cordoned = Gpu { cordoned: Some("has told of Xid 79".into()), ..gpu(2) };
        let lost = Gpu { lost: true, ..gpu(3) };
        let divided_into_nothing = Gpu { divided: true, ..gpu(4) };
        let gpus = vec![gpu(0), divided, cordoned, lost, divided_into_nothing];
        let inventory = Inventory { gpus, ..Inventory::default() };
        let units = inventory.units();
        let given: Vec<_> = units.iter().map(|unit| (&*unit.uuid, &*unit.gpu, unit.memory_bytes)).collect();
        assert_eq!(given, [("GPU-0", "GPU-0", 90), ("MIG-a", "GPU-1", 30), ("MIG-b", "GPU-1", 30)]);
        let of = |unit: &str| inventory.gpu_of(unit).map(|gpu| (gpu.index, gpu.memory_of(unit).total_bytes));
        assert_eq!((of("MIG-b"), of("GPU-1"), of("GPU-9")), (Some((1, 30)), Some((1, 100)), None));
    }

    #[test]
    fn what_is_used_is_neither_free_nor_the_drivers() {
        assert_eq!(gpu(0).memory.used_bytes(), 50);
    }
}
