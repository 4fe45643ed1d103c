//! Flags made from a type's schema, so that the command line offers exactly the options that the gateway takes.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use drydock_spec::{EvaluateArgs, FinetuneArgs, JobArgs, LimitArgs, QuantizeArgs, TrainArgs};
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

/// Options of a kind of job.
pub(super) trait Kind: Options {
    /// The job with these options.
    fn job(self) -> JobArgs;
}

/// The same for each kind: its flags are called as its options are.
macro_rules! kind {
    ($args:ident, $kind:ident, $heading:literal) => {
        impl Options for $args {
            const HEADING: &'static str = $heading;
            fn flag(field: &str) -> String {
                field.replace('_', "-")
            }
        }

        impl Kind for $args {
            fn job(self) -> JobArgs {
                JobArgs::$kind(self)
            }
        }
    };
}

kind!(FinetuneArgs, Finetune, "Options of the finetune");
kind!(TrainArgs, Train, "Options of the training");
kind!(QuantizeArgs, Quantize, "Options of the quantization");
kind!(EvaluateArgs, Evaluate, "Options of the evaluation");

impl Options for LimitArgs {
    const HEADING: &'static str = "Limits";
    fn flag(field: &str) -> String {
        match field {
            // As `docker run --gpus` has it: these are asked for more than kept to.
            "gpus" | "gpu_memory_mib" => field.replace('_', "-"),
            _ => format!("limit-{}", field.replace("_limit", "").replace('_', "-")),
        }
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
    /// Values of these forms under these names.
    Fields(Vec<(String, Form)>),
    /// Several such, one a flag.
    Records(Vec<(String, Form)>),
    /// Values of this form under any name.
    Map(Box<Form>),
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
            about: property["description"].as_str().unwrap_or_default().trim_end_matches('.').replace('\n', " "),
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
        Some("array") => match form(&property["items"], schema) {
            Form::Word(words) => Form::Words(words),
            Form::Fields(fields) => Form::Records(fields),
            _ => Form::Texts,
        },
        Some("object") => match property["properties"].as_object() {
            Some(fields) => {
                Form::Fields(fields.iter().map(|(name, field)| (name.clone(), form(field, schema))).collect())
            }
            None => Form::Map(Box::new(form(&property["additionalProperties"], schema))),
        },
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
            Form::Word(words) => {
                arg.value_name("WORD").ignore_case(true).value_parser(PossibleValuesParser::new(words))
            }
            Form::Words(words) => arg
                .value_name("WORDS")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .ignore_case(true)
                .value_parser(PossibleValuesParser::new(words)),
            Form::Texts => arg.value_name("TEXT").action(ArgAction::Append),
            Form::Fields(fields) | Form::Records(fields) => arg
                .value_name("NAME=VALUE")
                .action(ArgAction::Append)
                .long_help(format!("{}. As NAME=VALUE,... or as JSON. Names: {}", self.about, names(fields))),
            Form::Map(_) => arg
                .value_name("NAME=VALUE")
                .action(ArgAction::Append)
                .long_help(format!("{}. As NAME=VALUE,... or as JSON", self.about)),
        }
    }

    /// The JSON value for what was given; `None` for nothing.
    fn value<T: Options>(&self, given: Vec<String>) -> Result<Option<Value>, clap::Error> {
        let Some(first) = given.first() else { return Ok(None) };
        let wrong = |value: &str, wanted: &str| {
            let message = format!("invalid value '{value}' for '--{}': {wanted} is expected\n", T::flag(&self.name));
            clap::Error::raw(clap::error::ErrorKind::InvalidValue, message)
        };
        let one = |text: &str| self.form.read(text).map_err(|(value, wanted)| wrong(&value, &wanted));
        Ok(Some(match &self.form {
            Form::Integer | Form::Number | Form::Boolean | Form::Text | Form::Word(_) => one(first)?,
            Form::Texts => given.into(),
            Form::Words(words) => given.iter().map(|text| word(text, words)).collect(),
            Form::Records(_) => given.iter().map(|text| one(text)).collect::<Result<_, _>>()?,
            // Given several times, the parts add up.
            Form::Fields(_) | Form::Map(_) => {
                let mut all = Map::new();
                for text in &given {
                    if let Value::Object(part) = one(text)? {
                        all.extend(part);
                    }
                }
                Value::Object(all)
            }
        }))
    }
}

impl Form {
    /// The value that a text stands for; otherwise the text and what is expected instead.
    fn read(&self, text: &str) -> Result<Value, (String, String)> {
        let wrong = |wanted: &str| (text.to_owned(), wanted.to_owned());
        Ok(match self {
            Self::Integer => match (text.parse::<u64>(), text.parse::<i64>()) {
                (Ok(value), _) => value.into(),
                (_, Ok(value)) => value.into(),
                _ => return Err(wrong("a whole number")),
            },
            Self::Number => match text.parse::<f64>() {
                Ok(value) if value.is_finite() => value.into(),
                _ => return Err(wrong("a number")),
            },
            Self::Boolean => match text {
                "true" => true.into(),
                "false" => false.into(),
                _ => return Err(wrong("true or false")),
            },
            Self::Text | Self::Texts => text.into(),
            Self::Word(words) | Self::Words(words) => word(text, words),
            Self::Fields(fields) | Self::Records(fields) => {
                let wanted = || format!("NAME=VALUE with a name of {}, or JSON,", names(fields));
                let form = |name: &str| fields.iter().find(|(known, _)| known == name).map(|(_, form)| form);
                object(text, form, &wanted)?
            }
            Self::Map(form) => object(text, |_| Some(form), &|| "NAME=VALUE, or JSON,".to_owned())?,
        })
    }
}

/// An object written as JSON, or as `name=value,...` with values of the forms that their names tell.
fn object<'a>(
    text: &str,
    form: impl Fn(&str) -> Option<&'a Form>,
    wanted: &dyn Fn() -> String,
) -> Result<Value, (String, String)> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| (text.to_owned(), format!("JSON ({error})")));
    }
    let mut map = Map::new();
    for part in text.split(',') {
        let pair = part.split_once('=').filter(|(_, value)| !value.is_empty());
        let Some((name, value)) = pair else { return Err((part.to_owned(), wanted())) };
        let Some(form) = form(name) else { return Err((part.to_owned(), wanted())) };
        map.insert(name.to_owned(), form.read(value)?);
    }
    Ok(Value::Object(map))
}

/// The word as it is written properly, however it was given.
fn word(text: &str, words: &[String]) -> Value {
    words.iter().find(|word| word.eq_ignore_ascii_case(text)).map_or(text, String::as_str).into()
}

fn names(fields: &[(String, Form)]) -> String {
    fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The names of the fields of `T`.
pub(super) fn names_of<T: JsonSchema>() -> Vec<String> {
    let schema = schemars::schema_for!(T).to_value();
    schema["properties"].as_object().into_iter().flat_map(Map::keys).cloned().collect()
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
    use drydock_spec::evaluate::Measure;
    use drydock_spec::finetune::TargetModule;
    use drydock_spec::quantize::{QuantType, TensorType};
    use drydock_spec::recipe::SchedulerType;

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
    fn nested_options_are_pairs_or_json() {
        let given: TrainArgs = parse(&[
            "--dataset=d",
            "--config",
            "hidden_size=256,rope_theta=1e5",
            "--config",
            "tie_word_embeddings=false",
        ])
        .unwrap();
        let config = drydock_spec::train::ShapeArgs {
            hidden_size: Some(256),
            rope_theta: Some(1e5),
            tie_word_embeddings: Some(false),
            ..Default::default()
        };
        assert_eq!(given, TrainArgs { dataset: "d".into(), config: Some(config), ..TrainArgs::default() });

        let given: EvaluateArgs = parse(&[
            "--model=m",
            "--dataset=d",
            "--compare-with",
            "model=job:1,adapter=job:2",
            "--compare-with",
            r#"{"model": "a,b=c"}"#,
            "--measures",
            "perplexity,Exact_Match",
        ])
        .unwrap();
        let compared = given.compare_with.unwrap();
        assert_eq!((compared[0].model.as_str(), compared[0].adapter.as_deref()), ("job:1", Some("job:2")));
        assert_eq!(compared[1].model, "a,b=c");
        assert_eq!(given.measures, Some(vec![Measure::Perplexity, Measure::ExactMatch]));

        let given: QuantizeArgs =
            parse(&["--model=m", "--quant-type=q4_k_m", "--tensor-types", "output.weight=q8_0,*.ffn_down.*=Q6_K"])
                .unwrap();
        assert_eq!(given.quant_type, Some(QuantType::Q4_K_M));
        let types = given.tensor_types.unwrap();
        assert_eq!((types["output.weight"], types["*.ffn_down.*"]), (TensorType::Q8_0, TensorType::Q6_K));

        for (flag, value, expected) in [
            ("--config", "hidden_size=wide", "invalid value 'wide' for '--config': a whole number is expected"),
            ("--config", "width=3", "'width=3' for '--config': NAME=VALUE with a name of"),
            ("--config", "{", "'{' for '--config': JSON (EOF"),
        ] {
            let error = parse::<TrainArgs>(&["--dataset=d", flag, value]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn limits_carry_a_prefix_but_for_gpus() {
        let given: LimitArgs =
            parse(&["--limit-memory-mib", "900", "--limit-time-s", "60", "--limit-cpus", "1.5", "--gpus", "2"])
                .unwrap();
        let expected = LimitArgs {
            memory_mib: Some(900),
            time_limit_s: Some(60),
            cpus: Some(1.5),
            gpus: Some(2),
            ..LimitArgs::default()
        };
        assert_eq!(given, expected);
    }

    #[test]
    fn a_wrong_value_is_named_with_what_is_expected() {
        for (arguments, expected) in [
            (["--lora-r", "many"], "invalid value 'many' for '--lora-r': a whole number is expected"),
            (["--learning-rate", "nan"], "invalid value 'nan' for '--learning-rate': a number is expected"),
            (["--columns", "x=y"], "invalid value 'x=y' for '--columns': NAME=VALUE with a name of"),
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
