//! Conversations: rows that are taken in piece by piece, many of them in one pass.
//!
//! The pieces of a pass lie end to end, so rows of different lengths need no padding, and a row's first tokens go
//! through the model together with the next tokens of rows that are far ahead (the continuous batching of Orca, Yu et
//! al. 2022). All products see one matrix; only attention tells the rows apart.

use super::decoder::Decoder;
use crate::kernels::attention::{Cache, attend_each};
use crate::kernels::cross_entropy::Target;
use crate::kernels::rope::Rope;

/// Tokens taken in so far, as the layers remember them.
pub struct Conversation {
    said: Vec<u32>,
    /// One for each layer.
    caches: Vec<Cache>,
    /// Whether keys have been turned as those of a long row are; see [`Rope::is_long`].
    long: bool,
}

impl Conversation {
    /// Forgets all but the first tokens, so that they can be followed by others.
    pub fn truncate(&mut self, tokens: usize) {
        self.said.truncate(tokens);
        self.caches.iter_mut().for_each(|cache| cache.truncate(tokens));
    }

    /// Makes ready for more tokens, and returns how many of those said must be taken in again: all of them where a row
    /// of the new length turns otherwise.
    fn expect(&mut self, more: usize, rope: &Rope) -> usize {
        let long = rope.is_long(self.said.len() + more);
        if std::mem::replace(&mut self.long, long) == long {
            return 0;
        }
        self.caches.iter_mut().for_each(|cache| cache.truncate(0));
        self.said.len()
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
        let cache = |layer| Cache::new(self.config.heads, self.config.scoring(layer));
        Conversation { said: Vec::new(), caches: (0..self.config.layers).map(cache).collect(), long: false }
    }

    /// Takes in a piece of each conversation, and returns the logits `[pieces, vocabulary]` of what follows.
    pub fn next_logits(&self, pieces: &mut [Piece<'_>]) -> candle_core::Result<Vec<f32>> {
        let hidden = self.config.hidden;
        let x = self.take_in(pieces)?;
        let ends = bounds(pieces.iter().map(|piece| piece.ids.len())).into_iter().skip(1);
        let last: Vec<f32> = ends.flat_map(|end| &x[(end - 1) * hidden..end * hidden]).copied().collect();
        self.logits_of(&last)
    }

    /// Takes in a piece of each conversation, and returns the loss of each target in nats. A target's position counts
    /// over all pieces.
    pub fn piece_losses(&self, pieces: &mut [Piece<'_>], targets: &[Target]) -> candle_core::Result<Vec<f64>> {
        let x = self.take_in(pieces)?;
        self.losses(&x, targets, self.scoring)
    }

    /// Takes in a piece of each conversation, and returns what comes out of the last layer, `[tokens, hidden]`.
    pub fn take_in(&self, pieces: &mut [Piece<'_>]) -> candle_core::Result<Vec<f32>> {
        let again: Vec<usize> =
            pieces.iter_mut().map(|piece| piece.conversation.expect(piece.ids.len(), &self.rope)).collect();
        let mut ids = Vec::new();
        for (piece, &again) in pieces.iter_mut().zip(&again) {
            let said = &mut piece.conversation.said;
            said.extend_from_slice(piece.ids);
            ids.extend_from_slice(&said[said.len() - piece.ids.len() - again..]);
        }
        let bounds = bounds(pieces.iter().zip(&again).map(|(piece, again)| again + piece.ids.len()));
        let attend = |layer: usize, q: &[f32], k: &[f32], v: &[f32]| {
            let mut caches: Vec<&mut Cache> =
                pieces.iter_mut().map(|piece| &mut piece.conversation.caches[layer]).collect();
            attend_each(&mut caches, &bounds, self.rope_of(layer), q, k, v)
        };
        let x = self.through_layers(self.embed(&ids)?, attend)?;
        if again.iter().all(|&again| again == 0) {
            return Ok(x);
        }
        let hidden = self.config.hidden;
        let news = bounds.windows(2).zip(&again).flat_map(|(at, again)| &x[(at[0] + again) * hidden..at[1] * hidden]);
        Ok(news.copied().collect())
    }
}

/// Where each of the pieces of these lengths begins, and after the last one where it ends.
fn bounds(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let ends = lengths.scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}
