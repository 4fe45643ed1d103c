//! The decoder: Llama's arithmetic for training, scoring and answering, out of the operations in [`crate::kernels`].

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use drydock_spec::FailureKind;
use drydock_spec::finetune::TargetModule;

use super::ModelFiles;
use super::config::Config;
use super::lora::{Lora, LoraShape, Trainable, peft_name, projection_name};
use crate::data::batch::Batch;
use crate::ending::{Result, failed};
use crate::kernels::attention::{Attention, Cache};
use crate::kernels::cross_entropy::CrossEntropy;
use crate::kernels::linear::{Dropout, FrozenLinear, LoraLinear, mix};
use crate::kernels::norm::RmsNorm;
use crate::kernels::read;
use crate::kernels::rope::Rope;
use crate::kernels::swiglu::SwiGlu;

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// A backward pass will follow; the seed is that of this pass's dropout.
    Training { seed: u64 },
    /// Nothing is kept for a backward pass, and nothing is dropped.
    Scoring,
}

pub struct Decoder {
    pub config: Config,
    /// `[vocabulary, hidden]`
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    /// `[vocabulary, hidden]`; the embedding where the two are tied.
    head: Tensor,
    rope: Arc<Rope>,
}

struct Layer {
    input_norm: Tensor,
    attention: [Projection; 4],
    post_attention_norm: Tensor,
    mlp: [Projection; 3],
}

/// A linear projection: a frozen weight `[out, in]`, and perhaps an adapter.
struct Projection {
    weight: Tensor,
    lora: Option<Lora>,
}

impl Projection {
    fn forward(&self, x: &Tensor, pass: Pass) -> candle_core::Result<Tensor> {
        let Some(lora) = &self.lora else {
            return x.apply_op1(FrozenLinear { weight: self.weight.clone() });
        };
        let op = |dropout| LoraLinear {
            weight: self.weight.clone(),
            scale: lora.scale,
            dropout,
            input_gradient: x.track_op(),
        };
        match pass {
            Pass::Training { seed } => {
                let dropout = Dropout { rate: lora.dropout, seed: mix(seed ^ mix(lora.place)) };
                x.apply_op3(&lora.a, &lora.b, op((lora.dropout > 0.0).then_some(dropout)))
            }
            Pass::Scoring => x.apply_op3(&lora.a.detach(), &lora.b.detach(), op(None)),
        }
    }
}

impl Layer {
    /// `attend` makes of queries, keys and values what the layer's attention says.
    fn forward(
        &self,
        x: &Tensor,
        epsilon: f32,
        pass: Pass,
        attend: impl FnOnce(Tensor, Tensor, Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let norm = |x: &Tensor, weight: &Tensor| x.apply_op1(RmsNorm { weight: weight.clone(), epsilon });
        let [q, k, v, o] = &self.attention;
        let [gate, up, down] = &self.mlp;
        let h = norm(x, &self.input_norm)?;
        let attended = attend(q.forward(&h, pass)?, k.forward(&h, pass)?, v.forward(&h, pass)?)?;
        let x = (x + o.forward(&attended, pass)?)?;
        let h = norm(&x, &self.post_attention_norm)?;
        let inner = gate.forward(&h, pass)?.apply_op2(&up.forward(&h, pass)?, SwiGlu)?;
        x + down.forward(&inner, pass)?
    }

    fn projection_mut(&mut self, module: TargetModule) -> &mut Projection {
        match module {
            TargetModule::QProj => &mut self.attention[0],
            TargetModule::KProj => &mut self.attention[1],
            TargetModule::VProj => &mut self.attention[2],
            TargetModule::OProj => &mut self.attention[3],
            TargetModule::GateProj => &mut self.mlp[0],
            TargetModule::UpProj => &mut self.mlp[1],
            TargetModule::DownProj => &mut self.mlp[2],
        }
    }

    fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.attention.iter().chain(&self.mlp)
    }
}

impl Decoder {
    /// Reads every tensor, for rows of at most `positions` tokens. `layer_read` hears how many layers are there.
    pub fn load(
        files: &mut ModelFiles,
        positions: usize,
        mut layer_read: impl FnMut(usize) -> Result<()>,
    ) -> Result<Self> {
        let config = files.config.clone();
        let Config { hidden, vocabulary, intermediate, heads, .. } = config;
        let (q_width, kv_width) = (heads.query_width(), heads.key_value_width());
        let embedding = files.tensor("model.embed_tokens.weight", &[vocabulary, hidden])?;
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            let mut projection = |module, out, width| -> Result<Projection> {
                let name = format!("{}.weight", projection_name(index, module));
                Ok(Projection { weight: files.tensor(&name, &[out, width])?, lora: None })
            };
            let attention = [
                projection(TargetModule::QProj, q_width, hidden)?,
                projection(TargetModule::KProj, kv_width, hidden)?,
                projection(TargetModule::VProj, kv_width, hidden)?,
                projection(TargetModule::OProj, hidden, q_width)?,
            ];
            let mlp = [
                projection(TargetModule::GateProj, intermediate, hidden)?,
                projection(TargetModule::UpProj, intermediate, hidden)?,
                projection(TargetModule::DownProj, hidden, intermediate)?,
            ];
            let mut norm = |name: &str| files.tensor(&format!("model.layers.{index}.{name}.weight"), &[hidden]);
            let (input_norm, post_attention_norm) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
            layers.push(Layer { input_norm, attention, post_attention_norm, mlp });
            layer_read(index + 1)?;
        }
        let norm = files.tensor("model.norm.weight", &[hidden])?;
        let tied = config.tied || !files.has("lm_head.weight");
        let head = if tied { embedding.clone() } else { files.tensor("lm_head.weight", &[vocabulary, hidden])? };
        let rope = Arc::new(Rope::new(&config.rope.inverse_frequencies(heads.dim), positions));
        Ok(Self { config, embedding, layers, norm, head, rope })
    }

    /// Gives every target an adapter; `values` makes A `[rank, in]` and B `[out, rank]` for the projection at a layer.
    pub fn adapt(
        &mut self,
        shape: &LoraShape,
        mut values: impl FnMut(usize, TargetModule, [usize; 3]) -> Result<(Tensor, Tensor)>,
    ) -> Result<Vec<Trainable>> {
        let mut trainables = Vec::new();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            for (number, &module) in shape.targets.iter().enumerate() {
                let projection = layer.projection_mut(module);
                let (out, width) = projection.weight.dims2()?;
                let (a, b) = values(index, module, [shape.rank, width, out])?;
                if a.dims() != [shape.rank, width] || b.dims() != [out, shape.rank] {
                    let message = format!(
                        "the adapter of layer {index}'s {} is {:?} and {:?}; {:?} and {:?} fit the model",
                        module.name(),
                        a.dims(),
                        b.dims(),
                        [shape.rank, width],
                        [out, shape.rank]
                    );
                    return failed(FailureKind::BadModel, message);
                }
                let (a, b) = (Var::from_tensor(&a)?, Var::from_tensor(&b)?);
                for (matrix, var) in [('A', &a), ('B', &b)] {
                    trainables.push(Trainable { name: peft_name(index, module, matrix), var: var.clone() });
                }
                let scale = (shape.alpha / shape.rank as f64) as f32;
                let place = (index * TargetModule::ALL.len() + number) as u64;
                projection.lora = Some(Lora { a, b, scale, dropout: shape.dropout, place });
            }
        }
        Ok(trainables)
    }

    /// Numbers in the model, without adapters.
    pub fn parameters(&self) -> u64 {
        let layer = |layer: &Layer| {
            let projections: usize = layer.projections().map(|projection| projection.weight.elem_count()).sum();
            projections + layer.input_norm.elem_count() + layer.post_attention_norm.elem_count()
        };
        let untied = if self.head.id() == self.embedding.id() { 0 } else { self.head.elem_count() };
        let rest = self.embedding.elem_count() + self.norm.elem_count() + untied;
        (self.layers.iter().map(layer).sum::<usize>() + rest) as u64
    }

    /// The hidden states `[tokens, hidden]` after the last layer, normalised.
    fn hidden(&self, ids: &[u32], bounds: &Arc<[usize]>, pass: Pass) -> candle_core::Result<Tensor> {
        let mut x = self.embed(ids)?;
        for layer in &self.layers {
            let attention = Attention { heads: self.config.heads, rope: self.rope.clone(), bounds: bounds.clone() };
            x = layer.forward(&x, self.config.norm_epsilon, pass, |q, k, v| q.apply_op3(&k, &v, attention))?;
        }
        x.apply_op1(RmsNorm { weight: self.norm.clone(), epsilon: self.config.norm_epsilon })
    }

    fn embed(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        let width = self.config.hidden;
        let x: Vec<f32> = read(&self.embedding, |table| {
            Ok(ids.iter().flat_map(|&id| &table[id as usize * width..(id as usize + 1) * width]).copied().collect())
        })?;
        Tensor::from_vec(x, (ids.len(), width), &Device::Cpu)
    }

    /// The loss of a batch: the sum over its targets, in nats.
    pub fn loss(&self, batch: &Batch, pass: Pass) -> candle_core::Result<Tensor> {
        let trained = pass != Pass::Scoring;
        let hidden = self.hidden(&batch.ids, &batch.bounds, pass)?;
        hidden.apply_op1(CrossEntropy::new(self.head.clone(), batch.targets.clone(), trained))
    }

    /// The logits `[tokens, vocabulary]` of one row.
    pub fn logits(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        let hidden = self.hidden(ids, &Arc::from([0, ids.len()]), Pass::Scoring)?;
        hidden.apply_op1(FrozenLinear { weight: self.head.clone() })
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
        let Decoder { config, layers, rope, head, norm, .. } = self.decoder;
        let mut x = self.decoder.embed(ids)?;
        for (layer, cache) in layers.iter().zip(&mut self.caches) {
            x = layer.forward(&x, config.norm_epsilon, Pass::Scoring, |q, k, v| {
                let y = read(&q, |q| read(&k, |k| read(&v, |v| Ok(cache.attend(rope, q, k, v)))))?;
                Tensor::from_vec(y, q.shape(), &Device::Cpu)
            })?;
        }
        let last = x.narrow(0, ids.len() - 1, 1)?;
        let last = last.apply_op1(RmsNorm { weight: norm.clone(), epsilon: config.norm_epsilon })?;
        last.apply_op1(FrozenLinear { weight: head.clone() })?.flatten_all()?.to_vec1()
    }
}
