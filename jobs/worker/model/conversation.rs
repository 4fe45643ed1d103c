//! Conversations: rows that are taken in piece by piece, many of them in one pass.
//!
//! The pieces of a pass lie end to end, so rows of different lengths need no padding, and a row's first tokens go
//! through the model together with the next tokens of rows that are far ahead (the continuous batching of Orca, Yu et
//! al. 2022). All products see one matrix; only attention tells the rows apart.

use super::decoder::Decoder;
use crate::kernels::attention::{Cache, attend_each};
use crate::kernels::cross_entropy::Target;
use crate::kernels::weight::Precision;

/// Tokens taken in so far, as the layers remember them.
pub struct Conversation {
    /// One for each layer.
    caches: Vec<Cache>,
}

impl Conversation {
    /// Forgets all but the first tokens, so that they can be followed by others.
    pub fn truncate(&mut self, tokens: usize) {
        self.caches.iter_mut().for_each(|cache| cache.truncate(tokens));
    }
}

/// How a conversation goes on: with these tokens, at least one. All of its tokens together must fit the positions that
/// the decoder was loaded for.
pub struct Piece<'c> {
    pub conversation: &'c mut Conversation,
    pub ids: &'c [u32],
}

impl Decoder {
    /// A conversation with nothing said yet.
    pub fn conversation(&self) -> Conversation {
        let cache = |_| Cache::new(self.config.heads, self.scoring());
        Conversation { caches: (0..self.config.layers).map(cache).collect() }
    }

    /// Takes in a piece of each conversation, and returns the logits `[pieces, vocabulary]` of what follows.
    pub fn next_logits(&self, pieces: &mut [Piece<'_>], precision: Precision) -> candle_core::Result<Vec<f32>> {
        let hidden = self.config.hidden;
        let x = self.take_in(pieces, precision)?;
        let ends = bounds(pieces).into_iter().skip(1);
        let last: Vec<f32> = ends.flat_map(|end| &x[(end - 1) * hidden..end * hidden]).copied().collect();
        self.logits_of(&last, precision)
    }

    /// Takes in a piece of each conversation, and returns the loss of each target in nats. A target's position counts
    /// over all pieces.
    pub fn piece_losses(
        &self,
        pieces: &mut [Piece<'_>],
        targets: &[Target],
        precision: Precision,
    ) -> candle_core::Result<Vec<f64>> {
        let x = self.take_in(pieces, precision)?;
        self.losses(&x, targets, precision)
    }

    /// What comes out of the last layer, `[tokens, hidden]`.
    pub fn take_in(&self, pieces: &mut [Piece<'_>], precision: Precision) -> candle_core::Result<Vec<f32>> {
        let ids: Vec<u32> = pieces.iter().flat_map(|piece| piece.ids).copied().collect();
        let bounds = bounds(pieces);
        let attend = |layer: usize, q: &[f32], k: &[f32], v: &[f32]| {
            let mut caches: Vec<&mut Cache> =
                pieces.iter_mut().map(|piece| &mut piece.conversation.caches[layer]).collect();
            attend_each(&mut caches, &bounds, &self.rope, q, k, v)
        };
        self.through_layers(self.embed(&ids)?, precision, attend)
    }
}

/// Where each piece begins, and after the last one where it ends.
fn bounds(pieces: &[Piece<'_>]) -> Vec<usize> {
    let ends = pieces.iter().scan(0, |end, piece| {
        *end += piece.ids.len();
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}
