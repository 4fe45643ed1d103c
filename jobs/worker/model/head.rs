//! The end of the decoder: its last norm, and the head, which may be the embedding.

use super::layer::Norm;
use super::parameter::{Parameter, lend};
use crate::kernels::cross_entropy::Head;
use crate::kernels::weight::Precision;

pub struct LastLayer {
    pub norm: Norm,
    /// `[vocabulary, hidden]`; nothing where the embedding's weight is the head's.
    pub head: Option<Parameter>,
    /// What logits are bent to lie within.
    pub softcap: Option<f32>,
}

/// The trained values, or the gradients, that the end of the decoder has to do with.
pub struct Ends<T> {
    /// The embedding's group.
    pub embedding: T,
    /// The last layer's own group.
    pub last: T,
}

impl LastLayer {
    /// Every tensor of the model that belongs here.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        std::iter::once(&self.norm.weight).chain(&self.head)
    }

    /// The same, to be changed.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        std::iter::once(&mut self.norm.weight).chain(&mut self.head)
    }

    /// Whether anything of it is trained; `embedding` is the model's, which may be the head too.
    pub fn is_trained(&self, embedding: &Parameter) -> bool {
        let tied = self.head.is_none().then_some(embedding);
        self.parameters().chain(tied).any(|parameter| parameter.trained().is_some())
    }

    /// As the kernel takes it.
    pub fn head<'a>(&'a self, embedding: &'a Parameter, trained: &Ends<&'a [f32]>, precision: Precision) -> Head<'a> {
        let weight = match &self.head {
            Some(head) => head.matrix(trained.last),
            None => embedding.matrix(trained.embedding),
        };
        Head {
            norm: self.norm.factors(trained.last),
            epsilon: self.norm.epsilon,
            weight,
            softcap: self.softcap,
            precision,
        }
    }

    /// Where the gradients of the norm and of the head's weight go, as far as they are trained.
    pub fn gradient<'g>(&self, embedding: &Parameter, gradients: Ends<&'g mut [f32]>) -> [Option<&'g mut [f32]>; 2] {
        let own_head = self.head.as_ref().and_then(Parameter::trained);
        let [norm, own_head] = lend(gradients.last, [self.norm.weight.trained(), own_head]);
        let [tied] = lend(gradients.embedding, [embedding.trained().filter(|_| self.head.is_none())]);
        [norm, own_head.or(tied)]
    }
}
