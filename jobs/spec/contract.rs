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
/// The folder with the model's adapter, read-only, where there is one.
pub const ADAPTER_PATH: &str = "/in/adapter";
/// The folder with the models that are measured beside the first, read-only: `0/model`, `0/adapter`, `1/model`, ...
pub const COMPARED_PATH: &str = "/in/compared";
/// The folder with the tokenizer to use, read-only, where a job starts from no model.
pub const TOKENIZER_PATH: &str = "/in/tokenizer";
/// The folder with the checkpoint to go on from, read-only, where there is one.
pub const CHECKPOINT_PATH: &str = "/in/checkpoint";
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
    /// GPUs to compute with; 0 computes on the CPU.
    #[serde(default)]
    pub gpus: u32,
}

/// What is there to read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Inputs {
    /// The model that the job starts from; absent where one is trained from nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelInput>,
    /// Models that are measured beside it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compared: Vec<ModelInput>,
    /// A model folder whose tokenizer is used, where the job starts from no model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// A folder of `.jsonl`, `.json` and `.txt` files, read in the order of their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<PathBuf>,
    /// The same for the held-out rows, where they are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_dataset: Option<PathBuf>,
    /// A folder with a checkpoint of an earlier attempt, to go on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
}

/// A model to read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelInput {
    /// A folder with either one `.gguf` file, or `config.json`, `tokenizer.json` and `*.safetensors`.
    pub path: PathBuf,
    /// What the model calls itself, for configurations and reports.
    pub name: String,
    /// A folder with an adapter over it, in PEFT's form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
}
