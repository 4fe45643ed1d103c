//! The decoder: one arithmetic, by configuration that of Llama, Mistral, Qwen, Gemma and Phi, for training, scoring and
//! answering.

use std::collections::HashSet;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use drydock_spec::finetune::TargetModule;

use super::ModelFiles;
use super::config::Config;
use super::head::{Ends, LastLayer};
use super::layer::{Arithmetic, Layer, Norm, Projection};
use super::names::projection_name;
use super::parameter::{Group, Parameter, Place, Trainable, lend};
use crate::blocks::BlockKind;
use crate::data::batch::Batch;
use crate::ending::Result;
use crate::kernels::attention::Attention;
use crate::kernels::cross_entropy::Target;
use crate::kernels::read;
use crate::kernels::rope::Rope;
use crate::kernels::weight::Precision;

/// A model, frozen until [`Decoder::adapt`] or [`Decoder::train`] says what of it is to be trained.
pub struct Decoder {
    pub config: Config,
    /// What scoring and answering compute with; a training pass says so itself.
    pub scoring: Precision,
    /// `[vocabulary, hidden]`
    pub(crate) embedding: Parameter,
    pub(crate) layers: Vec<Layer>,
    pub(crate) last: LastLayer,
    /// What is trained: the embedding's group, one for each layer, and the last layer's. None while all is frozen.
    groups: Vec<Trainable>,
    pub(crate) rope: Arc<Rope>,
    /// What turns the heads of layers with a window, where that differs.
    window_rope: Option<Arc<Rope>>,
}

impl Decoder {
    pub(crate) const EMBEDDING_GROUP: usize = 0;

    pub(crate) fn layer_group(&self, index: usize) -> usize {
        1 + index
    }

    pub(crate) fn last_group(&self) -> usize {
        1 + self.layers.len()
    }

    /// Opens every tensor, for rows of at most `positions` tokens. `layer_read` hears how many layers are there.
    pub fn load(files: &ModelFiles, positions: usize, mut layer_read: impl FnMut(usize) -> Result<()>) -> Result<Self> {
        let config = files.config.clone();
        let (vocabulary, hidden, epsilon) = (config.vocabulary, config.hidden, config.norm_epsilon);
        let embedding = files.parameter("model.embed_tokens.weight", &[vocabulary, hidden])?;
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(load_layer(files, index)?);
            layer_read(index + 1)?;
        }
        let offset = config.features.norm_offset;
        let norm = Norm { weight: files.parameter("model.norm.weight", &[hidden])?, offset, epsilon };
        let head = if config.tied || !files.has("lm_head.weight") {
            None
        } else {
            Some(files.parameter("lm_head.weight", &[vocabulary, hidden])?)
        };
        let rope = Arc::new(config.rope.rope(positions));
        let window_rope = config.window_rope.as_ref().map(|rope| Arc::new(rope.rope(positions)));
        let last = LastLayer { norm, head, softcap: config.features.logit_softcap };
        let scoring = Precision::default();
        Ok(Self { config, scoring, embedding, layers, last, groups: Vec::new(), rope, window_rope })
    }

    /// Trains the tensors themselves: those of these names.
    pub fn train(&mut self, names: &[String]) -> Result<Vec<Trainable>> {
        let names: HashSet<&str> = names.iter().map(String::as_str).collect();
        let mut groups = self.empty_groups();
        let mut take = |group: usize, parameter: &mut Parameter| {
            if names.contains(parameter.name.as_str()) {
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

    /// Holds the projections' weights in quantized blocks; `kind` says in which, by the width of a row. Embedding and
    /// head stay as they are, as in QLoRA (Dettmers et al. 2023).
    pub fn quantize(&mut self, kind: impl Fn(usize) -> BlockKind) {
        for projection in self.layers.iter_mut().flat_map(|layer| &mut layer.projections) {
            let width = projection.weight.width();
            if let Place::Frozen(stored) = &mut projection.weight.place {
                stored.quantize(kind(width));
            }
        }
    }

    pub(super) fn empty_groups(&self) -> Vec<Group> {
        (0..=self.last_group()).map(|_| Group::default()).collect()
    }

    pub(super) fn finish(&mut self, groups: Vec<Group>) -> Result<Vec<Trainable>> {
        self.groups = groups.into_iter().map(Group::finish).collect::<Result<_>>()?;
        Ok(self.groups.clone())
    }

    /// Every tensor of the model, without adapters.
    pub fn tensors(&self) -> impl Iterator<Item = &Parameter> {
        let layers = self.layers.iter().flat_map(Layer::parameters);
        std::iter::once(&self.embedding).chain(layers).chain(self.last.parameters())
    }

    /// What is trained, group by group; nothing where nothing ever was.
    pub fn groups(&self) -> &[Trainable] {
        &self.groups
    }

    /// Whether the head's weight is the embedding's.
    pub fn is_tied(&self) -> bool {
        self.last.head.is_none()
    }

    /// Numbers in the model, without adapters.
    pub fn parameters(&self) -> u64 {
        self.tensors().map(|parameter| parameter.elements() as u64).sum()
    }

    /// The loss of a batch (the sum over its targets, in nats) for its own sake.
    pub fn score(&self, batch: &Batch) -> candle_core::Result<f64> {
        Ok(self.target_losses(batch)?.into_iter().sum())
    }

    /// The negative log likelihood of each of a batch's targets, in nats, for its own sake.
    pub fn target_losses(&self, batch: &Batch) -> candle_core::Result<Vec<f64>> {
        let x = self.stream(&batch.ids, &batch.bounds)?;
        self.losses(&x, &batch.targets, self.scoring)
    }

    /// The logits `[tokens, vocabulary]` of one row.
    pub fn logits(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        let x = self.stream(ids, &Arc::from([0, ids.len()]))?;
        Tensor::from_vec(self.logits_of(&x)?, (ids.len(), self.config.vocabulary), &Device::Cpu)
    }

    /// What comes out of the last layer, `[tokens, hidden]`.
    fn stream(&self, ids: &[u32], bounds: &Arc<[usize]>) -> candle_core::Result<Vec<f32>> {
        self.through_layers(self.embed(ids)?, |layer, q, k, v| self.attention(layer, bounds).forward(q, k, v))
    }

    /// The stream through every layer, without a backward pass to come; `attend` also hears which layer asks.
    pub(super) fn through_layers(
        &self,
        mut x: Vec<f32>,
        mut attend: impl FnMut(usize, &[f32], &[f32], &[f32]) -> Vec<f32> + Send,
    ) -> candle_core::Result<Vec<f32>> {
        let arithmetic = Arithmetic { precision: self.scoring, ..Default::default() };
        in_pool(|| {
            for (index, layer) in self.layers.iter().enumerate() {
                x = self.lent(self.layer_group(index), |trained| {
                    let layer = layer.with(trained, arithmetic);
                    layer.forward(&x, |q, k, v| attend(index, q, k, v)).0
                })?;
            }
            Ok(x)
        })
    }

    /// Lends `hear` what goes into each projection of each layer, `[tokens, width]`, when a row passes through.
    pub fn inputs(&self, ids: &[u32], hear: &dyn Fn(usize, TargetModule, &[f32])) -> candle_core::Result<()> {
        let bounds = Arc::from([0, ids.len()]);
        let mut x = self.embed(ids)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let hear = |module: TargetModule, input: &[f32]| hear(index, module, input);
            x = self.lent(self.layer_group(index), |trained| {
                let layer = layer.with(trained, Arithmetic::default());
                layer.heard(&hear).forward(&x, |q, k, v| self.attention(index, &bounds).forward(q, k, v)).0
            })?;
        }
        Ok(())
    }

    pub(super) fn logits_of(&self, x: &[f32]) -> candle_core::Result<Vec<f32>> {
        self.with_ends(|trained| self.last.head(&self.embedding, trained, self.scoring).logits(x))
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
            let scale = self.config.features.embedding_scale;
            if scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= scale);
            }
            x
        })
    }

    /// Adds the gradients of the tokens' embeddings, one token after the other: a token that occurs twice gets the
    /// same sum each time.
    pub(super) fn embedding_backward(&self, ids: &[u32], dx: &[f32], gradients: &mut [f32]) {
        let [Some(dembedding)] = lend(gradients, [self.embedding.trained()]) else { return };
        let (width, scale) = (self.embedding.width(), self.config.features.embedding_scale);
        for (dx, &id) in dx.chunks_exact(width).zip(ids) {
            let row = &mut dembedding[id as usize * width..][..width];
            row.iter_mut().zip(dx).for_each(|(sum, dx)| *sum += dx * scale);
        }
    }

    pub(super) fn attention(&self, layer: usize, bounds: &Arc<[usize]>) -> Attention {
        let rope = self.rope_of(layer).clone();
        Attention { heads: self.config.heads, scoring: self.config.scoring(layer), rope, bounds: bounds.clone() }
    }

    pub(crate) fn rope_of(&self, layer: usize) -> &Arc<Rope> {
        self.window_rope.as_ref().filter(|_| self.config.turns_as_window(layer)).unwrap_or(&self.rope)
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
}

/// Calls `f` as one of the pool's own threads. From outside, each of a layer's many products would wake the pool and
/// sleep until it is done, which for a single token takes as long as the product, and in a training step puts all threads
/// to sleep and wakes them thousands of times.
pub(super) fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

fn load_layer(files: &ModelFiles, index: usize) -> Result<Layer> {
    let Config { hidden, heads, features, .. } = files.config.clone();
    let [q, k, v, o, gate, up, down] = TargetModule::ALL.map(|module| load_projection(files, index, module));
    let projections = [q?, k?, v?, o?, gate?, up?, down?];
    let (offset, epsilon) = (features.norm_offset, files.config.norm_epsilon);
    let norm = |name: &str, width: usize| -> Result<Norm> {
        let weight = files.parameter(&format!("model.layers.{index}.{name}.weight"), &[width])?;
        Ok(Norm { weight, offset, epsilon })
    };
    let stream_norm = |name: &str| norm(name, hidden);
    let input_norm = stream_norm("input_layernorm")?;
    // The name of one and the same file entry says where it stands in Gemma, and where the others have it.
    let after_attention = stream_norm("post_attention_layernorm")?;
    let (attention_after_norm, mlp_norm, mlp_after_norm) = if features.norms_after {
        let mlp_norm = stream_norm("pre_feedforward_layernorm")?;
        (Some(after_attention), mlp_norm, Some(stream_norm("post_feedforward_layernorm")?))
    } else {
        (None, after_attention, None)
    };
    let query_key_norms = if features.query_key_norm {
        Some([norm("self_attn.q_norm", heads.dim)?, norm("self_attn.k_norm", heads.dim)?])
    } else {
        None
    };
    let activation = features.activation;
    Ok(Layer { input_norm, query_key_norms, attention_after_norm, mlp_norm, mlp_after_norm, activation, projections })
}

fn load_projection(files: &ModelFiles, index: usize, module: TargetModule) -> Result<Projection> {
    let shape = files.config.shape(module);
    let name = projection_name(index, module);
    let weight = files.parameter(&format!("{name}.weight"), &shape)?;
    let bias = if files.config.features.has_bias(module) {
        Some(files.parameter(&format!("{name}.bias"), &shape[..1])?)
    } else {
        None
    };
    Ok(Projection { weight, bias, adapter: None })
}
