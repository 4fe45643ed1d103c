//! What an attempt may use.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::option::{Complaints, InvalidOption, InvalidOptions};

/// Limits as somebody asked for them; what is left out comes from the plan and the gateway's configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitArgs {
    /// Memory in MiB, 64 or more. Default: what the plan estimates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// CPUs, 0.1 to 1024. Default: as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// MiB for the job's output, 16 or more. Default: as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
    /// Seconds after which an attempt is stopped, 30 days at most. Default: as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_limit_s: Option<u64>,
    /// Seconds without a report after which an attempt is stuck, a day at most. Default: as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence_limit_s: Option<u64>,
    /// Attempts at most, 1 to 10; only failures of the infrastructure are tried again. Default: as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// GPUs or MIG slices, 0 to 16; 0 computes on the CPU. Default: as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// MiB of a GPU that the job shares, 256 or more. Default: GPUs of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory_mib: Option<u64>,
}

impl LimitArgs {
    /// Checks the ranges that hold on every host; all complaints come at once.
    pub fn check(&self) -> Result<(), InvalidOptions> {
        let mut wrong = Complaints::default();
        if let Some(memory) = self.memory_mib {
            wrong.within("memory_mib", memory, 64, 16 << 20);
        }
        if let Some(cpus) = self.cpus {
            wrong.within("cpus", cpus, 0.1, 1024.0);
        }
        if let Some(disk) = self.disk_mib {
            wrong.within("disk_mib", disk, 16, 16 << 20);
        }
        if let Some(time) = self.time_limit_s {
            wrong.within("time_limit_s", time, 1, 30 * 24 * 3600);
        }
        if let Some(silence) = self.silence_limit_s {
            wrong.within("silence_limit_s", silence, 1, 24 * 3600);
        }
        if let Some(attempts) = self.max_attempts {
            wrong.within("max_attempts", attempts, 1, 10);
        }
        if let Some(gpus) = self.gpus {
            wrong.within("gpus", gpus, 0, 16);
        }
        if let Some(memory) = self.gpu_memory_mib {
            wrong.within("gpu_memory_mib", memory, 256, 16 << 20);
            wrong.require(self.gpus.is_none_or(|gpus| gpus == 1), || {
                let problem = "only a job with one GPU shares it";
                InvalidOption::new("gpu_memory_mib", memory, problem, "leave it out, or set gpus to 1")
            });
        }
        wrong.into_result(())
    }
}

/// The limits in force for a job's attempts, every one of them set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Memory, in bytes; there is no swap.
    pub memory_bytes: u64,
    /// CPU time, in thousandths of a CPU.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub pids: u32,
    /// Room in the output folder, in bytes.
    pub disk_bytes: u64,
    /// Time from the start of an attempt to its end, in milliseconds.
    pub time_ms: i64,
    /// Time between two reports, in milliseconds.
    pub silence_ms: i64,
    /// Time from SIGTERM to SIGKILL, in milliseconds.
    pub grace_ms: i64,
    /// Attempts, the first one included.
    pub max_attempts: u32,
    /// GPUs or MIG slices; 0 computes on the CPU.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gpus: u32,
    /// Memory of the one GPU that the job shares with others, in bytes; nothing where its GPUs are its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory_bytes: Option<u64>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}
