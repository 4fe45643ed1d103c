//! Adapters: which projections have one, what it starts from, and how PEFT names it.

use std::path::Path;

use candle_core::{Device, Tensor};
use drydock_spec::FailureKind::BadModel;
use drydock_spec::finetune::TargetModule;
use serde::{Deserialize, Serialize};

use super::decoder::Decoder;
use super::hf::{Shards, read_json};
use super::parameter::Trainable;
use crate::ending::{OrFail, Result};
use crate::random::Chance;

/// What all adapters of a model share.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraShape {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f32,
    pub targets: Vec<TargetModule>,
}

/// PEFT's name of a projection's adapter matrix; `matrix` is `A` or `B`.
pub fn peft_name(layer: usize, module: TargetModule, matrix: char) -> String {
    format!("base_model.model.{}.lora_{matrix}.weight", projection_name(layer, module))
}

/// Hugging Face's name of a projection, without `.weight`.
pub fn projection_name(layer: usize, module: TargetModule) -> String {
    let part = match module {
        TargetModule::QProj | TargetModule::KProj | TargetModule::VProj | TargetModule::OProj => "self_attn",
        TargetModule::GateProj | TargetModule::UpProj | TargetModule::DownProj => "mlp",
    };
    format!("model.layers.{layer}.{part}.{}", module.name())
}

/// PEFT's start: A is Kaiming-uniform with a = sqrt(5), which comes to 1 / sqrt(in) as the bound; B is zero, so that
/// the adapted model starts as the model itself.
pub fn start_values(chance: &mut Chance, rank: usize, width: usize, out: usize) -> Result<(Tensor, Tensor)> {
    let bound = 1.0 / (width as f32).sqrt();
    let a: Vec<f32> = (0..rank * width).map(|_| chance.uniform(bound)).collect();
    let a = Tensor::from_vec(a, (rank, width), &Device::Cpu)?;
    Ok((a, Tensor::zeros((out, rank), candle_core::DType::F32, &Device::Cpu)?))
}

/// `adapter_config.json`, as PEFT reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    pub peft_type: String,
    pub task_type: String,
    pub base_model_name_or_path: String,
    pub r: usize,
    pub lora_alpha: serde_json::Number,
    pub lora_dropout: f32,
    pub target_modules: Vec<TargetModule>,
    pub bias: String,
    pub fan_in_fan_out: bool,
    pub inference_mode: bool,
}

impl AdapterConfig {
    pub fn new(shape: &LoraShape, model_name: &str) -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: "CAUSAL_LM".into(),
            base_model_name_or_path: model_name.into(),
            r: shape.rank,
            // PEFT's own type is a whole number; a fraction is written only where there is one.
            lora_alpha: if shape.alpha.fract() == 0.0 {
                (shape.alpha as u64).into()
            } else {
                serde_json::Number::from_f64(shape.alpha).unwrap_or(1.into())
            },
            lora_dropout: shape.dropout,
            target_modules: shape.targets.clone(),
            bias: "none".into(),
            fan_in_fan_out: false,
            inference_mode: true,
        }
    }

    pub fn shape(&self) -> LoraShape {
        LoraShape {
            rank: self.r,
            alpha: self.lora_alpha.as_f64().unwrap_or(1.0),
            dropout: self.lora_dropout,
            targets: self.target_modules.clone(),
        }
    }
}

/// Gives the decoder the adapter that a folder holds in PEFT's form.
pub fn load_adapter(decoder: &mut Decoder, folder: &Path) -> Result<Vec<Trainable>> {
    let config = read_json(&folder.join("adapter_config.json"))?;
    let config: AdapterConfig = serde_json::from_value(config).or_fail(BadModel, "adapter_config.json")?;
    let shards = Shards::open(folder)?;
    decoder.adapt(&config.shape(), |layer, module, _| {
        Ok((shards.tensor(&peft_name(layer, module, 'A'))?, shards.tensor(&peft_name(layer, module, 'B'))?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_peft() {
        let name = peft_name(3, TargetModule::GateProj, 'A');
        assert_eq!(name, "base_model.model.model.layers.3.mlp.gate_proj.lora_A.weight");
    }

    #[test]
    fn a_whole_alpha_is_written_as_a_whole_number() {
        let shape = LoraShape { rank: 8, alpha: 16.0, dropout: 0.0, targets: vec![TargetModule::QProj] };
        let json = serde_json::to_value(AdapterConfig::new(&shape, "m")).unwrap();
        assert_eq!(json["lora_alpha"].to_string(), "16");
        assert_eq!(json["target_modules"][0], "q_proj");
        assert_eq!(serde_json::from_value::<AdapterConfig>(json).unwrap().shape(), shape);
    }
}
