//! Who speaks with a model's voice: scores texts, and takes conversations further. Evaluations and answers know no
//! device; the [`Decoder`] speaks on the CPU, and a GPU has a speaker of its own.

use super::conversation::{Conversation, Memory, Piece};
use super::decoder::Decoder;
use crate::data::batch::Batch;
use crate::ending::Result;
use crate::generate::greedy::likeliest;
use crate::kernels::attention::Cache;
use crate::kernels::cross_entropy::Target;

pub trait Speaker {
    /// What is remembered of a conversation.
    type Memory: Memory;

    /// Tokens that go through the model together, as far as a single row has not more: enough of them that the weights
    /// are not what is waited for.
    const TOKENS_AT_ONCE: usize;

    /// The negative log likelihood of each of a batch's targets, in nats.
    fn target_losses(&self, batch: &Batch) -> Result<Vec<f64>>;

    /// A conversation with nothing said yet, and with room for so many tokens.
    fn conversation(&self, tokens: usize) -> Result<Conversation<Self::Memory>>;

    /// Takes in a piece of each conversation.
    fn take_in(&self, pieces: &mut [Piece<'_, Self::Memory>]) -> Result<()>;

    /// Takes in a piece of each conversation, and returns the loss of each target in nats. A target's position counts
    /// over all pieces.
    fn piece_losses(&self, pieces: &mut [Piece<'_, Self::Memory>], targets: &[Target]) -> Result<Vec<f64>>;

    /// Takes in a piece of each conversation, and returns the likeliest token after each: the first of several, and none
    /// where the logits are no numbers.
    fn next_tokens(&self, pieces: &mut [Piece<'_, Self::Memory>]) -> Result<Vec<Option<u32>>>;
}

impl Speaker for Decoder {
    type Memory = Vec<Cache>;

    const TOKENS_AT_ONCE: usize = 1024;

    fn target_losses(&self, batch: &Batch) -> Result<Vec<f64>> {
        Ok(self.target_losses(batch)?)
    }

    /// Its memory grows as it goes.
    fn conversation(&self, _: usize) -> Result<Conversation> {
        Ok(self.conversation())
    }

    fn take_in(&self, pieces: &mut [Piece<'_>]) -> Result<()> {
        self.take_in(pieces)?;
        Ok(())
    }

    fn piece_losses(&self, pieces: &mut [Piece<'_>], targets: &[Target]) -> Result<Vec<f64>> {
        Ok(self.piece_losses(pieces, targets)?)
    }

    fn next_tokens(&self, pieces: &mut [Piece<'_>]) -> Result<Vec<Option<u32>>> {
        let logits = self.next_logits(pieces)?;
        Ok(logits.chunks_exact(self.config.vocabulary).map(likeliest).collect())
    }
}
