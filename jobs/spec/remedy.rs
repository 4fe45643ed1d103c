//! Remedies: typed changes to a job that may fix a failure.
//!
//! A remedy is written as people would say it, and that text is what it is known by, whichever job it is for:
//!
//! ```text
//! try again
//! gradient_checkpointing = true
//! per_device_train_batch_size * 0.5, gradient_accumulation_steps * 2
//! limits.memory_mib = fit
//! save_steps = default
//! outside: free_disk
//! ```
//!
//! What it comes to for a certain job is found by [`Remedy::apply`].

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

mod apply;
mod meaning;

pub use apply::{Remedied, Unfit, limit_args};
pub use meaning::Meaning;

/// A change to a job that may fix a failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Remedy {
    /// The same again, for what may have been chance.
    TryAgain,
    /// Options or limits have other values; never empty.
    Change(Vec<Edit>),
    /// Something is to be done outside the job first; then the same again.
    Outside(Action),
}

/// Another value for an option, or for a limit by the name `limits.…`.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    pub option: String,
    pub to: To,
}

/// What an option becomes.
#[derive(Debug, Clone, PartialEq)]
pub enum To {
    /// This value.
    Set(Value),
    /// So many times what it is: `* 0.5` halves it. Whole numbers stay whole, and at least 1.
    Scale(f64),
    /// What the numbers of the failure say is needed.
    Fit,
    /// What it is where nobody names it.
    Default,
}

macro_rules! actions {
    ($($(#[$meta:meta])* $variant:ident = $name:literal, $does:literal;)*) => {
        /// What only people can do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Action { $($(#[$meta])* $variant,)* }

        impl Action {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name, as in the text of a remedy.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What is to be done, for people.
            #[must_use]
            pub fn does(self) -> &'static str {
                match self { $(Self::$variant => $does,)* }
            }
        }
    };
}

actions! {
    MendDataset = "mend_dataset", "mend the rows that the message names and load the dataset again under its name";
    MendModel = "mend_model", "import the model again under its name, from a complete copy";
    ChooseModel = "choose_model", "choose a model of a supported architecture";
    MendInput = "mend_input", "have the job whose result is read succeed first";
    CorrectName = "correct_name", "correct the name or the revision";
    GetAccess = "get_access", "accept the licence on the hub and give drydock a token that may read it";
    FreeDisk = "free_disk", "free disk space on the host, for example with `drydock gc`";
    RaiseTmp = "raise_tmp", "raise sandbox.tmp in the gateway's configuration and start the gateway anew";
    RaisePids = "raise_pids", "raise limits.pids in the gateway's configuration and start the gateway anew";
    BuildImage = "build_image", "build or pull the worker's image; `drydock doctor` says how";
    MendImage = "mend_image", "use a worker image that is made for this host and keeps the container contract";
    MendHost = "mend_host", "run `drydock doctor` on the host and do what it says";
    MendDriver = "mend_driver", "bring the GPU's driver and the worker's CUDA version together";
    AnotherGpu = "another_gpu", "take the GPU out of use and try on another";
    MendWorker = "mend_worker", "report it with the log: the worker does what its sandbox forbids, or is wrong";
}

/// A text that names no remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no remedy: {problem}; write such as `learning_rate * 0.1`, `gradient_checkpointing = true`, \
         `limits.memory_mib = 4096` (several joined by commas), or `try again`"
)]
pub struct InvalidRemedy {
    text: String,
    problem: String,
}

impl Remedy {
    /// One change.
    #[must_use]
    pub fn edit(option: &str, to: To) -> Self {
        Self::Change(vec![Edit { option: option.to_owned(), to }])
    }

    /// What somebody has to do who applies it, where it is not the gateway that can.
    #[must_use]
    pub fn outside(&self) -> Option<Action> {
        match self {
            Self::Outside(action) => Some(*action),
            Self::TryAgain | Self::Change(_) => None,
        }
    }
}

const TRY_AGAIN: &str = "try again";
const OUTSIDE: &str = "outside: ";

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TryAgain => f.write_str(TRY_AGAIN),
            Self::Outside(action) => write!(f, "{OUTSIDE}{}", action.name()),
            Self::Change(edits) => {
                for (at, edit) in edits.iter().enumerate() {
                    write!(f, "{}{edit}", if at > 0 { ", " } else { "" })?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { option, to } = self;
        match to {
            To::Set(value) => write!(f, "{option} = {value}"),
            To::Scale(factor) => write!(f, "{option} * {factor}"),
            To::Fit => write!(f, "{option} = fit"),
            To::Default => write!(f, "{option} = default"),
        }
    }
}

impl FromStr for Remedy {
    type Err = InvalidRemedy;

    fn from_str(text: &str) -> Result<Self, InvalidRemedy> {
        let invalid = |problem: String| InvalidRemedy { text: text.to_owned(), problem };
        let trimmed = text.trim();
        if trimmed == TRY_AGAIN {
            return Ok(Self::TryAgain);
        }
        if let Some(name) = trimmed.strip_prefix(OUTSIDE.trim_end()) {
            let action = Action::ALL.iter().find(|action| action.name() == name.trim());
            return action.copied().map(Self::Outside).ok_or_else(|| {
                let known: Vec<_> = Action::ALL.iter().map(|action| action.name()).collect();
                invalid(format!("outside there is {}", known.join(", ")))
            });
        }
        let mut edits: Vec<Edit> = Vec::new();
        let mut rest = trimmed;
        while !rest.is_empty() {
            let (edit, after) = edit(rest).map_err(&invalid)?;
            if edits.iter().any(|one| one.option == edit.option) {
                return Err(invalid(format!("`{}` is changed twice", edit.option)));
            }
            edits.push(edit);
            rest = match after.strip_prefix(',') {
                Some(more) if !more.trim().is_empty() => more.trim_start(),
                Some(_) => return Err(invalid("something must follow the comma".into())),
                None if after.is_empty() => after,
                None => return Err(invalid(format!("a comma is missing before `{after}`"))),
            };
        }
        if edits.is_empty() { Err(invalid("it is empty".into())) } else { Ok(Self::Change(edits)) }
    }
}

/// The first edit of a text, and what follows it.
fn edit(text: &str) -> Result<(Edit, &str), String> {
    let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let end = text.find(|c| !name(c)).unwrap_or(text.len());
    let (option, rest) = text.split_at(end);
    if option.is_empty() {
        return Err("it does not begin with the name of an option".into());
    }
    let rest = rest.trim_start();
    let Some(given) = rest.strip_prefix(['=', '*']).map(str::trim_start) else {
        return Err(format!("`=` or `*` is missing after `{option}`"));
    };
    let option = option.to_owned();
    for (word, to) in [("fit", To::Fit), ("default", To::Default)] {
        if let Some(after) = given.strip_prefix(word)
            && rest.starts_with('=')
            && !after.starts_with(name)
        {
            return Ok((Edit { option, to }, after.trim_start()));
        }
    }
    let mut values = serde_json::Deserializer::from_str(given).into_iter::<Value>();
    let value = match values.next() {
        Some(Ok(value)) => value,
        Some(Err(_)) | None => return Err(format!("what `{option}` becomes is not a JSON value (texts need quotes)")),
    };
    let after = given[values.byte_offset()..].trim_start();
    if rest.starts_with('=') {
        return Ok((Edit { option, to: To::Set(value) }, after));
    }
    match value.as_f64() {
        Some(factor) if factor.is_finite() && factor > 0.0 => Ok((Edit { option, to: To::Scale(factor) }, after)),
        _ => Err(format!("`{option}` can be multiplied by a number above 0 only")),
    }
}

impl TryFrom<String> for Remedy {
    type Error = InvalidRemedy;

    fn try_from(text: String) -> Result<Self, InvalidRemedy> {
        text.parse()
    }
}

impl From<Remedy> for String {
    fn from(remedy: Remedy) -> Self {
        remedy.to_string()
    }
}

impl JsonSchema for Remedy {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Remedy".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "Such as `learning_rate * 0.1`, `gradient_checkpointing = true, limits.memory_mib = 4096`, \
                            `try again` or `outside: free_disk`."
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(text: &str) -> Remedy {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_remedy_is_what_it_is_written_as() {
        for text in [
            "try again",
            "outside: free_disk",
            "learning_rate * 0.1",
            "gradient_checkpointing = true",
            "per_device_train_batch_size * 0.5, gradient_accumulation_steps * 2",
            "method = \"qlora\", limits.memory_mib = fit",
            "target_modules = [\"q_proj\",\"v_proj\"], save_steps = default",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(parse(" lora_r=4 ,seed=1 ").to_string(), "lora_r = 4, seed = 1");
    }

    #[test]
    fn what_is_no_remedy_is_said_to_be_none_and_why() {
        for (text, why) in [
            ("", "it is empty"),
            ("learning_rate", "`=` or `*` is missing"),
            ("learning_rate * \"x\"", "multiplied by a number above 0"),
            ("learning_rate * -1", "multiplied by a number above 0"),
            ("method = qlora", "texts need quotes"),
            ("lora_r = 4,", "must follow the comma"),
            ("lora_r = 4 seed = 1", "a comma is missing"),
            ("lora_r = 4, lora_r = 8", "changed twice"),
            ("outside: pray", "outside there is mend_dataset"),
        ] {
            let error = text.parse::<Remedy>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd_to_be_refused_or_read_back(text in "\\PC{0,60}") {
            if let Ok(remedy) = text.parse::<Remedy>() {
                prop_assert_eq!(remedy.to_string().parse::<Remedy>().unwrap(), remedy);
            }
        }

        #[test]
        fn every_edit_survives_being_written(
            option in "[a-z_]{1,12}",
            value in prop_oneof![any::<bool>().prop_map(Value::from), any::<i32>().prop_map(Value::from),
                                 "\\PC{0,12}".prop_map(Value::from), Just(json!(["a, b = 2", {"c": null}]))],
            factor in 1e-6..1e6f64,
        ) {
            for to in [To::Set(value.clone()), To::Scale(factor), To::Fit, To::Default] {
                let remedy = Remedy::Change(vec![
                    Edit { option: option.clone(), to },
                    Edit { option: format!("limits.{option}"), to: To::Fit },
                ]);
                prop_assert_eq!(remedy.to_string().parse::<Remedy>().unwrap(), remedy);
            }
        }
    }
}
