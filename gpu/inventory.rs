//! Which GPUs a host has, what of them is free, and who uses them.

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
    /// Slices, where the GPU is divided (MIG); then it is not to be had as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<Slice>,
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

/// A part of a GPU with memory and processors of its own (MIG).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Slice {
    /// Such as `MIG-41b3...`.
    pub uuid: String,
    /// Such as `1g.18gb`, where the driver tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    pub memory: Memory,
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
    /// Everything that jobs can be given: not what is cordoned, and of a divided GPU its slices.
    #[must_use]
    pub fn units(&self) -> Vec<Unit> {
        let sound = self.gpus.iter().filter(|gpu| gpu.cordoned.is_none());
        sound.flat_map(Gpu::units).collect()
    }
}

impl Gpu {
    fn units(&self) -> Vec<Unit> {
        let unit = |uuid: &str, memory: Memory| Unit {
            uuid: uuid.to_owned(),
            gpu: self.uuid.clone(),
            memory_bytes: memory.total_bytes.saturating_sub(memory.reserved_bytes),
        };
        match self.slices.as_slice() {
            [] => vec![unit(&self.uuid, self.memory)],
            slices => slices.iter().map(|slice| unit(&slice.uuid, slice.memory)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(index: u32) -> Gpu {
        let memory = Memory { total_bytes: 100, reserved_bytes: 10, free_bytes: 40 };
        Gpu { index, uuid: format!("GPU-{index}"), name: "NVIDIA H200".into(), memory, ..Gpu::default() }
    }

    #[test]
    fn of_a_divided_gpu_its_slices_are_given_and_nothing_of_one_that_is_cordoned() {
        let slice = |uuid: &str| Slice {
            uuid: uuid.into(),
            profile: None,
            memory: Memory { total_bytes: 30, ..Memory::default() },
        };
        let divided = Gpu { slices: vec![slice("MIG-a"), slice("MIG-b")], ..gpu(1) };
        let cordoned = Gpu { cordoned: Some("has told of Xid 79".into()), ..gpu(2) };
        let units = Inventory { gpus: vec![gpu(0), divided, cordoned], ..Inventory::default() }.units();
        let given: Vec<_> = units.iter().map(|unit| (&*unit.uuid, &*unit.gpu, unit.memory_bytes)).collect();
        assert_eq!(given, [("GPU-0", "GPU-0", 90), ("MIG-a", "GPU-1", 30), ("MIG-b", "GPU-1", 30)]);
    }
}
