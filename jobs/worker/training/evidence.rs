//! `evidence.json`: what a diverged step looked like, for those who look for its cause.

use serde::{Serialize, Serializer};

use super::divergence::Watch;
use super::objective::Portion;
use super::order::Pass;
use super::state::{RolledBack, State};
use super::step::Measured;
use crate::data::lesson::Lesson;
use crate::model::parameter::Trainable;

pub const FILE: &str = "evidence.json";

/// Numbers here may be no numbers; JSON has no word for those, so they are written as texts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Number(pub f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() { serializer.serialize_f64(self.0) } else { serializer.collect_str(&self.0) }
    }
}

#[derive(Debug, Serialize)]
pub struct Evidence {
    pub what: String,
    /// Counted from 1.
    pub step: u64,
    pub learning_rate: f64,
    pub loss: Number,
    /// L2 norm of all gradients together, before clipping.
    pub grad_norm: Number,
    pub last_finite_loss: Option<f64>,
    pub smoothed_loss: Option<f64>,
    pub best_smoothed_loss: Option<f64>,
    pub rolled_back: Vec<RolledBack>,
    /// The lessons of the step.
    pub rows: Vec<Row>,
    /// L2 norms of the gradients; first those that are no number, then the largest.
    pub gradients: Vec<Gradient>,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub place: String,
    pub tokens: usize,
    pub supervised_tokens: usize,
    /// Mean negative log likelihood of the tokens that count, in nats.
    pub loss: Number,
}

#[derive(Debug, Serialize)]
pub struct Gradient {
    pub name: String,
    pub norm: Number,
}

/// What the step looked like: its passes as they went through the model, what they came to, and the gradients.
pub struct Scene<'a> {
    pub lessons: &'a [Lesson],
    pub passes: &'a [Pass],
    pub portions: &'a [Portion],
    pub measured: &'a Measured,
    pub gradients: &'a [Vec<f32>],
    pub trainables: &'a [Trainable],
}

impl Scene<'_> {
    /// Where the step's lessons stand in the dataset.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        self.passes.iter().flatten().map(|&lesson| self.lessons[lesson].place.as_str())
    }

    pub fn evidence(&self, what: String, state: &State, learning_rate: f64) -> Evidence {
        let watch: &Watch = &state.watch;
        Evidence {
            what,
            step: state.steps + 1,
            learning_rate,
            loss: Number(self.measured.mean_loss()),
            grad_norm: Number(self.measured.grad_norm),
            last_finite_loss: state.last_loss,
            smoothed_loss: (state.steps > 0).then(|| watch.smoothed()).filter(|loss| loss.is_finite()),
            best_smoothed_loss: watch.best(),
            rolled_back: state.rolled_back.clone(),
            rows: self.rows(),
            gradients: self.gradient_norms(),
        }
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for ((pass, portion), losses) in self.passes.iter().zip(self.portions).zip(&self.measured.losses) {
            let mut targets = portion.batch.targets_by_row();
            for &lesson in pass {
                let lesson = &self.lessons[lesson];
                for row in lesson.rows() {
                    let losses = targets.next().map_or(&[][..], |targets| &losses[targets]);
                    rows.push(Row {
                        place: lesson.place.clone(),
                        tokens: row.ids.len(),
                        supervised_tokens: row.supervised(),
                        loss: Number(losses.iter().sum::<f64>() / losses.len() as f64),
                    });
                }
            }
        }
        rows
    }

    fn gradient_norms(&self) -> Vec<Gradient> {
        let groups = self.trainables.iter().zip(self.gradients);
        let tensors = groups.flat_map(|(trainable, group)| trainable.tensors.iter().map(move |tensor| (tensor, group)));
        let mut norms: Vec<Gradient> = tensors
            .map(|(tensor, group)| {
                let squares = group[tensor.range.clone()].iter().map(|&gradient| f64::from(gradient).powi(2));
                Gradient { name: tensor.name.clone(), norm: Number(squares.sum::<f64>().sqrt()) }
            })
            .collect();
        // NaN is greater than everything else in this order.
        norms.sort_by(|a, b| b.norm.0.abs().total_cmp(&a.norm.0.abs()));
        norms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_written_as_text() {
        let json = serde_json::to_string(&[1.5, f64::NAN, f64::NEG_INFINITY].map(Number)).unwrap();
        assert_eq!(json, r#"[1.5,"NaN","-inf"]"#);
    }
}
