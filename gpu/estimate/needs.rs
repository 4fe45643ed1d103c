//! What an estimate of memory or of disk is made of: parts, each for itself, and the moment at which most of them are there
//! at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Something that takes memory, or room on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Weights that are not trained, in the form that they are held in: where they lie in their file, or in blocks of
    /// their own, and once more in the order in which integer products read them.
    Weights,
    /// What is trained: adapters, or the weights themselves.
    Trained,
    Gradients,
    /// The optimizer's two running means.
    Moments,
    /// The values that were best so far, where those are asked for.
    Best,
    /// What the forward pass keeps for the backward pass.
    Activations,
    /// What is under way through one layer, and through the kernels.
    Workspace,
    /// The logits that are held at once.
    Logits,
    /// Keys and values of answers that are being written.
    Cache,
    /// The dataset's rows, as text and as tokens.
    Rows,
    Tokenizer,
    /// The worker itself, and its threads.
    Program,
    /// What a GPU's driver takes for a process, and its libraries for theirs.
    Context,
    /// What GPUs that compute together take to exchange what they sum.
    Exchange,
    /// On the disk: what is left behind.
    Artifacts,
    /// On the disk: what lies beside that on the way, to go on from.
    Checkpoints,
}

impl Part {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Trained => "trained",
            Self::Gradients => "gradients",
            Self::Moments => "moments",
            Self::Best => "best",
            Self::Activations => "activations",
            Self::Workspace => "workspace",
            Self::Logits => "logits",
            Self::Cache => "cache",
            Self::Rows => "rows",
            Self::Tokenizer => "tokenizer",
            Self::Program => "program",
            Self::Context => "context",
            Self::Exchange => "exchange",
            Self::Artifacts => "artifacts",
            Self::Checkpoints => "checkpoints",
        }
    }
}

/// Bytes by part. The sum is the estimate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Needs(BTreeMap<Part, u64>);

impl Needs {
    /// With one more part, or more of one; parts of no bytes are left out.
    #[must_use]
    pub fn with(mut self, part: Part, bytes: u64) -> Self {
        if bytes > 0 {
            let held = self.0.entry(part).or_default();
            *held = held.saturating_add(bytes);
        }
        self
    }

    /// All parts of both.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        other.iter().fold(self, |sum, (part, bytes)| sum.with(part, bytes))
    }

    /// Bytes in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().copied().fold(0, u64::saturating_add)
    }

    #[must_use]
    pub fn get(&self, part: Part) -> u64 {
        self.0.get(&part).copied().unwrap_or(0)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Part, u64)> + '_ {
        self.0.iter().map(|(part, bytes)| (*part, *bytes))
    }

    /// The moment at which most is needed: what one leaves free the next one uses.
    #[must_use]
    pub fn largest(moments: impl IntoIterator<Item = Self>) -> Self {
        moments.into_iter().max_by_key(Self::total).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_the_parts_is_the_estimate() {
        let held = Needs::default().with(Part::Weights, 5).with(Part::Rows, 0);
        let learning = held.clone().with(Part::Activations, 3);
        let scoring = held.with(Part::Logits, 4).with(Part::Weights, 1);
        assert_eq!((learning.total(), scoring.total(), scoring.get(Part::Weights)), (8, 10, 6));
        assert_eq!(Needs::largest([learning.clone(), scoring.clone()]), scoring);
        assert_eq!(learning.and(&scoring).total(), 18);
        assert_eq!(serde_json::to_string(&scoring).unwrap(), r#"{"weights":6,"logits":4}"#);
    }
}
