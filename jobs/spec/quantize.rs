//! The options of a quantization. Types and mixes have the names that llama.cpp made usual.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::Columns;
use crate::option::{Complaints, InvalidOption, InvalidOptions};

/// What the values of one tensor are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(non_camel_case_types, reason = "these are the formats' own names")]
pub enum TensorType {
    #[serde(alias = "f32")]
    F32,
    #[serde(alias = "f16")]
    F16,
    #[serde(alias = "bf16")]
    BF16,
    #[serde(alias = "q4_0")]
    Q4_0,
    #[serde(alias = "q4_1")]
    Q4_1,
    #[serde(alias = "q5_0")]
    Q5_0,
    #[serde(alias = "q5_1")]
    Q5_1,
    #[serde(alias = "q8_0")]
    Q8_0,
    #[serde(alias = "q2_k")]
    Q2_K,
    #[serde(alias = "q3_k")]
    Q3_K,
    #[serde(alias = "q4_k")]
    Q4_K,
    #[serde(alias = "q5_k")]
    Q5_K,
    #[serde(alias = "q6_k")]
    Q6_K,
}

impl TensorType {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// Whether values share scales in blocks.
    #[must_use]
    pub fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Values in a block, and the bytes that they take.
    #[must_use]
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }
}

/// What a whole file is quantized to: one type for (almost) all of it, or a mix that spends more bits where they matter
/// (`_S`, `_M`, `_L`: small, medium, large).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(non_camel_case_types, reason = "these are the mixes' own names")]
pub enum QuantType {
    #[serde(alias = "f32")]
    F32,
    #[serde(alias = "f16")]
    F16,
    #[serde(alias = "bf16")]
    BF16,
    #[serde(alias = "q4_0")]
    Q4_0,
    #[serde(alias = "q4_1")]
    Q4_1,
    #[serde(alias = "q5_0")]
    Q5_0,
    #[serde(alias = "q5_1")]
    Q5_1,
    #[serde(alias = "q8_0")]
    Q8_0,
    #[serde(alias = "q2_k_s")]
    Q2_K_S,
    #[serde(alias = "q2_k")]
    Q2_K,
    #[serde(alias = "q3_k_s")]
    Q3_K_S,
    #[serde(alias = "q3_k_m", alias = "Q3_K", alias = "q3_k")]
    Q3_K_M,
    #[serde(alias = "q3_k_l")]
    Q3_K_L,
    #[serde(alias = "q4_k_s")]
    Q4_K_S,
    #[serde(alias = "q4_k_m", alias = "Q4_K", alias = "q4_k")]
    Q4_K_M,
    #[serde(alias = "q5_k_s")]
    Q5_K_S,
    #[serde(alias = "q5_k_m", alias = "Q5_K", alias = "q5_k")]
    Q5_K_M,
    #[serde(alias = "q6_k")]
    Q6_K,
}

impl QuantType {
    pub const ALL: [Self; 18] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K_S,
        Self::Q2_K,
        Self::Q3_K_S,
        Self::Q3_K_M,
        Self::Q3_K_L,
        Self::Q4_K_S,
        Self::Q4_K_M,
        Self::Q5_K_S,
        Self::Q5_K_M,
        Self::Q6_K,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q2_K_S => "Q2_K_S",
            Self::Q3_K_S => "Q3_K_S",
            Self::Q3_K_M => "Q3_K_M",
            Self::Q3_K_L => "Q3_K_L",
            Self::Q4_K_S => "Q4_K_S",
            Self::Q4_K_M => "Q4_K_M",
            Self::Q5_K_S => "Q5_K_S",
            Self::Q5_K_M => "Q5_K_M",
            _ => self.main_type().name(),
        }
    }

    /// The type that most of the file's values get.
    #[must_use]
    pub fn main_type(self) -> TensorType {
        match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::BF16 => TensorType::BF16,
            Self::Q4_0 => TensorType::Q4_0,
            Self::Q4_1 => TensorType::Q4_1,
            Self::Q5_0 => TensorType::Q5_0,
            Self::Q5_1 => TensorType::Q5_1,
            Self::Q8_0 => TensorType::Q8_0,
            Self::Q2_K_S | Self::Q2_K => TensorType::Q2_K,
            Self::Q3_K_S | Self::Q3_K_M | Self::Q3_K_L => TensorType::Q3_K,
            Self::Q4_K_S | Self::Q4_K_M => TensorType::Q4_K,
            Self::Q5_K_S | Self::Q5_K_M => TensorType::Q5_K,
            Self::Q6_K => TensorType::Q6_K,
        }
    }
}

/// A quantization as somebody wrote it. Everything but `model` and `quant_type` has a default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["model", "quant_type"]))]
pub struct QuantizeArgs {
    /// The model to quantize: a name from `list_models`, `hf:owner/name[@revision]`, or `job:<id>[/path]` of another
    /// job.
    pub model: String,
    /// An adapter that is worked in first: `job:<id>` of a finetune of this model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// What to quantize to, such as Q4_K_M or Q8_0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quant_type: Option<QuantType>,
    /// Types for single tensors, by patterns over GGUF names with `*` for anything: {"output.weight": "Q8_0"}. Default:
    /// as the mix says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_types: Option<BTreeMap<String, TensorType>>,
    /// Give every matrix the mix's main type, without spending more bits where they matter. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pure: Option<bool>,
    /// A dataset whose rows show which values matter: the error is weighted by the squares of what each matrix sees (an
    /// importance matrix).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imatrix_dataset: Option<String>,
    /// Which columns of that dataset hold what, where its own names are not the usual ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// Tokens of that dataset to look at, at most, 512 to 100000000. Default 65536.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imatrix_tokens: Option<u32>,
}

/// A quantization whose options are complete and within range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "QuantizeArgs")]
pub struct QuantizeSpec {
    pub model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    pub quant_type: QuantType,
    pub tensor_types: BTreeMap<String, TensorType>,
    pub pure: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imatrix_dataset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    pub imatrix_tokens: u32,
}

impl QuantizeArgs {
    /// Fills in the defaults and checks every option; all complaints come at once.
    pub fn parse(self) -> Result<QuantizeSpec, InvalidOptions> {
        let mut wrong = Complaints::default();
        wrong.named("model", &self.model, "name one from list_models, hf:owner/name, or job:<id>");
        wrong.require(self.quant_type.is_some(), || {
            let known = QuantType::ALL.map(QuantType::name).join(", ");
            InvalidOption::new("quant_type", "\"\"", "missing", format!("choose one of {known}; Q4_K_M is usual"))
        });
        let spec = QuantizeSpec {
            model: self.model,
            adapter: self.adapter,
            quant_type: self.quant_type.unwrap_or(QuantType::Q4_K_M),
            tensor_types: self.tensor_types.unwrap_or_default(),
            pure: self.pure.unwrap_or(false),
            columns: self.columns,
            imatrix_tokens: self.imatrix_tokens.unwrap_or(65_536),
            imatrix_dataset: self.imatrix_dataset,
        };
        wrong.require(spec.quant_type != QuantType::Q2_K_S || spec.imatrix_dataset.is_some(), || {
            let problem = "so few bits need to know which values matter, as llama.cpp says too";
            InvalidOption::new("quant_type", "Q2_K_S", problem, "give an imatrix_dataset, or choose Q2_K")
        });
        wrong.within("imatrix_tokens", spec.imatrix_tokens, 512, 100_000_000);
        wrong.into_result(spec)
    }
}

impl TryFrom<QuantizeArgs> for QuantizeSpec {
    type Error = InvalidOptions;

    fn try_from(args: QuantizeArgs) -> Result<Self, Self::Error> {
        args.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_has_the_name_that_serde_writes() {
        for kind in QuantType::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            let main = kind.main_type();
            assert_eq!(serde_json::to_value(main).unwrap(), main.name());
        }
    }

    #[test]
    fn usual_short_names_are_understood() {
        let parsed: QuantType = serde_json::from_str("\"q4_k\"").unwrap();
        assert_eq!(parsed, QuantType::Q4_K_M);
    }

    #[test]
    fn a_missing_type_is_answered_with_the_known_ones() {
        let wrong = QuantizeArgs { model: "m".into(), ..QuantizeArgs::default() }.parse().unwrap_err();
        assert!(wrong.to_string().starts_with("quant_type = \"\": missing; choose one of F32, F16"), "{wrong}");
    }

    #[test]
    fn the_smallest_mix_wants_to_know_which_values_matter() {
        let args = QuantizeArgs { model: "m".into(), quant_type: Some(QuantType::Q2_K_S), ..QuantizeArgs::default() };
        let blind = args.clone().parse().unwrap_err().to_string();
        assert!(blind.contains("quant_type = Q2_K_S: so few bits") && blind.contains("choose Q2_K"), "{blind}");
        assert!(QuantizeArgs { imatrix_dataset: Some("d".into()), ..args }.parse().is_ok());
    }

    #[test]
    fn a_spec_survives_json() {
        let args = QuantizeArgs { model: "m".into(), quant_type: Some(QuantType::Q5_K_S), ..QuantizeArgs::default() };
        let spec = args.parse().unwrap();
        let json = serde_json::to_value(&spec).unwrap();
        assert_eq!(serde_json::from_value::<QuantizeSpec>(json).unwrap(), spec);
    }
}
