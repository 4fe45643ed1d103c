//! A trained model as whole tensors: adapters are worked into the weights that they adapt.

use super::decoder::Decoder;
use super::fused;
use super::layer::Projection;
use super::parameter::Parameter;
use crate::ending::Result;

/// A tensor as a checkpoint holds it. Its values are made when they are asked for: a model need not be there twice.
pub struct Merged<'d> {
    /// Hugging Face's name.
    pub name: String,
    pub shape: Vec<usize>,
    decoder: &'d Decoder,
    /// What lies in it, one after the other.
    parts: Vec<(usize, Part<'d>)>,
}

/// A parameter of a group; a projection's weight may have an adapter.
#[derive(Clone, Copy)]
enum Part<'d> {
    Plain(&'d Parameter),
    Weight(&'d Projection),
}

impl<'d> Part<'d> {
    fn parameter(self) -> &'d Parameter {
        match self {
            Self::Plain(parameter) => parameter,
            Self::Weight(projection) => &projection.weight,
        }
    }
}

impl Merged<'_> {
    /// The values in f32, row after row.
    pub fn values(&self) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(self.shape.iter().product());
        for &(group, part) in &self.parts {
            self.decoder.lent(group, |trained| match part {
                Part::Plain(parameter) => parameter.append_to(trained, &mut values),
                Part::Weight(projection) => values.extend(projection.merged(trained)),
            })?;
        }
        Ok(values)
    }
}

impl Decoder {
    /// Every tensor of the model as it is now, under the names and in the shapes of its architecture's checkpoints.
    pub fn merged(&self) -> Vec<Merged<'_>> {
        let mut merged = Vec::new();
        self.push(&mut merged, Self::EMBEDDING_GROUP, Part::Plain(&self.embedding));
        for (index, layer) in self.layers.iter().enumerate() {
            let group = self.layer_group(index);
            let weights: Vec<Part<'_>> = layer.projections.iter().map(Part::Weight).collect();
            let is_weight =
                |parameter: &&Parameter| weights.iter().any(|weight| std::ptr::eq(weight.parameter(), *parameter));
            let others = layer.parameters().filter(|parameter| !is_weight(parameter)).map(Part::Plain);
            weights.iter().copied().chain(others).for_each(|part| self.push(&mut merged, group, part));
        }
        self.last.parameters().for_each(|parameter| self.push(&mut merged, self.last_group(), Part::Plain(parameter)));
        merged
    }

    /// Adds a part: as a tensor of its own, or to the one before it where both are one in the files.
    fn push<'d>(&'d self, merged: &mut Vec<Merged<'d>>, group: usize, part: Part<'d>) {
        let parameter = part.parameter();
        let whole = fused::part(&parameter.name, &self.config);
        let name = whole.map_or_else(|| parameter.name.clone(), |part| part.whole);
        match merged.iter_mut().find(|tensor| tensor.name == name) {
            Some(tensor) => {
                tensor.shape[0] += parameter.shape[0];
                tensor.parts.push((group, part));
            }
            None => {
                merged.push(Merged { name, shape: parameter.shape.clone(), decoder: self, parts: vec![(group, part)] });
            }
        }
    }
}
