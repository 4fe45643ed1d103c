//! What trainings and evaluations hold of a GPU's memory, against the formulas that estimates are made by.

use drydock_spec::device::{DeviceEvaluation, DeviceTraining, WORKSPACE_BYTES};
use drydock_spec::finetune::TargetModule;
use drydock_spec::recipe::DType;
use drydock_spec::tape::LayerWidths;
use drydock_spec::{FinetuneArgs, Recipe};
use drydock_worker::blocks::BlockKind;
use drydock_worker::cuda::Computed;
use drydock_worker::cuda::device::Device;
use drydock_worker::cuda::engine::Cuda;
use drydock_worker::cuda::speaker::Loaded;
use drydock_worker::data::batch::Batch;
use drydock_worker::data::rows::Row;
use drydock_worker::model::ModelFiles;
use drydock_worker::model::config::Config;
use drydock_worker::model::conversation::Piece;
use drydock_worker::model::decoder::Decoder;
use drydock_worker::model::lora::{LoraShape, start_values};
use drydock_worker::model::speaker::Speaker;
use drydock_worker::model::tape::Pass;
use drydock_worker::random::{Chance, Purpose};
use drydock_worker::training::engine::Engine;
use half::bf16;
use serde_json::json;

use crate::emulated_gpu;

const ROWS: [usize; 2] = [100, 28];
const TOKENS: usize = ROWS[0] + ROWS[1];

/// What differs between the trainings.
#[derive(Debug, Clone, Copy)]
struct Training {
    dtype: DType,
    /// Dropout of adapters, where there are any, and whether their rows' lengths are trained.
    adapter: Option<(f32, bool)>,
    again: bool,
    /// A model whose MLP is wide, or one whose heads and vocabulary are.
    wide_mlp: bool,
    /// Whether the frozen weights are in blocks of four bits.
    in_blocks: bool,
}

fn decoder(training: Training) -> Decoder {
    let (ffn, heads, vocabulary) = if training.wide_mlp { (160, 4, 64) } else { (32, 8, 300) };
    let config = json!({
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": heads,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": ffn, "vocab_size": vocabulary,
        "max_position_embeddings": 128, "tie_word_embeddings": true,
    });
    Decoder::load(&ModelFiles::start(Config::from_hf(&config).unwrap(), 1), 128, |_| Ok(())).unwrap()
}

fn widths(decoder: &Decoder) -> LayerWidths {
    let config = &decoder.config;
    LayerWidths {
        hidden: config.hidden as u64,
        queries: config.heads.query_width() as u64,
        keys: config.heads.key_value_width() as u64,
        ffn: config.intermediate as u64,
        norms_after: false,
    }
}

fn in_projections(decoder: &Decoder) -> u64 {
    let projections = decoder.tensors().filter(|tensor| tensor.name.contains("_proj"));
    projections.map(|tensor| tensor.elements() as u64).sum()
}

/// The most that was held in two steps, and what the formula says.
fn held(device: &Device, training: Training) -> (u64, u64) {
    let mut decoder = decoder(training);
    if training.in_blocks {
        decoder.quantize(|_| BlockKind::Q4_0);
    }
    let trainables = match training.adapter {
        None => {
            let names: Vec<String> = decoder.tensors().map(|tensor| tensor.name.clone()).collect();
            decoder.train(&names).unwrap()
        }
        Some((dropout, dora)) => {
            let targets = TargetModule::ALL.map(|module| module.name().to_owned()).to_vec();
            let shape = LoraShape { rank: 4, alpha: 8.0, dropout, dora, targets };
            let mut chance = Chance::new(1, Purpose::Adapter);
            decoder.adapt(&shape, |_, [rank, width, out]| start_values(&mut chance, rank, width, out)).unwrap()
        }
    };
    let args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
    let recipe = Recipe { dtype: training.dtype, ..args.parse().unwrap().recipe };
    let rows = ROWS.map(|len| Row { ids: (0..len as u32).map(|id| id % 60).collect(), counts: vec![true; len] });
    let batch = Batch::of(&rows);
    let pass = Pass { gradient_checkpointing: training.again, dropout_seed: 1, ..Pass::default() };
    let step = |engine: &mut dyn Engine| {
        for _ in 0..2 {
            engine.clear().unwrap();
            engine.record(&batch, pass).unwrap().backward(&vec![0.01; batch.targets.len()]).unwrap();
            engine.sums().unwrap();
            engine.step(1e-3, 1.0).unwrap();
        }
    };
    device.forget_peak();
    match training.dtype {
        DType::F32 => step(&mut Cuda::<f32>::new(device, &decoder, &recipe, &trainables).unwrap()),
        DType::Bf16 => step(&mut Cuda::<bf16>::new(device, &decoder, &recipe, &trainables).unwrap()),
    }
    let trained = trainables.iter().map(|trainable| trainable.var.elem_count() as u64).sum();
    let config = &decoder.config;
    let formula = DeviceTraining {
        dtype: training.dtype,
        widths: widths(&decoder),
        layers: config.layers as u64,
        query_heads: config.heads.query as u64,
        vocabulary: config.vocabulary as u64,
        frozen: if training.adapter.is_some() { decoder.parameters() } else { 0 },
        trained,
        tokens: TOKENS as u64,
        longest_row: ROWS[0] as u64,
        gradient_checkpointing: training.again,
        dropout: training.adapter.is_some_and(|(dropout, _)| dropout > 0.0),
        dora: training.adapter.is_some_and(|(_, dora)| dora),
    };
    let in_blocks = if training.in_blocks { in_projections(&decoder) } else { 0 };
    let said = formula.bytes() - formula.saved_by_blocks(in_blocks, in_blocks / 32 * 18);
    (device.memory().peak - WORKSPACE_BYTES, said - WORKSPACE_BYTES)
}

#[test]
fn a_training_holds_what_the_formula_says() {
    emulated_gpu::plug_in();
    let device = Device::open(0).unwrap();
    let mut wrong = Vec::new();
    let cases = [
        (DType::F32, None, false, false, false),
        (DType::F32, Some((0.0, false)), false, true, false),
        (DType::F32, Some((0.0, false)), true, false, true),
        (DType::Bf16, None, true, true, false),
        (DType::Bf16, Some((0.0, false)), false, false, false),
        (DType::Bf16, Some((0.1, false)), true, false, false),
        (DType::Bf16, Some((0.1, false)), false, true, false),
        (DType::F32, Some((0.0, true)), false, true, false),
        (DType::F32, Some((0.0, true)), true, false, true),
        (DType::Bf16, Some((0.1, true)), false, true, false),
        (DType::Bf16, Some((0.1, true)), true, false, false),
    ];
    for (dtype, adapter, again, wide_mlp, in_blocks) in cases {
        let training = Training { dtype, adapter, again, wide_mlp, in_blocks };
        let (held, said) = held(&device, training);
        let share = said as f64 / held as f64;
        if !(1.0..1.25).contains(&share) {
            wrong.push(format!("{training:?}: {held} bytes are held, and the formula says {share:.3} of that"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The most that was held while texts were scored and conversations went on, and what the formula says.
fn held_by_an_evaluation<T: Computed>(device: &Device, dtype: DType, wide_mlp: bool, in_blocks: bool) -> (u64, u64) {
    let mut decoder = decoder(Training { dtype, adapter: None, again: false, wide_mlp, in_blocks });
    if in_blocks {
        decoder.quantize(|_| BlockKind::Q4_0);
    }
    let ids: Vec<u32> = (0..TOKENS as u32).map(|id| id % 60).collect();
    device.forget_peak();
    let loaded = Loaded::<T>::new(device, &decoder).unwrap();
    let voice = loaded.voice();
    let mut conversations: Vec<_> = ROWS.iter().map(|&room| voice.conversation(room).unwrap()).collect();
    let rows = ROWS.map(|len| Row { ids: ids[..len].to_vec(), counts: vec![true; len] });
    voice.target_losses(&Batch::of(&rows)).unwrap();
    for piece in [0..10, 10..28] {
        let mut pieces: Vec<_> =
            conversations.iter_mut().map(|conversation| Piece { conversation, ids: &ids[piece.clone()] }).collect();
        voice.next_tokens(&mut pieces).unwrap();
    }
    let config = &decoder.config;
    let formula = DeviceEvaluation {
        dtype,
        widths: widths(&decoder),
        layers: config.layers as u64,
        query_heads: config.heads.query as u64,
        vocabulary: config.vocabulary as u64,
        parameters: decoder.parameters(),
        tokens: TOKENS as u64,
        longest_row: ROWS[0] as u64,
        remembered: TOKENS as u64,
    };
    let in_blocks = if in_blocks { in_projections(&decoder) } else { 0 };
    let said = formula.bytes() - formula.saved_by_blocks(in_blocks, in_blocks / 32 * 18);
    (device.memory().peak - WORKSPACE_BYTES, said - WORKSPACE_BYTES)
}

#[test]
fn an_evaluation_holds_what_the_formula_says() {
    emulated_gpu::plug_in();
    let device = Device::open(0).unwrap();
    let mut wrong = Vec::new();
    for (wide_mlp, in_blocks) in [(false, false), (true, false), (true, true)] {
        for (dtype, (held, said)) in [
            (DType::F32, held_by_an_evaluation::<f32>(&device, DType::F32, wide_mlp, in_blocks)),
            (DType::Bf16, held_by_an_evaluation::<bf16>(&device, DType::Bf16, wide_mlp, in_blocks)),
        ] {
            let share = said as f64 / held as f64;
            if !(1.0..1.25).contains(&share) {
                wrong.push(format!(
                    "{dtype:?}, wide MLP {wide_mlp}, blocks {in_blocks}: {held} bytes are held, and the formula says \
                     {share:.3} of that"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
