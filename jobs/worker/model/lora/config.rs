//! `adapter_config.json`, as PEFT writes and reads it: what a file leaves out has PEFT's default, and what would change
//! an adapter's arithmetic in a way that is not known here is refused in words.

use drydock_spec::FailureKind::{BadModel, UnsupportedModel};
use drydock_spec::finetune::TargetModule;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::LoraShape;
use crate::ending::{OrFail, Result, failed};

/// What of the file is known here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    pub peft_type: String,
    #[serde(default)]
    pub task_type: Option<String>,
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    #[serde(default = "usual_rank")]
    pub r: usize,
    #[serde(default = "usual_alpha")]
    pub lora_alpha: serde_json::Number,
    #[serde(default)]
    pub lora_dropout: f32,
    #[serde(default)]
    pub use_dora: bool,
    pub target_modules: Vec<String>,
    #[serde(default = "no_bias")]
    pub bias: String,
    #[serde(default)]
    pub fan_in_fan_out: bool,
    #[serde(default)]
    pub inference_mode: bool,
}

fn usual_rank() -> usize {
    8
}

fn usual_alpha() -> serde_json::Number {
    8.into()
}

fn no_bias() -> String {
    "none".into()
}

/// Far above what anybody trains; a larger number was not meant.
const MAX_RANK: usize = 1 << 16;

/// Options of PEFT by which an adapter computes something else, or elsewhere. What is not among them bears on training,
/// or on nothing.
const UNKNOWN_OPTIONS: [&str; 17] = [
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "lora_bias",
    "fan_in_fan_out",
    "trainable_token_indices",
    "exclude_modules",
    "layers_to_transform",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
];

/// Ways to start that change the model under the adapter as well: the adapter alone says nothing.
const CHANGES_THE_MODEL: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

impl AdapterConfig {
    pub fn new(shape: &LoraShape, model_name: &str) -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(model_name.into()),
            r: shape.rank,
            // PEFT's own type is a whole number; a fraction is written only where there is one.
            lora_alpha: if shape.alpha.fract() == 0.0 {
                (shape.alpha as u64).into()
            } else {
                serde_json::Number::from_f64(shape.alpha).unwrap_or(1.into())
            },
            lora_dropout: shape.dropout,
            use_dora: shape.dora,
            target_modules: shape.targets.clone(),
            bias: no_bias(),
            fan_in_fan_out: false,
            inference_mode: true,
        }
    }

    /// Of somebody's adapter; refused where it is not understood in full.
    pub(super) fn parse(json: &Value) -> Result<Self> {
        let kind = json.get("peft_type").and_then(Value::as_str).unwrap_or("(none)");
        if kind != "LORA" {
            return failed(UnsupportedModel, format!("the adapter's peft_type is `{kind}`; `LORA` is known"));
        }
        if let Some(option) = UNKNOWN_OPTIONS.into_iter().find(|option| json.get(option).is_some_and(is_set)) {
            let message = format!("the adapter was made with {option} = {}, which is not known here", json[option]);
            return failed(UnsupportedModel, message);
        }
        let start = json.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
        if CHANGES_THE_MODEL.into_iter().any(|changing| start.starts_with(changing)) {
            let message = format!(
                "the adapter was made with init_lora_weights = \"{start}\", which changes the model under it as well"
            );
            let failure = drydock_spec::Failure::new(UnsupportedModel, message);
            let hint = "convert it to an ordinary adapter: PEFT's save_pretrained with path_initial_model_for_weight_conversion";
            return Err(failure.with_hint(hint).into());
        }
        if !json.get("target_modules").is_some_and(Value::is_array) {
            let given = json.get("target_modules").unwrap_or(&Value::Null);
            let known = TargetModule::ALL.map(TargetModule::name).join(", ");
            let message = format!("the adapter's target_modules is {given}; a list of names such as {known} is known");
            return failed(UnsupportedModel, message);
        }
        let config: Self = serde_json::from_value(json.clone()).or_fail(BadModel, "adapter_config.json")?;
        if config.bias != "none" || !(1..=MAX_RANK).contains(&config.r) {
            let message = format!("the adapter's bias is `{}` and its r {}", config.bias, config.r);
            return failed(UnsupportedModel, format!("{message}; known are `none`, and from 1 to {MAX_RANK}"));
        }
        Ok(config)
    }

    pub fn shape(&self) -> LoraShape {
        LoraShape {
            rank: self.r,
            alpha: self.lora_alpha.as_f64().unwrap_or(1.0),
            dropout: self.lora_dropout,
            dora: self.use_dora,
            targets: self.target_modules.clone(),
        }
    }
}

/// Whether an option asks for anything.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ending::Ending;

    fn shape() -> LoraShape {
        let targets = vec!["q_proj".into(), "model.layers.1.mlp.up_proj".into()];
        LoraShape { rank: 8, alpha: 16.0, dropout: 0.0, dora: true, targets }
    }

    fn refused(option: &str, value: Value) -> String {
        let mut json = serde_json::to_value(AdapterConfig::new(&shape(), "m")).unwrap();
        json[option] = value;
        let Err(Ending::Failed(failure)) = AdapterConfig::parse(&json) else { panic!("{option} was taken") };
        assert!(matches!(failure.kind, UnsupportedModel | BadModel), "{failure:?}");
        failure.message
    }

    #[test]
    fn a_whole_alpha_is_written_as_a_whole_number() {
        let json = serde_json::to_value(AdapterConfig::new(&shape(), "m")).unwrap();
        assert_eq!(json["lora_alpha"].to_string(), "16");
        assert_eq!(json["target_modules"][0], "q_proj");
        assert_eq!(AdapterConfig::parse(&json).unwrap().shape(), shape());
    }

    #[test]
    fn what_a_file_leaves_out_has_pefts_default() {
        let least = json!({"peft_type": "LORA", "target_modules": ["q_proj"], "a_field_of_tomorrow": 1});
        let targets = vec!["q_proj".into()];
        let usual = LoraShape { rank: 8, alpha: 8.0, dropout: 0.0, dora: false, targets };
        assert_eq!(AdapterConfig::parse(&least).unwrap().shape(), usual);
        // As PEFT writes them where nothing is set.
        let mut nothing = least;
        for option in ["rank_pattern", "alpha_pattern", "loftq_config"] {
            nothing[option] = json!({});
        }
        for option in ["modules_to_save", "layers_to_transform", "exclude_modules", "kasa_config"] {
            nothing[option] = Value::Null;
        }
        nothing["init_lora_weights"] = json!("gaussian");
        assert_eq!(AdapterConfig::parse(&nothing).unwrap().shape(), usual);
    }

    #[test]
    fn an_adapter_that_is_not_understood_is_refused() {
        assert_eq!(
            refused("use_rslora", json!(true)),
            "the adapter was made with use_rslora = true, which is not known here"
        );
        for (option, value) in [
            ("alpha_pattern", json!({"q_proj": 4})),
            ("rank_pattern", json!({"q_proj": 4})),
            ("modules_to_save", json!(["lm_head"])),
            ("layers_to_transform", json!([0])),
            ("layers_to_transform", json!(0)),
            ("exclude_modules", json!("q_proj")),
            ("fan_in_fan_out", json!(true)),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("peft_type", json!("IA3")),
        ] {
            assert!(refused(option, value).contains(option), "{option}");
        }
        assert!(refused("target_modules", json!("all-linear")).contains("target_modules is \"all-linear\"; a list"));
        assert!(refused("bias", json!("all")).contains("bias is `all`"));
        assert!(refused("r", json!(0)).contains("r 0; known are `none`, and from 1 to 65536"));
        assert!(refused("r", json!(u64::MAX)).contains("known are `none`, and from 1"));
        assert!(refused("lora_alpha", json!("16")).starts_with("adapter_config.json: "));
    }
}
