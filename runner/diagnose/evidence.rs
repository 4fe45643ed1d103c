//! What is known of an attempt that failed, besides why: measured, counted and seen, never guessed from text.

use drydock_gpu::health::GpuFacts;
use drydock_spec::Limits;
use drydock_spec::report::{Metrics, Started};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{End, Ending};
use crate::store::Termination;

/// The facts of a failure.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Evidence {
    /// The worker's exit code, where the engine saw it; above 128 the number of a signal plus 128.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Whether the kernel killed a process of the container for memory.
    pub oom_killed: bool,
    /// Whether the engine, and perhaps the host, was restarted meanwhile.
    pub outage: bool,
    /// Why drydock ended the attempt, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_by_drydock: Option<Termination>,
    /// Whether the worker itself said why it failed.
    pub reported: bool,
    /// Largest resident memory that the worker reported, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_rss_bytes: Option<u64>,
    /// Most memory of one of its GPUs that the host saw the attempt hold, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_peak_bytes: Option<u64>,
    /// The limits in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// The last state of training that the worker reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// From the claim to the end, in milliseconds.
    pub elapsed_ms: i64,
    /// Bytes that were free on the disk of the state folder at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_disk_bytes: Option<u64>,
    /// What became of the host's GPUs, if the worker computed on any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuFacts>,
    pub environment: Environment,
}

/// What the attempt ran on and with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    /// Version of the gateway.
    pub drydock: String,
    /// Name and version of the worker, if it came to say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// `cpu`, or the GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Threads that the worker computed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Instruction sets that its kernels used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Digest of the worker's image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Name and version of the container engine, and of its runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Version of the GPUs' driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Names of the host's GPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
}

impl Evidence {
    /// What an ending shows. What is not of the ending is to be added.
    #[must_use]
    pub fn of(ending: &Ending) -> Self {
        let seen = match &ending.end {
            End::Seen(exit) => Some(exit),
            End::Unseen | End::Gone => None,
        };
        Self {
            exit_code: seen.map(|exit| exit.code),
            oom_killed: seen.is_some_and(|exit| exit.oom_killed),
            outage: ending.outage,
            ended_by_drydock: ending.terminated,
            reported: matches!(ending.last, Some(drydock_spec::Report::Failed(_))),
            peak_rss_bytes: ending.peak_rss_bytes,
            gpu_peak_bytes: ending.gpu_peak_bytes,
            gpus: ending.gpus.gpus.clone(),
            environment: Environment {
                driver: ending.gpus.driver.clone(),
                gpus: ending.gpus.gpus.iter().filter_map(|gpu| gpu.name.clone()).collect(),
                ..Environment::default()
            },
            ..Self::default()
        }
    }
}

impl Environment {
    /// What a worker has said of itself, where it has.
    pub fn worker_said(&mut self, started: Started) {
        self.worker = Some(started.worker);
        self.device = Some(started.device);
        self.threads = Some(started.threads);
        self.features = started.features;
    }
}
