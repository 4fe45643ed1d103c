//! The host's GPUs, as people and agents see them.

use drydock_gpu::inventory::Gpu;
use drydock_spec::JobId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::store::Cordon;

/// The host's GPUs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GpuList {
    pub gpus: Vec<GpuView>,
    /// Why there are none, where nobody can look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The driver's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The newest CUDA version that the driver supports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<String>,
    /// When they were last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looked_ms: Option<i64>,
    /// Cordons of GPUs that are not there any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<Cordon>,
}

/// A GPU, and who uses it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GpuView {
    #[serde(flatten)]
    pub gpu: Gpu,
    /// Attempts that have it, or slices of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_by: Vec<GpuHolder>,
    /// Processes that are not drydock's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strangers: Option<Strangers>,
    /// Why no job gets it, since when, and who said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordon: Option<Cordon>,
}

/// An attempt that has a GPU or slices of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GpuHolder {
    pub job: JobId,
    pub attempt: u32,
    /// What it has of it, by UUID.
    pub units: Vec<String>,
}

/// Processes on a GPU that are not drydock's. They are left alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Strangers {
    pub processes: u32,
    /// Of the GPU's memory, as far as the driver tells.
    pub memory_bytes: u64,
}

/// Why no job is to get a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CordonGpu {
    /// In words.
    pub reason: String,
}
