//! The tensors of a model: each is frozen, or a stretch of a variable that is trained.
//!
//! What is trained lies in a few flat variables, one for each group: the embedding, every layer, and the end of the
//! model. Training loop, optimizer and checkpoints know groups only; whether a value in one belongs to an adapter, a
//! norm or a whole matrix matters to nobody but the layer that computes with it.

use std::ops::Range;

use candle_core::{Device, Tensor, Var};

use super::stored::Stored;
use crate::ending::Result;
use crate::kernels::adamw::Stretch;
use crate::kernels::weight::{Held, Weight};

/// A tensor of the model.
#[derive(Debug)]
pub struct Parameter {
    /// Hugging Face's name.
    pub name: String,
    /// `[out, width]`, or `[width]`.
    pub shape: Vec<usize>,
    pub place: Place,
}

/// Where a parameter's values are.
#[derive(Debug)]
pub enum Place {
    Frozen(Stored),
    /// In its group's variable.
    Trained(Range<usize>),
}

impl Parameter {
    /// A matrix; `trained` are the values of its group.
    pub fn matrix<'a>(&'a self, trained: &'a [f32]) -> Weight<'a> {
        match &self.place {
            Place::Frozen(stored) => stored.as_weight(),
            Place::Trained(range) => Weight::f32(&trained[range.clone()], self.width()),
        }
    }

    /// A vector, as a norm has it; `trained` are the values of its group.
    pub fn vector<'a>(&'a self, trained: &'a [f32]) -> &'a [f32] {
        match self.matrix(trained).held {
            Held::F32(values) => values,
            Held::Blocks(_) => unreachable!("vectors are read as f32"),
        }
    }

    /// Appends all values in f32; `trained` are those of its group.
    pub fn append_to(&self, trained: &[f32], values: &mut Vec<f32>) {
        match &self.place {
            Place::Frozen(stored) => stored.append_to(values),
            Place::Trained(range) => values.extend_from_slice(&trained[range.clone()]),
        }
    }

    /// Where its gradient lies among its group's; nowhere if it is frozen.
    pub fn trained(&self) -> Option<&Range<usize>> {
        match &self.place {
            Place::Frozen(_) => None,
            Place::Trained(range) => Some(range),
        }
    }

    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows of a matrix.
    pub fn out(&self) -> usize {
        self.elements() / self.width().max(1)
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// A group of trained tensors: one after the other in one variable, which may be empty.
#[derive(Debug, Clone)]
pub struct Trainable {
    pub var: Var,
    pub tensors: Vec<TrainedTensor>,
}

/// One trained tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainedTensor {
    /// Hugging Face's name, or PEFT's where it belongs to an adapter.
    pub name: String,
    pub shape: Vec<usize>,
    /// Where it lies in its group's variable.
    pub range: Range<usize>,
}

impl TrainedTensor {
    /// Whether weight decay falls on it: on everything but norms and biases, by its name, as in Transformers' Trainer
    /// (`get_decay_parameter_names`). Matrices of adapters decay, and so do DoRA's lengths.
    fn decays(&self) -> bool {
        !self.name.contains("norm") && !self.name.contains("bias")
    }
}

impl Trainable {
    /// What of the variable decays, as the optimizer takes it; neighbours of one kind are one stretch.
    pub fn stretches(&self) -> Vec<Stretch> {
        let mut stretches: Vec<Stretch> = Vec::new();
        for tensor in &self.tensors {
            let (len, decays) = (tensor.range.len(), tensor.decays());
            match stretches.last_mut() {
                Some(last) if last.decays == decays => last.len += len,
                _ => stretches.push(Stretch { len, decays }),
            }
        }
        stretches
    }
}

/// A group in the making.
#[derive(Default)]
pub struct Group {
    values: Vec<f32>,
    tensors: Vec<TrainedTensor>,
}

impl Group {
    /// Adds a tensor by its start values; what comes back is where it lies.
    pub fn add(&mut self, name: String, shape: &[usize], values: &[f32]) -> Range<usize> {
        self.added(name, shape, |all| all.extend_from_slice(values))
    }

    /// Takes a parameter in: it is trained from now on.
    pub fn take(&mut self, parameter: &mut Parameter) {
        if let Place::Frozen(stored) = &parameter.place {
            let range = self.added(parameter.name.clone(), &parameter.shape, |all| stored.append_to(all));
            stored.forget();
            parameter.place = Place::Trained(range);
        }
    }

    fn added(&mut self, name: String, shape: &[usize], append: impl FnOnce(&mut Vec<f32>)) -> Range<usize> {
        let from = self.values.len();
        append(&mut self.values);
        let range = from..self.values.len();
        assert_eq!(range.len(), shape.iter().product::<usize>(), "the values of `{name}` have its shape");
        self.tensors.push(TrainedTensor { name, shape: shape.to_vec(), range: range.clone() });
        range
    }

    pub fn finish(self) -> Result<Trainable> {
        let len = self.values.len();
        let var = Var::from_tensor(&Tensor::from_vec(self.values, len, &Device::Cpu)?)?;
        Ok(Trainable { var, tensors: self.tensors })
    }
}

/// The gradients of all groups. Backward passes add to them, so that a step may be made of several batches, and so that
/// no second copy exists at any time.
#[derive(Debug, Clone)]
pub struct Gradients(Vec<Vec<f32>>);

impl Gradients {
    /// All zero.
    pub fn of(trainables: &[Trainable]) -> Self {
        Self(trainables.iter().map(|trainable| vec![0.0; trainable.var.elem_count()]).collect())
    }

    pub fn clear(&mut self) {
        self.0.iter_mut().for_each(|gradient| gradient.fill(0.0));
    }

    /// In the order of the groups.
    pub fn groups(&self) -> &[Vec<f32>] {
        &self.0
    }

    pub(super) fn groups_mut(&mut self) -> &mut [Vec<f32>] {
        &mut self.0
    }
}

/// Lends several stretches of a group's gradients at once, each where there is one.
pub(super) fn lend<'g, const N: usize>(
    gradients: &'g mut [f32],
    ranges: [Option<&Range<usize>>; N],
) -> [Option<&'g mut [f32]>; N] {
    let given = ranges.map(|range| range.is_some());
    let lent = gradients.get_disjoint_mut(ranges.map(|range| range.cloned().unwrap_or(0..0)));
    let mut lent = lent.expect("trained tensors of a group do not overlap").map(Some);
    lent.iter_mut().zip(given).for_each(|(lent, given)| *lent = lent.take().filter(|_| given));
    lent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_is_taken_in_keeps_its_values() {
        let stored = Stored::f32(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3);
        let mut matrix = Parameter { name: "m".into(), shape: vec![2, 3], place: Place::Frozen(stored) };
        let mut group = Group::default();
        assert_eq!(group.add("other".into(), &[2], &[9.0, 8.0]), 0..2);
        assert_eq!(matrix.trained(), None);
        group.take(&mut matrix);
        let trainable = group.finish().unwrap();
        assert_eq!(matrix.trained(), Some(&(2..8)));
        let values = trainable.var.to_vec1::<f32>().unwrap();
        let mut row = [0.0; 3];
        matrix.matrix(&values).row(1, &mut row);
        assert_eq!(row, [4.0, 5.0, 6.0]);
        let wanted = TrainedTensor { name: "m".into(), shape: vec![2, 3], range: 2..8 };
        assert_eq!(trainable.tensors[1], wanted);
    }

    #[test]
    fn norms_and_biases_do_not_decay() {
        let mut group = Group::default();
        for (name, shape) in [
            ("model.layers.0.input_layernorm.weight", &[2][..]),
            ("model.layers.0.self_attn.q_proj.weight", &[2, 2]),
            ("model.layers.0.mlp.up_proj.weight", &[3, 2]),
            ("model.layers.0.self_attn.q_proj.bias", &[3]),
            ("model.layers.0.self_attn.q_norm.weight", &[1]),
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", &[2]),
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", &[2, 2]),
            ("model.norm.weight", &[1]),
        ] {
            group.add(name.into(), shape, &vec![0.0; shape.iter().product()]);
        }
        let stretches: Vec<(usize, bool)> =
            group.finish().unwrap().stretches().iter().map(|stretch| (stretch.len, stretch.decays)).collect();
        assert_eq!(stretches, [(2, false), (10, true), (4, false), (6, true), (1, false)]);
    }

    #[test]
    fn stretches_are_lent_where_there_are_any() {
        let mut gradients = [1.0, 2.0, 3.0];
        let [a, none, b] = lend(&mut gradients, [Some(&(1..3)), None, Some(&(0..1))]);
        assert_eq!((a.unwrap().len(), none, b.unwrap()[0]), (2, None, 1.0));
    }
}
