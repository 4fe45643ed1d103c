//! The decoder: Llama's arithmetic for training, scoring and answering.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use drydock_spec::FailureKind;
use drydock_spec::finetune::TargetModule;

use super::ModelFiles;
use super::config::Config;
use super::head::{Ends, LastLayer};
use super::layer::{Adapter, Arithmetic, Layer, Norm, Projection};
use super::lora::{LoraShape, peft_name, projection_name};
use super::parameter::{Group, Parameter, Trainable, lend};
use crate::data::batch::Batch;
use crate::ending::{Result, failed};
use crate::kernels::attention::{Attention, Cache};
use crate::kernels::cross_entropy::Target;
use crate::kernels::read;
use crate::kernels::rope::Rope;
use crate::kernels::weight::Precision;

/// A model, frozen until [`Decoder::adapt`] or [`Decoder::train`] says what of it is to be trained.
pub struct Decoder {
    pub config: Config,
    /// `[vocabulary, hidden]`
    pub(super) embedding: Parameter,
    pub(super) layers: Vec<Layer>,
    pub(super) last: LastLayer,
    /// What is trained: the embedding's group, one for each layer, and the last layer's. None while all is frozen.
    groups: Vec<Trainable>,
    rope: Arc<Rope>,
}

impl Decoder {
    pub(super) const EMBEDDING_GROUP: usize = 0;

    pub(super) fn layer_group(&self, index: usize) -> usize {
        1 + index
    }

    fn last_group(&self) -> usize {
        1 + self.layers.len()
    }

    /// Opens every tensor, for rows of at most `positions` tokens. `layer_read` hears how many layers are there.
    pub fn load(
        files: &mut ModelFiles,
        positions: usize,
        mut layer_read: impl FnMut(usize) -> Result<()>,
    ) -> Result<Self> {
        let config = files.config.clone();
        let (vocabulary, hidden, epsilon) = (config.vocabulary, config.hidden, config.norm_epsilon);
        let embedding = files.parameter("model.embed_tokens.weight", &[vocabulary, hidden])?;
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(load_layer(files, index)?);
            layer_read(index + 1)?;
        }
        let norm = Norm { weight: files.parameter("model.norm.weight", &[hidden])?, epsilon };
        let head = if config.tied || !files.has("lm_head.weight") {
            None
        } else {
            Some(files.parameter("lm_head.weight", &[vocabulary, hidden])?)
        };
        let rope = Arc::new(Rope::new(&config.rope.inverse_frequencies(config.heads.dim), positions));
        Ok(Self { config, embedding, layers, last: LastLayer { norm, head }, groups: Vec::new(), rope })
    }

    /// Gives every target an adapter; `start` makes A `[rank, in]` and B `[out, rank]` for the projection at a layer.
    pub fn adapt(
        &mut self,
        shape: &LoraShape,
        mut start: impl FnMut(usize, TargetModule, [usize; 3]) -> Result<(Tensor, Tensor)>,
    ) -> Result<Vec<Trainable>> {
        let mut groups = self.empty_groups();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            for &module in &shape.targets {
                let projection = &mut layer.projections[module as usize];
                let sizes = [shape.rank, projection.weight.width(), projection.weight.out()];
                let (a, b) = start(index, module, sizes)?;
                check_adapter(&a, &b, sizes, &peft_name(index, module, 'A'))?;
                let mut place = |matrix: char, tensor: &Tensor| -> Result<Range<usize>> {
                    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
                    Ok(groups[1 + index].add(peft_name(index, module, matrix), tensor.dims(), &values))
                };
                projection.adapter = Some(Adapter {
                    a: place('A', &a)?,
                    b: place('B', &b)?,
                    scale: (shape.alpha / shape.rank as f64) as f32,
                    dropout: shape.dropout,
                    number: (index * TargetModule::ALL.len() + module as usize) as u64,
                });
            }
        }
        self.finish(groups)
    }

    /// Trains the tensors themselves: those whose name `chosen` approves of.
    pub fn train(&mut self, chosen: impl Fn(&str) -> bool) -> Result<Vec<Trainable>> {
        let mut groups = self.empty_groups();
        let mut take = |group: usize, parameter: &mut Parameter| {
            if chosen(&parameter.name) {
                groups[group].take(parameter);
            }
        };
        let last_group = 1 + self.layers.len();
        take(Self::EMBEDDING_GROUP, &mut self.embedding);
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.parameters_mut().for_each(|parameter| take(1 + index, parameter));
        }
        self.last.parameters_mut().for_each(|parameter| take(last_group, parameter));
        self.finish(groups)
    }

    fn empty_groups(&self) -> Vec<Group> {
        (0..=self.last_group()).map(|_| Group::default()).collect()
    }

    fn finish(&mut self, groups: Vec<Group>) -> Result<Vec<Trainable>> {
        self.groups = groups.into_iter().map(Group::finish).collect::<Result<_>>()?;
        Ok(self.groups.clone())
    }

    /// Every tensor of the model, without adapters.
    pub fn tensors(&self) -> impl Iterator<Item = &Parameter> {
        let layers = self.layers.iter().flat_map(Layer::parameters);
        std::iter::once(&self.embedding).chain(layers).chain(self.last.parameters())
    }

    /// Numbers in the model, without adapters.
    pub fn parameters(&self) -> u64 {
        self.tensors().map(|parameter| parameter.elements() as u64).sum()
    }

    /// The loss of a batch (the sum over its targets, in nats) for its own sake.
    pub fn score(&self, batch: &Batch) -> candle_core::Result<f64> {
        let x = self.stream(&batch.ids, &batch.bounds)?;
        Ok(self.losses(&x, &batch.targets, Precision::F32)?.into_iter().sum())
    }

    /// The logits `[tokens, vocabulary]` of one row.
    pub fn logits(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        let x = self.stream(ids, &Arc::from([0, ids.len()]))?;
        Tensor::from_vec(self.logits_of(&x)?, (ids.len(), self.config.vocabulary), &Device::Cpu)
    }

    /// What comes out of the last layer, `[tokens, hidden]`.
    fn stream(&self, ids: &[u32], bounds: &Arc<[usize]>) -> candle_core::Result<Vec<f32>> {
        let attention = self.attention(bounds);
        self.through_layers(self.embed(ids)?, |_, q, k, v| attention.forward(q, k, v))
    }

    /// The stream through every layer, without a backward pass to come; `attend` also hears which layer asks.
    fn through_layers(
        &self,
        mut x: Vec<f32>,
        mut attend: impl FnMut(usize, &[f32], &[f32], &[f32]) -> Vec<f32>,
    ) -> candle_core::Result<Vec<f32>> {
        for (index, layer) in self.layers.iter().enumerate() {
            x = self.lent(self.layer_group(index), |trained| {
                let layer = layer.with(trained, Arithmetic::default());
                layer.forward(&x, |q, k, v| attend(index, q, k, v)).0
            })?;
        }
        Ok(x)
    }

    fn logits_of(&self, x: &[f32]) -> candle_core::Result<Vec<f32>> {
        self.with_ends(|trained| self.last.head(&self.embedding, trained, Precision::F32).logits(x))
    }

    pub(super) fn losses(&self, x: &[f32], targets: &[Target], precision: Precision) -> candle_core::Result<Vec<f64>> {
        self.with_ends(|trained| self.last.head(&self.embedding, trained, precision).losses(x, targets, None))
    }

    /// The embeddings of the tokens, `[tokens, hidden]`.
    pub(super) fn embed(&self, ids: &[u32]) -> candle_core::Result<Vec<f32>> {
        self.lent(Self::EMBEDDING_GROUP, |trained| {
            let embedding = self.embedding.matrix(trained);
            let mut x = vec![0.0; ids.len() * embedding.width];
            for (row, &id) in x.chunks_exact_mut(embedding.width).zip(ids) {
                embedding.row(id as usize, row);
            }
            x
        })
    }

    /// Adds the gradients of the tokens' embeddings, one token after the other: a token that occurs twice gets the
    /// same sum each time.
    pub(super) fn embedding_backward(&self, ids: &[u32], dx: &[f32], gradients: &mut [f32]) {
        let [Some(dembedding)] = lend(gradients, [self.embedding.trained()]) else { return };
        let width = self.embedding.width();
        for (dx, &id) in dx.chunks_exact(width).zip(ids) {
            let row = &mut dembedding[id as usize * width..][..width];
            row.iter_mut().zip(dx).for_each(|(sum, dx)| *sum += dx);
        }
    }

    pub(super) fn attention(&self, bounds: &Arc<[usize]>) -> Attention {
        Attention { heads: self.config.heads, rope: self.rope.clone(), bounds: bounds.clone() }
    }

    /// Lends a group's trained values to `f`; there may be none.
    pub(super) fn lent<R>(&self, group: usize, f: impl FnOnce(&[f32]) -> R) -> candle_core::Result<R> {
        match self.groups.get(group) {
            Some(trainable) => read(&trainable.var, |trained| Ok(f(trained))),
            None => Ok(f(&[])),
        }
    }

    /// Lends the trained values of the model's both ends to `f`.
    pub(super) fn with_ends<R>(&self, f: impl FnOnce(&Ends<&[f32]>) -> R) -> candle_core::Result<R> {
        self.lent(Self::EMBEDDING_GROUP, |embedding| self.lent(self.last_group(), |last| f(&Ends { embedding, last })))?
    }

    /// A conversation with nothing said yet.
    pub fn conversation(&self) -> Conversation<'_> {
        let caches = self.layers.iter().map(|_| Cache::new(self.config.heads)).collect();
        Conversation { decoder: self, caches }
    }
}

/// Tokens taken in so far, as the layers remember them.
pub struct Conversation<'d> {
    decoder: &'d Decoder,
    caches: Vec<Cache>,
}

impl Conversation<'_> {
    /// Takes in more tokens, at least one, and returns the logits `[vocabulary]` of what follows them. All tokens
    /// together must fit the positions that the decoder was loaded for.
    pub fn take_in(&mut self, ids: &[u32]) -> candle_core::Result<Vec<f32>> {
        let Self { decoder, caches } = self;
        let attend = |layer: usize, q: &[f32], k: &[f32], v: &[f32]| caches[layer].attend(&decoder.rope, q, k, v);
        let x = decoder.through_layers(decoder.embed(ids)?, attend)?;
        decoder.logits_of(&x[(ids.len() - 1) * decoder.config.hidden..])
    }
}

fn load_layer(files: &mut ModelFiles, index: usize) -> Result<Layer> {
    let Config { hidden, intermediate, heads, norm_epsilon, .. } = files.config;
    let (q_width, kv_width) = (heads.query_width(), heads.key_value_width());
    let mut projection = |module| -> Result<Projection> {
        let (out, width) = match module {
            TargetModule::QProj => (q_width, hidden),
            TargetModule::KProj | TargetModule::VProj => (kv_width, hidden),
            TargetModule::OProj => (hidden, q_width),
            TargetModule::GateProj | TargetModule::UpProj => (intermediate, hidden),
            TargetModule::DownProj => (hidden, intermediate),
        };
        let weight = files.parameter(&format!("{}.weight", projection_name(index, module)), &[out, width])?;
        Ok(Projection { weight, adapter: None })
    };
    let [q, k, v, o, gate, up, down] = TargetModule::ALL.map(&mut projection);
    let projections = [q?, k?, v?, o?, gate?, up?, down?];
    let mut norm = |name: &str| -> Result<Norm> {
        let weight = files.parameter(&format!("model.layers.{index}.{name}.weight"), &[hidden])?;
        Ok(Norm { weight, epsilon: norm_epsilon })
    };
    let (input_norm, post_attention_norm) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
    Ok(Layer { input_norm, post_attention_norm, projections })
}

fn check_adapter(a: &Tensor, b: &Tensor, [rank, width, out]: [usize; 3], name: &str) -> Result<()> {
    if a.dims() == [rank, width] && b.dims() == [out, rank] {
        return Ok(());
    }
    let (a, b) = (a.dims(), b.dims());
    let message = format!("`{name}` is {a:?} and its B is {b:?}; [{rank}, {width}] and [{out}, {rank}] fit the model");
    failed(FailureKind::BadModel, message)
}
