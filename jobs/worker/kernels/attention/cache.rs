//! Attention for answering token by token.

use rayon::prelude::*;

use super::{BLOCK, Heads, Scoring, blocks, probabilities};
use crate::kernels::matrix::{Matrix, MatrixMut, Threads, Write, product};
use crate::kernels::memory::Parts;
use crate::kernels::rope::{Rope, Table, Turn};
use crate::kernels::simd::{dispatched, dot, exp_and_sum, max};
use crate::kernels::softcap::bend;

/// The keys (turned) and values of the tokens that a layer has seen, for answering token by token.
pub struct Cache {
    heads: Heads,
    scoring: Scoring,
    /// For each key-value head `[tokens, dim]`.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Cache {
    pub fn new(heads: Heads, scoring: Scoring) -> Self {
        Self { heads, scoring, keys: vec![Vec::new(); heads.key_value], values: vec![Vec::new(); heads.key_value] }
    }

    /// Forgets all but the first tokens.
    pub fn truncate(&mut self, tokens: usize) {
        let values = tokens * self.heads.dim;
        self.keys.iter_mut().chain(&mut self.values).for_each(|head| head.truncate(values));
    }

    /// Takes in the keys and values of tokens that follow those seen before, and lets their queries look back. What has
    /// been taken in stays turned as it is: a row that becomes long (see [`Rope::is_long`]) must be taken in anew.
    /// Queries and the result are `[tokens, query_width]`.
    pub fn attend(&mut self, rope: &Rope, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let Heads { query, key_value, dim } = self.heads;
        let before = self.keys[0].len() / dim;
        let tokens = q.len() / self.heads.query_width();
        let (by, rope) = (self.scoring, rope.table(before + tokens));
        for head in 0..key_value {
            for token in 0..tokens {
                let at = (token * key_value + head) * dim..(token * key_value + head + 1) * dim;
                let seen = self.keys[head].len();
                self.keys[head].resize(seen + dim, 0.0);
                rope.turn(before + token, Turn::Forward, 1.0, &k[at.clone()], &mut self.keys[head][seen..]);
                self.values[head].extend_from_slice(&v[at]);
            }
        }
        if tokens == 1 {
            return self.attend_one(rope, q);
        }
        let mut y = vec![0.0; q.len()];
        let out = Parts::of(&mut y);
        (0..query).into_par_iter().for_each(|head| {
            let answering = head * key_value / query;
            let (keys, values) = (&self.keys[answering], &self.values[answering]);
            let (mut turned, mut p) =
                (vec![0.0; BLOCK.min(tokens) * dim], vec![0.0; BLOCK.min(tokens) * by.widest_span(before + tokens)]);
            for block in blocks(tokens) {
                let turned = &mut turned[..block.len() * dim];
                for (token, turned) in block.clone().zip(turned.chunks_exact_mut(dim)) {
                    let x = &q[(token * query + head) * dim..(token * query + head + 1) * dim];
                    rope.turn(before + token, Turn::Forward, by.scale, x, turned);
                }
                let positions = before + block.start..before + block.end;
                let span = by.span(&positions);
                let there = span.start * dim..span.end * dim;
                let seen = (&keys[there.clone()], span.clone());
                let p = probabilities(turned, positions.start, seen, by, (&mut p, None));
                let start = (block.start * query + head) * dim;
                // SAFETY: this head's part of these tokens is ours alone.
                let y = unsafe { MatrixMut::strided(out, start, (block.len(), dim), query * dim) };
                let values = Matrix::new(&values[there], dim);
                product(y, Write::Replace, 1.0, Matrix::new(p, span.len()), values, Threads::One);
            }
        });
        y
    }

    /// The same for the last token alone, whose keys and values are here already. Packing the operands of a product
    /// would take longer than going through them once.
    fn attend_one(&self, rope: &Table, q: &[f32]) -> Vec<f32> {
        let Heads { key_value, dim, .. } = self.heads;
        let position = self.keys[0].len() / dim - 1;
        let span = self.scoring.span(&(position..position + 1));
        let there = span.start * dim..span.end * dim;
        let mut y = vec![0.0; q.len()];
        let out = Parts::of(&mut y);
        (0..key_value).into_par_iter().for_each(|answering| {
            let (keys, values) = (&self.keys[answering][there.clone()], &self.values[answering][there.clone()]);
            let group = self.heads.served_by(answering);
            let at = group.start * dim..group.end * dim;
            let (mut turned, mut scores) = (vec![0.0; at.len()], vec![0.0; group.len() * span.len()]);
            for (turned, q) in turned.chunks_exact_mut(dim).zip(q[at.clone()].chunks_exact(dim)) {
                rope.turn(position, Turn::Forward, self.scoring.scale, q, turned);
            }
            // SAFETY: what these heads see is ours alone.
            look_back(&turned, keys, values, dim, self.scoring.softcap, &mut scores, unsafe { out.part(at) });
        });
        y
    }
}

dispatched! {
    /// What each of a few queries `[queries, dim]` sees of all keys and values `[tokens, dim]`. `scores` are
    /// `[queries, tokens]`.
    fn look_back(
        q: &[f32],
        keys: &[f32],
        values: &[f32],
        dim: usize,
        softcap: Option<f32>,
        scores: &mut [f32],
        y: &mut [f32],
    ) {
        let tokens = keys.len() / dim;
        for (token, key) in keys.chunks_exact(dim).enumerate() {
            for (q, scores) in q.chunks_exact(dim).zip(scores.chunks_exact_mut(tokens)) {
                scores[token] = dot(q, key);
            }
        }
        for scores in scores.chunks_exact_mut(tokens) {
            if let Some(cap) = softcap {
                bend(scores, cap);
            }
            let shift = max(scores);
            let inverse = 1.0 / exp_and_sum(scores, shift);
            scores.iter_mut().for_each(|p| *p *= inverse);
        }
        for (p, y) in scores.chunks_exact(tokens).zip(y.chunks_exact_mut(dim)) {
            weighted_sum(p, values, y);
        }
    }
}

/// `y = p V` for one query: `[dim]` of probabilities `[tokens]` and values `[tokens, dim]`, in stretches whose sums stay
/// in registers.
#[inline(always)]
fn weighted_sum(p: &[f32], values: &[f32], y: &mut [f32]) {
    const STRETCH: usize = 64;
    let dim = y.len();
    let (stretches, rest) = y.as_chunks_mut::<STRETCH>();
    let beyond = stretches.len() * STRETCH;
    for (number, y) in stretches.iter_mut().enumerate() {
        let mut sums = [0.0; STRETCH];
        for (p, value) in p.iter().zip(values.chunks_exact(dim)) {
            let value = &value[number * STRETCH..(number + 1) * STRETCH];
            sums.iter_mut().zip(value).for_each(|(sum, value)| *sum += p * value);
        }
        *y = sums;
    }
    rest.fill(0.0);
    for (p, value) in p.iter().zip(values.chunks_exact(dim)) {
        rest.iter_mut().zip(&value[beyond..]).for_each(|(y, value)| *y += p * value);
    }
}

/// Rows that lie end to end (see [`Attention::bounds`](super::Attention)), each of which goes on where its own cache
/// ends: they may have seen different numbers of tokens, and take in different numbers now.
pub fn attend_each(
    caches: &mut [&mut Cache],
    bounds: &[usize],
    rope: &Rope,
    q: &[f32],
    k: &[f32],
    v: &[f32],
) -> Vec<f32> {
    if let [alone] = caches {
        return alone.attend(rope, q, k, v);
    }
    let tokens = bounds.last().map_or(1, |&tokens| tokens.max(1));
    let rows: Vec<Vec<f32>> = caches
        .par_iter_mut()
        .zip(bounds.par_windows(2))
        .map(|(cache, at)| {
            let [q, k, v] = [q, k, v].map(|x| &x[at[0] * (x.len() / tokens)..at[1] * (x.len() / tokens)]);
            cache.attend(rope, q, k, v)
        })
        .collect();
    rows.concat()
}
