//! The decoder: Llama's arithmetic for training, scoring and answering.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use drydock_spec::FailureKind;
use drydock_spec::finetune::TargetModule;

use super::ModelFiles;
use super::config::Config;
use super::head::{LastLayer, TrainedLoss};
use super::layer::{Layer, LoraPlace, Projection, TrainedLayer, TrainingPass};
use super::lora::{AdapterMatrix, LoraShape, Trainable, peft_name, projection_name};
use crate::data::batch::Batch;
use crate::ending::{Result, failed};
use crate::kernels::attention::{Attention, Cache, Scoring};
use crate::kernels::read;
use crate::kernels::rope::Rope;

pub struct Decoder {
    pub config: Config,
    /// `[vocabulary, hidden]`
    embedding: Arc<Vec<f32>>,
    layers: Vec<Arc<Layer>>,
    /// The adapters of each layer; none before [`Decoder::adapt`].
    adapters: Vec<Var>,
    last: Arc<LastLayer>,
    rope: Arc<Rope>,
}

impl Decoder {
    /// Reads every tensor, for rows of at most `positions` tokens. `layer_read` hears how many layers are there.
    pub fn load(
        files: &mut ModelFiles,
        positions: usize,
        mut layer_read: impl FnMut(usize) -> Result<()>,
    ) -> Result<Self> {
        let config = files.config.clone();
        let (vocabulary, hidden, epsilon) = (config.vocabulary, config.hidden, config.norm_epsilon);
        let embedding = Arc::new(values(files, "model.embed_tokens.weight", &[vocabulary, hidden])?);
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(Arc::new(load_layer(files, index)?));
            layer_read(index + 1)?;
        }
        let norm = values(files, "model.norm.weight", &[hidden])?;
        let weight = if config.tied || !files.has("lm_head.weight") {
            embedding.clone()
        } else {
            Arc::new(values(files, "lm_head.weight", &[vocabulary, hidden])?)
        };
        let rope = Arc::new(config.rope.rope(positions));
        let last = Arc::new(LastLayer { norm, epsilon, weight });
        Ok(Self { config, embedding, layers, adapters: Vec::new(), last, rope })
    }

    /// Gives every target an adapter; `start` makes A `[rank, in]` and B `[out, rank]` for the projection at a layer.
    pub fn adapt(
        &mut self,
        shape: &LoraShape,
        mut start: impl FnMut(usize, TargetModule, [usize; 3]) -> Result<(Tensor, Tensor)>,
    ) -> Result<Vec<Trainable>> {
        let mut trainables = Vec::new();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let layer = Arc::get_mut(layer).expect("nothing trains before there are adapters");
            let (mut adapters, mut matrices) = (Vec::new(), Vec::new());
            for &module in &shape.targets {
                let projection = &mut layer.projections[module as usize];
                let (a, b) = start(index, module, [shape.rank, projection.width, projection.out])?;
                check_adapter(&a, &b, [shape.rank, projection.width, projection.out], &peft_name(index, module, 'A'))?;
                let mut place = |matrix: char, tensor: &Tensor| -> Result<std::ops::Range<usize>> {
                    let from = adapters.len();
                    adapters.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
                    let (name, shape) = (peft_name(index, module, matrix), tensor.dims2()?.into());
                    matrices.push(AdapterMatrix { name, shape, range: from..adapters.len() });
                    Ok(from..adapters.len())
                };
                projection.lora = Some(LoraPlace {
                    a: place('A', &a)?,
                    b: place('B', &b)?,
                    scale: (shape.alpha / shape.rank as f64) as f32,
                    dropout: shape.dropout,
                    number: (index * TargetModule::ALL.len() + module as usize) as u64,
                });
            }
            let len = adapters.len();
            let var = Var::from_tensor(&Tensor::from_vec(adapters, len, &Device::Cpu)?)?;
            self.adapters.push(var.clone());
            trainables.push(Trainable { var, matrices });
        }
        Ok(trainables)
    }

    /// Numbers in the model, without adapters.
    pub fn parameters(&self) -> u64 {
        let layer = |layer: &Arc<Layer>| {
            let projections: usize = layer.projections.iter().map(|projection| projection.weight.len()).sum();
            projections + layer.input_norm.len() + layer.post_attention_norm.len()
        };
        let untied = if Arc::ptr_eq(&self.last.weight, &self.embedding) { 0 } else { self.last.weight.len() };
        let rest = self.embedding.len() + self.last.norm.len() + untied;
        (self.layers.iter().map(layer).sum::<usize>() + rest) as u64
    }

    /// The loss of a batch (the sum over its targets, in nats) on candle's tape, ready for a backward pass into the
    /// adapters' variables.
    pub fn loss(&self, batch: &Batch, dropout_seed: u64) -> candle_core::Result<Tensor> {
        let mut x = Tensor::from_vec(self.embed(&batch.ids), (batch.ids.len(), self.config.hidden), &Device::Cpu)?;
        for (layer, adapters) in self.layers.iter().zip(&self.adapters) {
            let pass =
                TrainingPass { attention: self.attention(&batch.bounds), dropout_seed, input_gradient: x.track_op() };
            x = x.apply_op2(adapters, TrainedLayer::new(layer.clone(), pass))?;
        }
        x.apply_op1(TrainedLoss::new(self.last.clone(), batch.targets.clone()))
    }

    /// The loss of a batch (the sum over its targets, in nats) for its own sake.
    pub fn score(&self, batch: &Batch) -> candle_core::Result<f64> {
        let x = self.stream(&batch.ids, &batch.bounds)?;
        Ok(self.last.head().loss(&x, &batch.targets, None))
    }

    /// The logits `[tokens, vocabulary]` of one row.
    pub fn logits(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        let x = self.stream(ids, &Arc::from([0, ids.len()]))?;
        Tensor::from_vec(self.last.head().logits(&x), (ids.len(), self.config.vocabulary), &Device::Cpu)
    }

    /// What comes out of the last layer, `[tokens, hidden]`.
    fn stream(&self, ids: &[u32], bounds: &Arc<[usize]>) -> candle_core::Result<Vec<f32>> {
        let attention = self.attention(bounds);
        let mut x = self.embed(ids);
        for (index, layer) in self.layers.iter().enumerate() {
            x =
                self.with_adapters(index, |adapters| layer.score(&x, adapters, |q, k, v| attention.forward(q, k, v)))?;
        }
        Ok(x)
    }

    fn embed(&self, ids: &[u32]) -> Vec<f32> {
        let width = self.config.hidden;
        ids.iter().flat_map(|&id| &self.embedding[id as usize * width..(id as usize + 1) * width]).copied().collect()
    }

    fn attention(&self, bounds: &Arc<[usize]>) -> Attention {
        Attention {
            heads: self.config.heads,
            scoring: Scoring::usual(self.config.heads.dim),
            rope: self.rope.clone(),
            bounds: bounds.clone(),
        }
    }

    /// Lends a layer's adapters to `f`; there may be none.
    fn with_adapters<R>(&self, layer: usize, f: impl FnOnce(&[f32]) -> R) -> candle_core::Result<R> {
        match self.adapters.get(layer) {
            Some(var) => read(var, |adapters| Ok(f(adapters))),
            None => Ok(f(&[])),
        }
    }

    /// A conversation with nothing said yet.
    pub fn conversation(&self) -> Conversation<'_> {
        let caches =
            self.layers.iter().map(|_| Cache::new(self.config.heads, Scoring::usual(self.config.heads.dim))).collect();
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
        let Decoder { config, layers, rope, last, .. } = self.decoder;
        let mut x = self.decoder.embed(ids);
        for (index, (layer, cache)) in layers.iter().zip(&mut self.caches).enumerate() {
            x = self
                .decoder
                .with_adapters(index, |adapters| layer.score(&x, adapters, |q, k, v| cache.attend(rope, q, k, v)))?;
        }
        Ok(last.head().logits(&x[(ids.len() - 1) * config.hidden..]))
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
        let weight = values(files, &format!("{}.weight", projection_name(index, module)), &[out, width])?;
        Ok(Projection { weight, out, width, lora: None })
    };
    let [q, k, v, o, gate, up, down] = TargetModule::ALL.map(&mut projection);
    let projections = [q?, k?, v?, o?, gate?, up?, down?];
    let mut norm = |name: &str| values(files, &format!("model.layers.{index}.{name}.weight"), &[hidden]);
    let (input_norm, post_attention_norm) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
    Ok(Layer { input_norm, post_attention_norm, epsilon: norm_epsilon, projections })
}

fn values(files: &mut ModelFiles, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    Ok(files.tensor(name, shape)?.flatten_all()?.to_vec1()?)
}

fn check_adapter(a: &Tensor, b: &Tensor, [rank, width, out]: [usize; 3], name: &str) -> Result<()> {
    if a.dims() == [rank, width] && b.dims() == [out, rank] {
        return Ok(());
    }
    let (a, b) = (a.dims(), b.dims());
    let message = format!("`{name}` is {a:?} and its B is {b:?}; [{rank}, {width}] and [{out}, {rank}] fit the model");
    failed(FailureKind::BadModel, message)
}
