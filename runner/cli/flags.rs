//! Flags made from a type's schema, so that the command line offers exactly the options that the gateway takes.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use drydock_spec::{FinetuneArgs, LimitArgs};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Options that can be given as flags.
pub(super) trait Options: JsonSchema + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The heading that the flags stand under in the help.
    const HEADING: &'static str;
    /// The flag for a field.
    fn flag(field: &str) -> String;
}

impl Options for FinetuneArgs {
    const HEADING: &'static str = "Options of the finetune";
    fn flag(field: &str) -> String {
        field.replace('_', "-")
    }
}

impl Options for LimitArgs {
    const HEADING: &'static str = "Limits";
    fn flag(field: &str) -> String {
        format!("limit-{}", field.replace("_limit", "").replace('_', "-"))
    }
}

/// The options of type `T`, as the flags gave them.
#[derive(Debug, Clone)]
pub(super) struct Flags<T>(pub(super) T);

/// A field of a schema that can be given as a flag.
struct Field {
    name: String,
    about: String,
    form: Form,
    required: bool,
}

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Integer,
    Number,
    Boolean,
    Text,
    /// One of these words.
    Word(Vec<String>),
    /// Any of these words.
    Words(Vec<String>),
    /// Texts, one a flag: they may hold commas.
    Texts,
    /// Texts under these names.
    Pairs(Vec<String>),
}

impl<T: Options> clap::Args for Flags<T> {
    fn augment_args(command: Command) -> Command {
        fields::<T>().into_iter().fold(command, |command, field| command.arg(field.arg::<T>()))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Options> clap::FromArgMatches for Flags<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut values = Map::new();
        for field in fields::<T>() {
            let given = matches.get_many::<String>(&T::flag(&field.name)).unwrap_or_default().cloned().collect();
            if let Some(value) = field.value::<T>(given)? {
                values.insert(field.name, value);
            }
        }
        let wrong = |error: serde_json::Error| clap::Error::raw(clap::error::ErrorKind::InvalidValue, error);
        serde_json::from_value(Value::Object(values)).map(Self).map_err(wrong)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The fields of `T`, those that must be given first.
fn fields<T: JsonSchema>() -> Vec<Field> {
    let schema = schemars::schema_for!(T).to_value();
    let required = words(&schema["required"]);
    let Some(properties) = schema["properties"].as_object() else { return Vec::new() };
    let mut fields: Vec<_> = properties
        .iter()
        .map(|(name, property)| Field {
            name: name.clone(),
            about: property["description"].as_str().unwrap_or_default().trim_end_matches('.').to_owned(),
            form: form(property, &schema),
            required: required.contains(name),
        })
        .collect();
    fields.sort_by_key(|field| !field.required);
    fields
}

fn form(property: &Value, schema: &Value) -> Form {
    let property = resolve(property, schema);
    let kind = match &property["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        kind => kind.as_str(),
    };
    match kind {
        Some("integer") => Form::Integer,
        Some("number") => Form::Number,
        Some("boolean") => Form::Boolean,
        Some("array") => match variants(resolve(&property["items"], schema)) {
            words if words.is_empty() => Form::Texts,
            words => Form::Words(words),
        },
        Some("object") => {
            Form::Pairs(property["properties"].as_object().into_iter().flat_map(Map::keys).cloned().collect())
        }
        _ => match variants(property) {
            words if words.is_empty() => Form::Text,
            words => Form::Word(words),
        },
    }
}

/// The definition behind a reference or an `Option`.
fn resolve<'a>(property: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(target) = property["$ref"].as_str().and_then(|reference| reference.strip_prefix('#')) {
        return schema.pointer(target).unwrap_or(property);
    }
    match property["anyOf"].as_array().and_then(|any| any.iter().find(|one| one["type"] != "null")) {
        Some(one) => resolve(one, schema),
        None => property,
    }
}

/// The words of an enum.
fn variants(definition: &Value) -> Vec<String> {
    let mut all = words(&definition["enum"]);
    for variant in definition["oneOf"].as_array().into_iter().flatten() {
        all.extend(variant["const"].as_str().map(str::to_owned));
        all.extend(words(&variant["enum"]));
    }
    all
}

fn words(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Field {
    fn arg<T: Options>(&self) -> Arg {
        let flag = T::flag(&self.name);
        let arg = Arg::new(flag.clone())
            .long(flag.clone())
            .help(self.about.clone())
            .help_heading(T::HEADING)
            .required(self.required)
            .allow_hyphen_values(matches!(self.form, Form::Integer | Form::Number));
        // Scripts written for other trainers say --lora_r.
        let arg = if flag == self.name { arg } else { arg.alias(self.name.clone()) };
        match &self.form {
            Form::Integer | Form::Number => arg.value_name("N"),
            Form::Boolean => arg.value_name("BOOL").value_parser(PossibleValuesParser::new(["true", "false"])),
            Form::Text => arg.value_name("NAME"),
            Form::Word(words) => arg.value_name("WORD").value_parser(PossibleValuesParser::new(words)),
            Form::Words(words) => arg
                .value_name("WORDS")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .value_parser(PossibleValuesParser::new(words)),
            Form::Texts => arg.value_name("TEXT").action(ArgAction::Append),
            Form::Pairs(names) => arg
                .value_name("NAME=COLUMN")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .long_help(format!("{}. Names: {}", self.about, names.join(", "))),
        }
    }

    /// The JSON value for what was given; `None` for nothing.
    fn value<T: Options>(&self, given: Vec<String>) -> Result<Option<Value>, clap::Error> {
        let Some(first) = given.first() else { return Ok(None) };
        let wrong = |value: &str, wanted: &str| {
            let message = format!("invalid value '{value}' for '--{}': {wanted} is expected\n", T::flag(&self.name));
            clap::Error::raw(clap::error::ErrorKind::InvalidValue, message)
        };
        Ok(Some(match &self.form {
            Form::Integer => match (first.parse::<u64>(), first.parse::<i64>()) {
                (Ok(value), _) => value.into(),
                (_, Ok(value)) => value.into(),
                _ => return Err(wrong(first, "a whole number")),
            },
            Form::Number => match first.parse::<f64>() {
                Ok(value) if value.is_finite() => value.into(),
                _ => return Err(wrong(first, "a number")),
            },
            Form::Boolean => (first == "true").into(),
            Form::Text | Form::Word(_) => first.clone().into(),
            Form::Words(_) | Form::Texts => given.into(),
            Form::Pairs(names) => Value::Object(
                pairs(&given, names)
                    .map_err(|value| wrong(&value, &format!("NAME=COLUMN with a name of {}", names.join(", "))))?,
            ),
        }))
    }
}

/// `name=value` texts as an object; the text that is none, otherwise.
pub(super) fn pairs(given: &[String], names: &[String]) -> Result<Map<String, Value>, String> {
    let mut map = Map::new();
    for text in given {
        match text.split_once('=') {
            Some((name, value)) if names.iter().any(|known| known == name) && !value.is_empty() => {
                map.insert(name.to_owned(), value.into());
            }
            _ => return Err(text.clone()),
        }
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};
    use drydock_spec::finetune::{SchedulerType, TargetModule};

    use super::*;

    fn parse<T: Options>(arguments: &[&str]) -> Result<T, clap::Error> {
        let command = Flags::<T>::augment_args(Command::new("t").no_binary_name(true));
        let matches = command.try_get_matches_from(arguments)?;
        Flags::<T>::from_arg_matches(&matches).map(|flags| flags.0)
    }

    #[test]
    fn every_kind_of_option_can_be_given_as_a_flag() {
        let given: FinetuneArgs = parse(&[
            "--model=m",
            "--dataset",
            "d",
            "--lora-r",
            "4",
            "--learning_rate",
            "1e-3",
            "--target-modules",
            "q_proj,v_proj",
            "--completion-only-loss",
            "false",
            "--lr-scheduler-type",
            "cosine",
            "--sample-prompts",
            "one, two?",
            "--sample-prompts",
            "three?",
            "--columns",
            "prompt=question,completion=answer",
            "--seed",
            "18446744073709551615",
        ])
        .unwrap();
        let columns = drydock_spec::dataset::Columns {
            prompt: Some("question".into()),
            completion: Some("answer".into()),
            ..Default::default()
        };
        let expected = FinetuneArgs {
            model: "m".into(),
            dataset: "d".into(),
            lora_r: Some(4),
            learning_rate: Some(1e-3),
            target_modules: Some(vec![TargetModule::QProj, TargetModule::VProj]),
            completion_only_loss: Some(false),
            lr_scheduler_type: Some(SchedulerType::Cosine),
            sample_prompts: Some(vec!["one, two?".into(), "three?".into()]),
            columns: Some(columns),
            seed: Some(u64::MAX),
            ..FinetuneArgs::default()
        };
        assert_eq!(given, expected);
    }

    #[test]
    fn limits_carry_a_prefix() {
        let given: LimitArgs =
            parse(&["--limit-memory-mib", "900", "--limit-time-s", "60", "--limit-cpus", "1.5"]).unwrap();
        let expected =
            LimitArgs { memory_mib: Some(900), time_limit_s: Some(60), cpus: Some(1.5), ..LimitArgs::default() };
        assert_eq!(given, expected);
    }

    #[test]
    fn a_wrong_value_is_named_with_what_is_expected() {
        for (arguments, expected) in [
            (["--lora-r", "many"], "invalid value 'many' for '--lora-r': a whole number is expected"),
            (["--learning-rate", "nan"], "invalid value 'nan' for '--learning-rate': a number is expected"),
            (["--columns", "x=y"], "invalid value 'x=y' for '--columns': NAME=COLUMN with a name of"),
            (["--target-modules", "q"], "invalid value 'q' for '--target-modules <WORDS>'"),
        ] {
            let error = parse::<FinetuneArgs>(&["--model=m", "--dataset=d", arguments[0], arguments[1]]).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn model_and_dataset_are_required() {
        let error = parse::<FinetuneArgs>(&[]).unwrap_err().to_string();
        assert!(error.contains("--model <NAME>") && error.contains("--dataset <NAME>"), "{error}");
    }
}
