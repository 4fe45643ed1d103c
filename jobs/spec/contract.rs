//! What a container finds inside: the engine-neutral contract between the runner and any worker image.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{Attempt, JobId, TraceId};
use crate::job::JobSpec;

/// The contract's version; a worker refuses one that it does not know.
pub const VERSION: u32 = 1;
/// Where the attempt's spec lies, read-only.
pub const SPEC_PATH: &str = "/job/spec.json";
/// Where reports are appended to.
pub const EVENTS_PATH: &str = "/job/events.jsonl";
/// The folder with the model's files, read-only.
pub const MODEL_PATH: &str = "/in/model";
/// The folder with the dataset's files, read-only.
pub const DATASET_PATH: &str = "/in/dataset";
/// The folder with the held-out dataset's files, read-only, where there is one.
pub const EVAL_DATASET_PATH: &str = "/in/eval_dataset";
/// The folder for artifacts.
pub const OUTPUT_PATH: &str = "/out";

/// Exit code of a worker that has done everything; its last report is `Finished`.
pub const EXIT_FINISHED: i32 = 0;
/// Exit code of a worker that could not do its part and has said so; its last report is `Failed`.
pub const EXIT_FAILED: i32 = 1;
/// Exit code of a worker that was called wrongly or cannot read its spec or write reports: there is no last report.
pub const EXIT_MISUSED: i32 = 2;
/// Exit code of a worker that stopped on SIGTERM; its last report is `Stopped`.
pub const EXIT_STOPPED: i32 = 143;

/// What a worker is told: `drydock-worker run /job/spec.json`. The paths are those inside the container, so that the
/// same worker can be run by hand with paths of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptSpec {
    /// See [`VERSION`].
    pub contract: u32,
    pub job: JobId,
    pub attempt: Attempt,
    pub trace_id: TraceId,
    pub spec: JobSpec,
    pub inputs: Inputs,
    /// Folder that artifacts are written to.
    pub output: PathBuf,
    /// File that reports are appended to.
    pub events: PathBuf,
    /// Threads to compute with.
    pub threads: u32,
}

/// What is there to read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Inputs {
    /// A folder with either one `.gguf` file, or `config.json`, `tokenizer.json` and `*.safetensors`.
    pub model: PathBuf,
    /// What the model calls itself, for the adapter's configuration.
    pub model_name: String,
    /// A folder of `.jsonl` and `.json` files, read in the order of their names.
    pub dataset: PathBuf,
    /// The same for the held-out rows, where they are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_dataset: Option<PathBuf>,
}
