//! Adapters: which projections have one, what it starts from, and how PEFT writes it down.

mod config;

use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};
use drydock_spec::FailureKind::{BadModel, UnsupportedModel};
use drydock_spec::finetune::TargetModule;

use super::decoder::Decoder;
use super::fused;
use super::hf::{Shards, read_json};
use super::layer::{Adapter, Projection, RowLengths};
use super::parameter::{Group, Trainable};
use crate::ending::{Result, failed};
use crate::kernels::dora::{row_norms, row_squares};
use crate::kernels::linear::Lora;
use crate::random::Chance;
pub use config::AdapterConfig;

/// What all adapters of a model share.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraShape {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f32,
    /// Whether the lengths of the adapted weights' rows are trained as well (DoRA).
    pub dora: bool,
    /// By PEFT's rule: each projection whose name is one of these, or ends with one after a dot.
    pub targets: Vec<String>,
}

/// What an adapter starts from.
pub struct AdapterStart {
    /// `[rank, width]`
    pub a: Tensor,
    /// `[out, rank]`
    pub b: Tensor,
    /// DoRA's lengths `[out]`; without them, those of the adapted weight itself.
    pub magnitude: Option<Tensor>,
}

/// PEFT's name of a tensor that belongs to the adapter of the projection of this name: `lora_A.weight`,
/// `lora_B.weight` or `lora_magnitude_vector`.
pub fn peft_name(projection: &str, tensor: &str) -> String {
    format!("base_model.model.{projection}.{tensor}")
}

pub const LORA_A: &str = "lora_A.weight";
pub const LORA_B: &str = "lora_B.weight";
pub const LORA_MAGNITUDE: &str = "lora_magnitude_vector";

/// PEFT's start: A is Kaiming-uniform with a = sqrt(5), which comes to 1 / sqrt(in) as the bound; B is zero, so that
/// the adapted model starts as the model itself.
pub fn start_values(chance: &mut Chance, rank: usize, width: usize, out: usize) -> Result<AdapterStart> {
    let bound = 1.0 / (width as f32).sqrt();
    let a: Vec<f32> = (0..rank * width).map(|_| chance.uniform(bound)).collect();
    let a = Tensor::from_vec(a, (rank, width), &Device::Cpu)?;
    let b = Tensor::zeros((out, rank), candle_core::DType::F32, &Device::Cpu)?;
    Ok(AdapterStart { a, b, magnitude: None })
}

impl LoraShape {
    /// Whether the projection of this name has an adapter.
    pub fn targets(&self, name: &str) -> bool {
        let fits = |target: &String| {
            name.strip_suffix(target.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.targets.iter().any(fits)
    }
}

impl Decoder {
    /// Gives every target an adapter; `start` makes its values for the projection of a name, given rank, width and out.
    pub fn adapt(
        &mut self,
        shape: &LoraShape,
        mut start: impl FnMut(&str, [usize; 3]) -> Result<AdapterStart>,
    ) -> Result<Vec<Trainable>> {
        let mut groups = self.empty_groups();
        for index in 0..self.layers.len() {
            let group = self.layer_group(index);
            for site in fused::sites(index, &self.config).iter().filter(|site| shape.targets(&site.name)) {
                let projections = &mut self.layers[index].projections;
                let parts: Vec<&Projection> =
                    site.modules.iter().map(|&module| &projections[module as usize]).collect();
                let out = parts.iter().map(|part| part.weight.out()).sum();
                let start = start(&site.name, [shape.rank, parts[0].weight.width(), out])?;
                // A number that no other projection has; the parts of one drop the same inputs.
                let number = (index * TargetModule::ALL.len() + site.modules[0] as usize) as u64;
                let adapters = adapters(&parts, shape, &site.name, number, &start, &mut groups[group])?;
                for (&module, adapter) in site.modules.iter().zip(adapters) {
                    projections[module as usize].adapter = Some(adapter);
                }
            }
        }
        self.finish(groups)
    }

    /// The names of all projections that an adapter can be laid over, without `.weight`.
    pub fn projection_names(&self) -> Vec<String> {
        let layer = |index| fused::sites(index, &self.config).into_iter().map(|site| site.name);
        (0..self.layers.len()).flat_map(layer).collect()
    }
}

/// Lays an adapter's values into its layer's group. Where the files hold several projections in one, the adapter is one
/// as well: all have the same A, and each has its rows of B and of DoRA's lengths.
fn adapters(
    parts: &[&Projection],
    shape: &LoraShape,
    name: &str,
    number: u64,
    start: &AdapterStart,
    group: &mut Group,
) -> Result<Vec<Adapter>> {
    let (rank, width) = (shape.rank, parts[0].weight.width());
    let out = parts.iter().map(|part| part.weight.out()).sum();
    let values = |tensor: &Tensor, kind: &str, wanted: &[usize]| -> Result<Vec<f32>> {
        if tensor.dims() != wanted {
            let (name, found) = (peft_name(name, kind), tensor.dims());
            return failed(BadModel, format!("`{name}` is {found:?}; {wanted:?} fits the model"));
        }
        Ok(tensor.flatten_all()?.to_vec1()?)
    };
    let a = values(&start.a, LORA_A, &[rank, width])?;
    let b = values(&start.b, LORA_B, &[out, rank])?;
    let scale = (shape.alpha / rank as f64) as f32;
    let mut add = |kind, shape: &[usize], values: &[f32]| group.add(peft_name(name, kind), shape, values);
    let (a_place, b_place) = (add(LORA_A, &[rank, width], &a), add(LORA_B, &[out, rank], &b));
    let rows = rows_of(parts);
    let mut magnitudes: Vec<Option<RowLengths>> = vec![None; parts.len()];
    if shape.dora {
        let squares: Vec<Vec<f32>> = parts.iter().map(|part| row_squares(part.weight.matrix(&[]))).collect();
        let lengths = match &start.magnitude {
            Some(tensor) => values(tensor, LORA_MAGNITUDE, &[out])?,
            None => {
                let of_part = |((part, rows), squares): ((&&Projection, &Range<usize>), &Vec<f32>)| {
                    let b = &b[rows.start * rank..rows.end * rank];
                    row_norms(
                        part.weight.matrix(&[]),
                        squares,
                        &Lora { a: &a, b, scale, dropout: None, magnitude: None },
                    )
                };
                parts.iter().zip(&rows).zip(&squares).flat_map(of_part).collect()
            }
        };
        let place = add(LORA_MAGNITUDE, &[out], &lengths);
        for ((magnitude, rows), frozen_squares) in magnitudes.iter_mut().zip(&rows).zip(squares) {
            *magnitude = Some(RowLengths { trained: within(&place, rows, 1), frozen_squares });
        }
    }
    let adapter = |(rows, magnitude): (Range<usize>, Option<RowLengths>)| {
        let b = within(&b_place, &rows, rank);
        Adapter { a: a_place.clone(), b, magnitude, scale, dropout: shape.dropout, number }
    };
    Ok(rows.into_iter().zip(magnitudes).map(adapter).collect())
}

/// Which rows of the whole each part has.
fn rows_of(parts: &[&Projection]) -> Vec<Range<usize>> {
    let mut end = 0;
    let rows = |part: &&Projection| {
        let start = end;
        end += part.weight.out();
        start..end
    };
    parts.iter().map(rows).collect()
}

/// Where rows of so many values lie that are part of what lies at `place`.
fn within(place: &Range<usize>, rows: &Range<usize>, width: usize) -> Range<usize> {
    place.start + rows.start * width..place.start + rows.end * width
}

/// An adapter in PEFT's form, opened but not read.
pub struct SavedAdapter {
    pub shape: LoraShape,
    shards: Shards,
}

impl SavedAdapter {
    pub fn open(folder: &Path) -> Result<Self> {
        let shape = AdapterConfig::parse(&read_json(&folder.join("adapter_config.json"))?)?.shape();
        Ok(Self { shape, shards: Shards::open(folder)? })
    }

    /// Gives it to the decoder.
    pub fn load(self, decoder: &mut Decoder) -> Result<Vec<Trainable>> {
        let Self { shape, shards } = self;
        let mut taken = 0;
        let trainables = decoder.adapt(&shape, |name, _| {
            let mut tensor = |kind| {
                taken += 1;
                shards.tensor(&peft_name(name, kind))
            };
            let (a, b) = (tensor(LORA_A)?, tensor(LORA_B)?);
            let magnitude = if shape.dora { Some(tensor(LORA_MAGNITUDE)?) } else { None };
            Ok(AdapterStart { a, b, magnitude })
        })?;
        // What is left over changes the model's answers elsewhere.
        if taken != shards.len() {
            let left = shards.len() - taken;
            let message = format!("{left} of the adapter's tensors belong to none of the model's projections");
            return failed(UnsupportedModel, message);
        }
        Ok(trainables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::projection_name;

    fn shape() -> LoraShape {
        let targets = vec!["q_proj".into(), "model.layers.1.mlp.up_proj".into()];
        LoraShape { rank: 8, alpha: 16.0, dropout: 0.0, dora: true, targets }
    }

    #[test]
    fn names_are_those_of_peft() {
        let name = peft_name(&projection_name(3, TargetModule::GateProj), LORA_A);
        assert_eq!(name, "base_model.model.model.layers.3.mlp.gate_proj.lora_A.weight");
    }

    #[test]
    fn a_target_is_a_name_or_the_end_of_one() {
        let targets = |layer, module| shape().targets(&projection_name(layer, module));
        assert!(targets(0, TargetModule::QProj) && targets(7, TargetModule::QProj));
        assert!(targets(1, TargetModule::UpProj) && !targets(11, TargetModule::UpProj));
        assert!(!LoraShape { targets: vec!["proj".into()], ..shape() }.targets("model.layers.0.self_attn.q_proj"));
    }
}
