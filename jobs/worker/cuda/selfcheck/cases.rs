//! The small models that are trained, and how.

use candle_core::{Device as CandleDevice, Tensor};
use drydock_spec::recipe::DType;
use drydock_spec::{FinetuneArgs, Recipe};
use serde_json::{Value, json};

use super::{Batch, Decoder, Pass, Result, Trainable, read};
use crate::blocks::BlockKind;
use crate::data::rows::Row;
use crate::model::ModelFiles;
use crate::model::config::Config;
use crate::model::lora::{AdapterStart, LoraShape, start_values};
use crate::quantize::mix::fitting;
use crate::random::{Chance, Purpose};

/// Tokens of the rows of the batches, which lie end to end.
const ROWS: [&[usize]; 2] = [&[7, 1, 21], &[40, 2]];
pub(super) const VOCABULARY: usize = 97;

/// What is trained of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Trains {
    Everything,
    /// Some tensors: neighbours of one product of which one is trained and another is not.
    Some,
    Lora {
        dropout: f32,
    },
    /// LoRA over weights in blocks of this kind.
    Qlora(BlockKind),
    /// LoRA with trained lengths, perhaps over weights in blocks.
    Dora {
        dropout: f32,
        over: Option<BlockKind>,
    },
}

/// A training.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) model: &'static str,
    pub(super) trains: Trains,
    pub(super) dtype: DType,
    pub(super) checkpointing: bool,
}

/// Every kind of model, and on the first of them every kind of training.
pub(super) fn cases() -> Vec<Case> {
    use Trains::{Dora, Everything, Lora, Qlora, Some};
    let trainings = [
        ("llama", Everything, false),
        ("llama", Some, false),
        ("llama", Lora { dropout: 0.0 }, false),
        ("llama", Lora { dropout: 0.3 }, true),
        ("llama", Dora { dropout: 0.0, over: None }, false),
        ("llama", Dora { dropout: 0.3, over: None }, true),
        ("qwen2", Dora { dropout: 0.0, over: None }, true),
        ("qwen2", Everything, true),
        ("qwen3", Everything, false),
        ("qwen3", Lora { dropout: 0.0 }, false),
        ("phi3", Everything, false),
        ("phi3", Dora { dropout: 0.0, over: None }, false),
        ("gemma2", Everything, true),
        ("gemma2", Some, false),
        ("wide", Qlora(BlockKind::Q4_0), false),
        ("wide", Qlora(BlockKind::Q4_1), true),
        ("wide", Qlora(BlockKind::Q5_0), false),
        ("wide", Qlora(BlockKind::Q5_1), false),
        ("wide", Qlora(BlockKind::Q8_0), false),
        ("wide", Qlora(BlockKind::Q2K), false),
        ("wide", Qlora(BlockKind::Q3K), false),
        ("wide", Qlora(BlockKind::Q4K), false),
        ("wide", Qlora(BlockKind::Q5K), false),
        ("wide", Qlora(BlockKind::Q6K), false),
        ("wide", Dora { dropout: 0.0, over: Option::Some(BlockKind::Q8_0) }, false),
    ];
    let case = |dtype| trainings.map(|(model, trains, checkpointing)| Case { model, trains, dtype, checkpointing });
    // How blocks are widened does not depend on what is computed in.
    let narrow =
        case(DType::Bf16).into_iter().filter(|case| case.model != "wide" || case.trains == Qlora(BlockKind::Q4K));
    case(DType::F32).into_iter().chain(narrow).collect()
}

impl Case {
    pub(super) fn name(&self) -> String {
        let trains = match self.trains {
            Trains::Everything => "full".to_owned(),
            Trains::Some => "some tensors".to_owned(),
            Trains::Lora { dropout: 0.0 } => "lora".to_owned(),
            Trains::Lora { dropout } => format!("lora, dropout {dropout}"),
            Trains::Qlora(kind) => format!("qlora, {kind}"),
            Trains::Dora { dropout, over } => {
                let dropout = if dropout > 0.0 { format!(", dropout {dropout}") } else { String::new() };
                over.map_or_else(|| format!("dora{dropout}"), |kind| format!("dora{dropout}, {kind}"))
            }
        };
        let dtype = match self.dtype {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
        };
        let again = if self.checkpointing { ", again" } else { "" };
        format!("{} {dtype} {trains}{again}", self.model)
    }

    pub(super) fn recipe(&self) -> Recipe {
        let args = FinetuneArgs { model: "selfcheck".into(), dataset: "selfcheck".into(), ..FinetuneArgs::default() };
        let recipe = args.parse().expect("the default options are valid").recipe;
        // Not the usual 1e-8: where a gradient is all but zero, its rounding would decide on a whole step.
        Recipe { dtype: self.dtype, gradient_checkpointing: self.checkpointing, adam_epsilon: 1e-3, ..recipe }
    }

    /// Whether there is dropout.
    pub(super) fn drops(&self) -> bool {
        matches!(self.trains, Trains::Lora { dropout } | Trains::Dora { dropout, .. } if dropout > 0.0)
    }

    /// The CPU's part of it is always in f32.
    pub(super) fn pass(&self, number: u64) -> Pass {
        Pass { gradient_checkpointing: self.checkpointing, dropout_seed: number, ..Pass::default() }
    }

    pub(super) fn batches(&self) -> Vec<Batch> {
        let mut chance = Chance::new(7, Purpose::Bootstrap);
        let mut row = |tokens: &usize| {
            let ids = (0..*tokens).map(|_| chance.below(VOCABULARY) as u32).collect();
            Row { ids, counts: (0..*tokens).map(|_| chance.below(3) > 0).collect() }
        };
        ROWS.iter().map(|rows| Batch::of(&rows.iter().map(&mut row).collect::<Vec<_>>())).collect()
    }

    /// The same each time, with values that no training would start from: none of them hides a mistake.
    pub(super) fn model(&self) -> Result<(Decoder, Vec<Trainable>)> {
        let files = ModelFiles::start(Config::from_hf(&config(self.model))?, 3);
        let mut decoder = Decoder::load(&files, 80, |_| Ok(()))?;
        let mut chance = Chance::new(5, Purpose::Adapter);
        let trainables = match self.trains {
            Trains::Lora { .. } | Trains::Qlora(_) | Trains::Dora { .. } => {
                let (dropout, kind, dora) = match self.trains {
                    Trains::Dora { dropout, over } => (dropout, over, true),
                    Trains::Qlora(kind) => (0.0, Some(kind), false),
                    Trains::Lora { dropout } => (dropout, None, false),
                    Trains::Everything | Trains::Some => unreachable!("these train no adapter"),
                };
                if let Some(kind) = kind {
                    decoder.quantize(|width| fitting(kind, width));
                }
                let targets = ["q_proj", "v_proj", "qkv_proj", "o_proj", "up_proj", "down_proj"];
                let targets = targets.map(str::to_owned).to_vec();
                let shape = LoraShape { rank: 4, alpha: 6.0, dropout, dora, targets };
                decoder.adapt(&shape, |_, [rank, width, out]| {
                    let AdapterStart { a, .. } = start_values(&mut chance, rank, width, out)?;
                    let b = (0..out * rank).map(|_| chance.uniform(0.2)).collect::<Vec<_>>();
                    // About as long as the rows are, and none as long as its row.
                    let lengths = (0..out).map(|_| 0.25 + chance.uniform(0.1)).collect::<Vec<_>>();
                    let magnitude = if dora { Some(Tensor::new(lengths, &CandleDevice::Cpu)?) } else { None };
                    Ok(AdapterStart { a, b: Tensor::from_vec(b, (out, rank), &CandleDevice::Cpu)?, magnitude })
                })?
            }
            Trains::Everything | Trains::Some => {
                let all = decoder.tensors().map(|tensor| tensor.name.clone());
                let some = |name: &String| ["k_proj", "layernorm", "up_proj"].iter().any(|part| name.contains(part));
                let names: Vec<String> = all.filter(|name| self.trains == Trains::Everything || some(name)).collect();
                decoder.train(&names)?
            }
        };
        if matches!(self.trains, Trains::Everything | Trains::Some) {
            for trainable in &trainables {
                let values = read(&trainable.var, |values| Ok(values.to_vec()))?;
                let values: Vec<f32> = values.iter().map(|value| value * 2.0 + chance.uniform(0.05)).collect();
                let len = values.len();
                if len > 0 {
                    trainable.var.set(&Tensor::from_vec(values, len, &CandleDevice::Cpu)?)?;
                }
            }
        }
        Ok((decoder, trainables))
    }
}

/// `config.json` of a small model of an architecture.
fn config(model: &str) -> Value {
    let mut config = json!({
        "model_type": model, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 40, "vocab_size": VOCABULARY,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": model != "llama",
    });
    // Wide enough for super-blocks, and small in all else.
    if model == "wide" {
        config["model_type"] = json!("llama");
        config["hidden_size"] = json!(256);
        config["num_hidden_layers"] = json!(1);
        config["intermediate_size"] = json!(256);
    }
    // Rows and conversations get longer than what turns as usual.
    if model == "phi3" {
        config["original_max_position_embeddings"] = json!(16);
        config["rope_scaling"] = json!({
            "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 4.0, 8.0],
        });
    }
    if model == "gemma2" {
        config["query_pre_attn_scalar"] = json!(12);
        config["sliding_window"] = json!(9);
        config["attn_logit_softcapping"] = json!(2.0);
        config["final_logit_softcapping"] = json!(3.0);
        config["hidden_activation"] = json!("gelu_pytorch_tanh");
    }
    config
}
