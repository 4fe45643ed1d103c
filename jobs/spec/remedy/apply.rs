//! What a remedy comes to for a certain job.

use serde_json::{Map, Value, json};

use super::{Edit, Meaning, Remedy, To};
use crate::change::Change;
use crate::job::{JobArgs, JobSpec};
use crate::limits::{LimitArgs, Limits};
use crate::recipe::DEFAULT_MAX_SEQ_LENGTH;

const MIB: u64 = 1 << 20;
const LIMITS: &str = "limits.";

/// A job with a remedy worked in.
#[derive(Debug, Clone, PartialEq)]
pub struct Remedied {
    pub job: JobArgs,
    /// All that were in force, so that nothing is lowered that was not asked for.
    pub limits: LimitArgs,
    /// What is different; nothing for a remedy that leaves the job as it is.
    pub changes: Vec<Change>,
    pub meaning: Meaning,
}

/// A remedy that has no application to a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("a job of kind {kind} has no option `{option}`; {error}")]
    Unknown { kind: &'static str, option: String, error: String },
    #[error("`{option}` is {value}, which cannot be multiplied; name the value that it is to have")]
    NotANumber { option: String, value: String },
    #[error("the failure's numbers do not say what `{option}` must be; name the value that it is to have")]
    NoNumbers { option: String },
    #[error("the job is so already")]
    Nothing,
}

impl Remedy {
    /// The job with the remedy worked in. `fit` knows what the failure's numbers say that an option must be.
    ///
    /// # Errors
    /// If the job has no such option, or none that the remedy would change. Whether the values are within range is for
    /// the parser of the options to say.
    pub fn apply(
        &self,
        spec: &JobSpec,
        limits: &Limits,
        fit: impl Fn(&str) -> Option<Value>,
    ) -> Result<Remedied, Unfit> {
        let (mut options, mut limits) = (options_of(spec), document(&limit_args(limits)));
        let mut changes = Vec::new();
        let edits = if let Self::Change(edits) = self { edits.as_slice() } else { &[] };
        for Edit { option, to } in edits {
            let (values, name) = match option.strip_prefix(LIMITS) {
                Some(name) => (&mut limits, name),
                None => (&mut options, option.as_str()),
            };
            let mut before = values.get(name).cloned().unwrap_or_default();
            // What rows are cut to where nobody says; the model may take less.
            if option == "max_seq_length" && matches!(to, To::Scale(_)) && before.is_null() {
                before = DEFAULT_MAX_SEQ_LENGTH.into();
            }
            let now = match to {
                To::Set(value) => value.clone(),
                To::Default => Value::Null,
                To::Fit => fit(option).ok_or_else(|| Unfit::NoNumbers { option: option.clone() })?,
                To::Scale(factor) => scaled(&before, *factor)
                    .ok_or_else(|| Unfit::NotANumber { option: option.clone(), value: before.to_string() })?,
            };
            if same(&before, &now) {
                continue;
            }
            match &now {
                Value::Null => values.remove(name),
                value => values.insert(name.to_owned(), value.clone()),
            };
            changes.push(Change { name: option.clone(), before, now });
        }
        if changes.is_empty() && !edits.is_empty() {
            return Err(Unfit::Nothing);
        }
        let meaning = Meaning::of(spec, &changes);
        let job = parsed(spec, json!({ spec.kind(): options }), edits)?;
        let limits = parsed(spec, Value::Object(limits), edits)?;
        // A default that was written out is no other job without it.
        let of_options = !edits.is_empty() && edits.iter().all(|edit| !edit.option.starts_with(LIMITS));
        if of_options && JobArgs::clone(&job).parse().is_ok_and(|now| now == *spec) {
            return Err(Unfit::Nothing);
        }
        Ok(Remedied { job, limits, changes, meaning })
    }
}

/// The limits that are in force, as somebody would ask for them.
#[must_use]
pub fn limit_args(limits: &Limits) -> LimitArgs {
    let seconds = |ms: i64| u64::try_from(ms).unwrap_or_default().div_ceil(1000);
    LimitArgs {
        memory_mib: Some(limits.memory_bytes / MIB),
        cpus: Some(f64::from(limits.cpu_millis) / 1e3),
        disk_mib: Some(limits.disk_bytes / MIB),
        time_limit_s: Some(seconds(limits.time_ms)),
        silence_limit_s: Some(seconds(limits.silence_ms)),
        max_attempts: Some(limits.max_attempts),
        gpus: Some(limits.gpus),
        gpu_memory_mib: limits.gpu_memory_bytes.map(|bytes| bytes >> 20),
    }
}

/// The job's options by their names, as they were parsed: with their defaults.
fn options_of(spec: &JobSpec) -> Map<String, Value> {
    let mut document = document(spec);
    match document.remove(spec.kind()) {
        Some(Value::Object(options)) => options,
        _ => Map::new(),
    }
}

/// Plain data always serializes.
fn document<T: serde::Serialize>(value: &T) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

fn parsed<T: serde::de::DeserializeOwned>(spec: &JobSpec, document: Value, edits: &[Edit]) -> Result<T, Unfit> {
    serde_json::from_value(document).map_err(|error| {
        let names: Vec<_> = edits.iter().map(|edit| edit.option.as_str()).collect();
        Unfit::Unknown { kind: spec.kind(), option: names.join(", "), error: error.to_string() }
    })
}

/// A number, whatever JSON writes it as.
pub(super) fn number(value: &Value) -> Option<f64> {
    value.as_f64()
}

/// Whole numbers stay whole: rounded down when they shrink, but not below 1, and up when they grow.
fn scaled(before: &Value, factor: f64) -> Option<Value> {
    let value = number(before)? * factor;
    if before.is_u64() {
        let whole = if factor < 1.0 { value.floor().max(1.0) } else { value.ceil() };
        return Some((whole as u64).into());
    }
    // What people read has not sixteen digits.
    serde_json::Number::from_f64(format!("{value:.12e}").parse().ok()?).map(Value::Number)
}

fn same(before: &Value, now: &Value) -> bool {
    before == now || number(before).is_some_and(|value| number(now) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finetune::FinetuneArgs;
    use crate::quantize::{QuantType, QuantizeArgs};

    fn spec() -> JobSpec {
        let args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
        JobArgs::Finetune(args).parse().unwrap()
    }

    fn limits() -> Limits {
        Limits {
            memory_bytes: 512 * MIB,
            cpu_millis: 1500,
            pids: 64,
            disk_bytes: 100 * MIB,
            time_ms: 60_000,
            silence_ms: 10_500,
            grace_ms: 1000,
            max_attempts: 3,
            gpus: 0,
            gpu_memory_bytes: None,
        }
    }

    fn apply(spec: &JobSpec, remedy: &str) -> Result<Remedied, Unfit> {
        let remedy: Remedy = remedy.parse().unwrap();
        remedy.apply(spec, &limits(), |option| (option == "limits.memory_mib").then(|| 1234.into()))
    }

    fn change(name: &str, before: impl Into<Value>, now: impl Into<Value>) -> Change {
        Change { name: name.into(), before: before.into(), now: now.into() }
    }

    #[test]
    fn half_the_batch_and_twice_the_accumulation_learn_the_same() {
        let both = apply(&spec(), "per_device_train_batch_size * 0.5, gradient_accumulation_steps * 2").unwrap();
        assert_eq!(
            both.changes,
            [change("per_device_train_batch_size", 4, 2), change("gradient_accumulation_steps", 1, 2)]
        );
        assert_eq!(both.meaning, Meaning::Same);
        assert_eq!(both.job.parse().unwrap().recipe().unwrap().per_device_train_batch_size, 2);
        assert_eq!(both.limits, limit_args(&limits()), "what was in force stays in force");
        let one = apply(&spec(), "per_device_train_batch_size * 0.5").unwrap();
        assert_eq!(one.meaning, Meaning::Different, "a step learns from fewer rows");
    }

    #[test]
    fn rows_that_are_compared_are_not_the_same_in_smaller_batches() {
        let args = json!({"finetune": {"model": "m", "dataset": "d", "objective": "kto"}});
        let spec = serde_json::from_value::<JobArgs>(args).unwrap().parse().unwrap();
        let both = apply(&spec, "per_device_train_batch_size * 0.5, gradient_accumulation_steps * 2").unwrap();
        assert_eq!(both.meaning, Meaning::Different);
    }

    #[test]
    fn limits_are_changed_by_their_names_and_units() {
        let more = apply(&spec(), "limits.memory_mib = fit, limits.silence_limit_s * 4").unwrap();
        assert_eq!(more.changes, [change("limits.memory_mib", 512, 1234), change("limits.silence_limit_s", 11, 44)]);
        assert_eq!((more.limits.memory_mib, more.limits.cpus, more.meaning), (Some(1234), Some(1.5), Meaning::Same));
    }

    #[test]
    fn the_gravest_change_decides_what_becomes_of_the_meaning() {
        let of = |remedy: &str| apply(&spec(), remedy).unwrap().meaning;
        assert_eq!(of("gradient_checkpointing = true"), Meaning::Same);
        assert_eq!(of("gradient_checkpointing = true, dtype = \"bf16\""), Meaning::Close);
        assert_eq!(of("method = \"qlora\""), Meaning::Close);
        assert_eq!(of("method = \"dora\""), Meaning::Different);
        assert_eq!(of("dtype = \"bf16\", learning_rate * 0.1"), Meaning::Different);
        assert_eq!(of("try again"), Meaning::Same);
        assert_eq!(of("outside: free_disk"), Meaning::Same);
    }

    #[test]
    fn a_remedy_that_has_no_application_says_why() {
        let error = |remedy: &str| apply(&spec(), remedy).unwrap_err().to_string();
        assert!(error("quant_type = \"Q8_0\"").contains("a job of kind finetune has no option `quant_type`"));
        assert!(error("limits.memory = 4").contains("no option `limits.memory`"));
        assert!(error("model * 2").contains("`model` is \"m\", which cannot be multiplied"));
        assert!(error("learning_rate = fit").contains("numbers do not say what `learning_rate` must be"));
        assert_eq!(apply(&spec(), "gradient_checkpointing = false"), Err(Unfit::Nothing));
        assert_eq!(apply(&spec(), "learning_rate = default"), Err(Unfit::Nothing));
        assert_eq!(
            apply(&spec(), "per_device_train_batch_size * 0.9"),
            Ok(apply(&spec(), "per_device_train_batch_size = 3").unwrap())
        );
    }

    #[test]
    fn numbers_are_written_as_people_read_them() {
        let lower = apply(&spec(), "learning_rate * 0.1").unwrap();
        assert_eq!(lower.changes, [change("learning_rate", 2e-4, 2e-5)]);
        assert_eq!(apply(&spec(), "max_seq_length * 0.5").unwrap().changes, [change("max_seq_length", 512, 256)]);
    }

    #[test]
    fn every_kind_of_job_can_be_taken_apart_and_put_together() {
        let quantize = QuantizeArgs { model: "m".into(), quant_type: Some(QuantType::Q8_0), ..QuantizeArgs::default() };
        for args in [
            JobArgs::Quantize(quantize),
            serde_json::from_value(json!({"train": {"dataset": "d"}})).unwrap(),
            serde_json::from_value(json!({"evaluate": {"model": "m", "dataset": "d"}})).unwrap(),
        ] {
            let spec = args.parse().unwrap();
            let again = Remedy::TryAgain.apply(&spec, &limits(), |_| None).unwrap();
            assert_eq!(again.job.parse().unwrap().kind(), spec.kind());
        }
    }
}
