//! Conversations: rows that are taken in piece by piece, many of them in one pass.
//!
//! The pieces of a pass lie end to end, so rows of different lengths need no padding, and a row's first tokens go
//! through the model together with the next tokens of rows that are far ahead (the continuous batching of Orca, Yu et
//! al. 2022). All products see one matrix; only attention tells the rows apart.

use std::ops::Range;

use super::decoder::Decoder;
use crate::kernels::attention::{Cache, attend_each};
use crate::kernels::cross_entropy::Target;
use crate::kernels::rope::Rope;

/// Tokens taken in so far, as the layers remember them: on the CPU, in a cache for each.
pub struct Conversation<M = Vec<Cache>> {
    said: Vec<u32>,
    pub(crate) memory: M,
    /// Whether keys have been turned as those of a long row are; see [`Rope::is_long`].
    long: bool,
}

/// What layers remember of a conversation.
pub trait Memory {
    /// Forgets all but the first tokens.
    fn truncate(&mut self, tokens: usize);
}

impl Memory for Vec<Cache> {
    fn truncate(&mut self, tokens: usize) {
        self.iter_mut().for_each(|cache| cache.truncate(tokens));
    }
}

impl<M: Memory> Conversation<M> {
    /// With nothing said yet.
    pub(crate) fn new(memory: M) -> Self {
        Self { said: Vec::new(), memory, long: false }
    }

    /// Forgets all but the first tokens, so that they can be followed by others.
    pub fn truncate(&mut self, tokens: usize) {
        self.said.truncate(tokens);
        self.memory.truncate(tokens);
    }

    /// Makes ready for more tokens, and returns how many of those said must be taken in again: all of them where a row
    /// of the new length turns otherwise.
    fn expect(&mut self, more: usize, rope: &Rope) -> usize {
        let long = rope.is_long(self.said.len() + more);
        if std::mem::replace(&mut self.long, long) == long {
            return 0;
        }
        self.memory.truncate(0);
        self.said.len()
    }
}

/// How a conversation goes on: with these tokens, at least one. All of its tokens together must fit the positions that
/// the decoder was loaded for.
pub struct Piece<'c, M = Vec<Cache>> {
    pub conversation: &'c mut Conversation<M>,
    pub ids: &'c [u32],
}

/// What goes through the model when conversations go on.
pub struct News {
    pub ids: Vec<u32>,
    /// Where each conversation's part begins, and after the last one where it ends.
    pub bounds: Vec<usize>,
    /// Tokens of each part that were said before its piece, and are taken in again.
    again: Vec<usize>,
    /// Tokens that each conversation remembers from before.
    pub before: Vec<usize>,
}

impl News {
    /// Says the pieces in their conversations.
    pub(crate) fn of<M: Memory>(pieces: &mut [Piece<'_, M>], rope: &Rope) -> Self {
        let (mut ids, mut again, mut before) = (Vec::new(), Vec::new(), Vec::new());
        for Piece { conversation, ids: piece } in pieces.iter_mut() {
            let repeated = conversation.expect(piece.len(), rope);
            let said = &mut conversation.said;
            before.push(said.len() - repeated);
            said.extend_from_slice(piece);
            ids.extend_from_slice(&said[said.len() - piece.len() - repeated..]);
            again.push(repeated);
        }
        let bounds = bounds(pieces.iter().zip(&again).map(|(piece, again)| again + piece.ids.len()));
        Self { ids, bounds, again, before }
    }

    /// Where the tokens of each piece lie.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.bounds.windows(2).zip(&self.again).map(|(at, again)| at[0] + again..at[1])
    }

    fn is_all(&self) -> bool {
        self.again.iter().all(|&again| again == 0)
    }
}

impl Decoder {
    /// A conversation with nothing said yet.
    pub fn conversation(&self) -> Conversation {
        let cache = |layer| Cache::new(self.config.heads, self.config.scoring(layer));
        Conversation::new((0..self.config.layers).map(cache).collect())
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
        let news = News::of(pieces, &self.rope);
        let attend = |layer: usize, q: &[f32], k: &[f32], v: &[f32]| {
            let mut caches: Vec<&mut Cache> =
                pieces.iter_mut().map(|piece| &mut piece.conversation.memory[layer]).collect();
            attend_each(&mut caches, &news.bounds, self.rope_of(layer), q, k, v)
        };
        let x = self.through_layers(self.embed(&news.ids)?, attend)?;
        if news.is_all() {
            return Ok(x);
        }
        let hidden = self.config.hidden;
        Ok(news.pieces().flat_map(|at| &x[at.start * hidden..at.end * hidden]).copied().collect())
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
