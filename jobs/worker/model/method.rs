//! What of a model a finetune trains.

use std::path::Path;

use drydock_spec::FailureKind::BadOption;
use drydock_spec::FinetuneSpec;
use drydock_spec::finetune::Method;

use super::decoder::Decoder;
use super::fused;
use super::lora::{LoraShape, SavedAdapter, start_values};
use super::names::chosen;
use super::parameter::Trainable;
use crate::ending::{Result, failed};
use crate::quantize::mix::{block_kind, fitting};
use crate::random::{Chance, Purpose};

/// What is trained, and the shape of the adapter where it is one.
pub struct Chosen {
    pub trainables: Vec<Trainable>,
    pub adapter: Option<LoraShape>,
}

/// Makes the decoder ready for training as the options ask for it; `adapter` is a folder with an adapter to go on from.
pub fn choose(decoder: &mut Decoder, spec: &FinetuneSpec, adapter: Option<&Path>) -> Result<Chosen> {
    if spec.method == Method::Full {
        let names = decoder.tensors().map(|parameter| parameter.name.clone()).collect();
        let names = chosen(spec.trainable.as_deref().unwrap_or_default(), names)?;
        return Ok(Chosen { trainables: decoder.train(&names)?, adapter: None });
    }
    if spec.method == Method::Qlora {
        let kind = block_kind(spec.base_quant_type);
        decoder.quantize(|width| fitting(kind, width));
    }
    if let Some(folder) = adapter {
        return go_on(decoder, spec, folder);
    }
    let shape = LoraShape {
        rank: spec.lora_r as usize,
        alpha: spec.lora_alpha,
        dropout: spec.lora_dropout as f32,
        dora: spec.method == Method::Dora,
        targets: targets(decoder, spec)?,
    };
    let mut chance = Chance::new(spec.recipe.seed, Purpose::Adapter);
    let trainables = decoder.adapt(&shape, |_, [rank, width, out]| start_values(&mut chance, rank, width, out))?;
    Ok(Chosen { trainables, adapter: Some(shape) })
}

/// Rank, alpha and targets are the adapter's own; dropout belongs to the training, not to the adapter.
fn go_on(decoder: &mut Decoder, spec: &FinetuneSpec, folder: &Path) -> Result<Chosen> {
    let mut adapter = SavedAdapter::open(folder)?;
    if spec.trainable.is_some() {
        return failed(BadOption, "trainable: given together with adapter, whose own targets are trained");
    }
    if adapter.shape.dora != (spec.method == Method::Dora) {
        let (is, asked) = if adapter.shape.dora { ("dora", "lora or qlora") } else { ("lora", "dora") };
        let message = format!("the adapter to go on from was made by method {is}, and method {asked} is asked for");
        return failed(BadOption, message);
    }
    adapter.shape.dropout = spec.lora_dropout as f32;
    let shape = adapter.shape.clone();
    Ok(Chosen { trainables: adapter.load(decoder)?, adapter: Some(shape) })
}

/// The names of modules where every layer has them, and otherwise the full names of the projections.
fn targets(decoder: &Decoder, spec: &FinetuneSpec) -> Result<Vec<String>> {
    let modules = fused::targets(&spec.target_modules, &decoder.config)?;
    let Some(patterns) = &spec.trainable else { return Ok(modules) };
    let is_module =
        |name: &String| name.rsplit('.').next().is_some_and(|end| modules.iter().any(|module| module == end));
    chosen(patterns, decoder.projection_names().into_iter().filter(is_module).collect())
}
