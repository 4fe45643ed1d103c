//! A job that is to fail: its model, its rows, what is asked for, and what is done to it afterwards.

use std::collections::BTreeMap;

use drydock_spec::OnFailure;
use serde_json::{Value, json};

use crate::case::Guise;
use crate::damage::Damage;
use crate::harness::model::{self, Size};
use crate::small_hub::Fault;

/// Files by name.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

pub(crate) struct Order {
    /// The model as it is added; damage comes later.
    pub(crate) model: Files,
    pub(crate) rows: String,
    /// The job as the gateway takes it, but for the names of its model and dataset, which are filled in.
    pub(crate) job: Value,
    pub(crate) limits: Value,
    /// What becomes of the stored files once the job is accepted.
    pub(crate) damage: Vec<Damage>,
    /// What is wrong with the hub that the model is on; of the model's own files otherwise.
    pub(crate) hub: Option<Fault>,
    pub(crate) meanwhile: Meanwhile,
    pub(crate) on_failure: OnFailure,
}

/// What happens to a job that is accepted, besides what it does itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    Nothing,
    /// Somebody kills its container once it has spoken.
    Killed,
    /// Another job reads its result, and it is this one that the case is about.
    Awaited,
}

impl Order {
    fn new(guise: Guise, job: Value, limits: Value) -> Self {
        let size = Size { hidden: guise.pick([64, 96]), layers: guise.pick([2, 3]), seed: guise.seed };
        Self {
            model: model::files(size),
            rows: chats(guise.pick([8, 11]), guise.pick(["What is", "How much is"])),
            job,
            limits,
            damage: Vec::new(),
            hub: None,
            meanwhile: Meanwhile::Nothing,
            on_failure: OnFailure::Ask,
        }
    }

    /// A short finetune by the real worker.
    pub(crate) fn finetune(guise: Guise) -> Self {
        let options = json!({
            "max_steps": guise.pick([2, 3]), "lora_r": guise.pick([4, 8]), "learning_rate": 1e-3,
            "max_seq_length": guise.pick([128, 160]), "per_device_train_batch_size": guise.pick([2, 3]),
        });
        Self::new(guise, json!({"finetune": options}), json!({"cpus": 0.5, "max_attempts": 1}))
    }

    /// A quantization by the real worker.
    pub(crate) fn quantize(guise: Guise, options: Value) -> Self {
        Self::new(guise, json!({"quantize": options}), json!({"cpus": 0.5, "max_attempts": 1}))
    }

    /// What the probe is told to do in this stage, or all that it is told: see `tests/probe/worker.rs`.
    pub(crate) fn probe(guise: Guise, ending: &str, stage: &str, about: &str) -> Self {
        let told = match ending.contains(' ') {
            true => ending.to_owned(),
            false => format!("{ending} {} 10 {stage} {about}", guise.pick([2, 5])),
        };
        let limits = json!({
            "cpus": 0.25, "memory_mib": guise.pick([96, 128]), "disk_mib": guise.pick([16, 24]), "max_attempts": 1
        });
        Self::new(guise, json!({"finetune": {"sample_prompts": [told]}}), limits)
    }

    /// Sets an option of the job.
    pub(crate) fn with(mut self, option: &str, value: impl Into<Value>) -> Self {
        let options = self.job.as_object_mut().unwrap().values_mut().next().unwrap();
        options[option] = value.into();
        self
    }

    pub(crate) fn limit(mut self, limit: &str, value: impl Into<Value>) -> Self {
        self.limits[limit] = value.into();
        self
    }

    pub(crate) fn rows(mut self, rows: String) -> Self {
        self.rows = rows;
        self
    }

    pub(crate) fn damaged(mut self, damage: Damage) -> Self {
        self.damage.push(damage);
        self
    }

    pub(crate) fn sized(mut self, size: Size) -> Self {
        self.model = model::files(size);
        self
    }

    /// What fails is mended by drydock itself, in as many attempts.
    pub(crate) fn by_itself(mut self, attempts: u32) -> Self {
        self.on_failure = OnFailure::Auto;
        self.limit("max_attempts", attempts)
    }

    pub(crate) fn meanwhile(mut self, meanwhile: Meanwhile) -> Self {
        self.meanwhile = meanwhile;
        self
    }
}

/// Rows of one question and one answer each.
pub(crate) fn chats(count: usize, question: &str) -> String {
    lines((0..count).map(|n| chat(&format!("{question} {n} and {n}?"), &format!("It is {}.", 2 * n))))
}

pub(crate) fn chat(question: &str, answer: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
}

pub(crate) fn lines(rows: impl IntoIterator<Item = Value>) -> String {
    rows.into_iter().map(|row| format!("{row}\n")).collect()
}
