use drydock_spec::FinetuneArgs;
use drydock_spec::finetune::Method;
use drydock_spec::tape::LayerWidths;
use serde_json::json;

use super::*;
use crate::data::rows::Row;
use crate::model::ModelFiles;
use crate::model::config::Config;
use crate::model::method::choose;

impl Tape<'_> {
    /// What the tape takes of the memory.
    fn bytes(&self) -> usize {
        let entry = |entry: &Entry| entry.x.capacity() + entry.kept.as_ref().map_or(0, Kept::numbers);
        size_of::<f32>() * (self.stream.capacity() + self.layers.iter().map(entry).sum::<usize>())
    }
}

fn config(architecture: &str, head_dim: usize) -> Config {
    Config::from_hf(&json!({"model_type": architecture, "hidden_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim, "intermediate_size": 96,
        "vocab_size": 64, "rms_norm_eps": 1e-5, "max_position_embeddings": 64}))
    .unwrap()
}

fn widths(config: &Config) -> LayerWidths {
    let [hidden, queries, keys, ffn] =
        [config.hidden, config.heads.query_width(), config.heads.key_value_width(), config.intermediate]
            .map(|width| width as u64);
    LayerWidths { hidden, queries, keys, ffn, norms_after: config.features.norms_after }
}

#[test]
fn a_tape_takes_as_many_bytes_as_the_plan_counts() {
    let row = |length: u32| Row { ids: (0..length).collect(), counts: vec![true; length as usize] };
    let batch = Batch::of(&[row(7), row(16)]);
    for (architecture, head_dim) in [("llama", 8), ("qwen3", 24), ("gemma2", 16), ("gemma3_text", 8), ("phi3", 8)] {
        for method in [Method::Lora, Method::Qlora, Method::Dora, Method::Full] {
            for gradient_checkpointing in [false, true] {
                let args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
                let args = FinetuneArgs { method: Some(method), lora_r: Some(2), lora_dropout: Some(0.1), ..args };
                let files = ModelFiles::start(config(architecture, head_dim), 7);
                let mut decoder = Decoder::load(&files, 64, |_| Ok(())).unwrap();
                choose(&mut decoder, &args.parse().unwrap(), None).unwrap();
                let pass = Pass { gradient_checkpointing, ..Pass::default() };
                let tape = Tape::record(&decoder, &batch, pass).unwrap();
                let numbers = widths(&decoder.config).taped(3, gradient_checkpointing) * 23;
                let what = format!("{architecture}, {method:?}, gradient_checkpointing {gradient_checkpointing}");
                assert_eq!(tape.bytes() as u64, 4 * numbers, "{what}");
            }
        }
    }
}
