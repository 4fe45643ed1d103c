//! Causal attention with rotary positions and grouped queries, over rows that lie end to end.
//!
//! Queries are taken in blocks and their probabilities are never kept: the backward pass computes them again from
//! queries and keys, so that memory grows with the tokens and not with their square (the idea of FlashAttention, in
//! the plain form that suits a CPU's caches).

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::matrix::{Matrix, MatrixMut, Threads, Write, product};
use super::memory::{Fresh, Parts};
use super::rope::{Rope, Turn};
use super::simd::{dispatched, dot, exp_and_sum, max};

/// Queries whose probabilities are held at once.
const BLOCK: usize = 64;

/// How a token's values are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads that ask.
    pub query: usize,
    /// Heads that answer; each serves `query / key_value` of those that ask.
    pub key_value: usize,
    /// Values a head.
    pub dim: usize,
}

impl Heads {
    /// Values that a token's queries take.
    pub fn query_width(self) -> usize {
        self.query * self.dim
    }

    /// Values that a token's keys take, and its values.
    pub fn key_value_width(self) -> usize {
        self.key_value * self.dim
    }

    fn served_by(self, key_value: usize) -> Range<usize> {
        let group = self.query / self.key_value;
        key_value * group..(key_value + 1) * group
    }

    fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// Attention over a batch: queries are `[tokens, query_width]`, keys and values `[tokens, key_value_width]`.
#[derive(Debug, Clone)]
pub struct Attention {
    pub heads: Heads,
    pub rope: Arc<Rope>,
    /// Where each row begins, and after the last one where it ends: `rows + 1` numbers.
    pub bounds: Arc<[usize]>,
}

dispatched! {
    /// Softmax over what each query may see: query `i` of the block sees the first `before + i + 1` of the keys.
    fn causal_softmax(scores: &mut [f32], keys: usize, before: usize) {
        for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
            let (seen, hidden) = row.split_at_mut(before + i + 1);
            let shift = max(seen);
            let inverse = 1.0 / exp_and_sum(seen, shift);
            seen.iter_mut().for_each(|p| *p *= inverse);
            hidden.fill(0.0);
        }
    }
}

dispatched! {
    /// From the gradients of the probabilities to those of the scores, in place: `p * (dp - sum(p * dp))`.
    fn softmax_backward(p: &[f32], dp: &mut [f32], keys: usize) {
        for (p, dp) in p.chunks_exact(keys).zip(dp.chunks_exact_mut(keys)) {
            let sum = dot(p, dp);
            dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - sum));
        }
    }
}

/// The probabilities `[queries, before + queries]` of a block of turned and scaled queries, the first of which stands
/// at position `before` of its row.
fn probabilities<'p>(q: &[f32], k: &[f32], dim: usize, before: usize, p: &'p mut [f32]) -> &'p mut [f32] {
    let queries = q.len() / dim;
    let keys = before + queries;
    let p = &mut p[..queries * keys];
    let (q, k) = (Matrix::new(q, dim), Matrix::new(&k[..keys * dim], dim));
    product(MatrixMut::new(p, keys), Write::Replace, 1.0, q, k.t(), Threads::One);
    causal_softmax(p, keys, before);
    p
}

/// One head of one row, out of `[tokens, width]`.
#[derive(Clone, Copy)]
struct Slice {
    first: usize,
    len: usize,
    width: usize,
    column: usize,
    dim: usize,
}

impl Slice {
    fn values(self, token: usize) -> Range<usize> {
        let start = (self.first + token) * self.width + self.column;
        start..start + self.dim
    }

    /// The tokens of `range`, as they lie there.
    fn matrix(self, x: &[f32], range: Range<usize>) -> Matrix<'_> {
        let start = (self.first + range.start) * self.width + self.column;
        Matrix::strided(&x[start..], range.len(), self.dim, self.width)
    }

    /// The slice turned to its positions, without gaps.
    fn turned(self, x: &[f32], rope: &Rope, scale: f32) -> Vec<f32> {
        let mut y = vec![0.0; self.len * self.dim];
        for (token, y) in y.chunks_exact_mut(self.dim).enumerate() {
            rope.turn(token, Turn::Forward, scale, &x[self.values(token)], y);
        }
        y
    }

    /// Turns gradients back and puts them where the slice lies.
    ///
    /// # Safety
    /// Nobody else holds this slice of `into`.
    unsafe fn turn_back(self, dx: &[f32], rope: &Rope, scale: f32, into: Parts<'_>) {
        for (token, dx) in dx.chunks_exact(self.dim).enumerate() {
            // SAFETY: by this function's contract.
            rope.turn(token, Turn::Back, scale, dx, unsafe { into.part(self.values(token)) });
        }
    }

    /// # Safety
    /// Nobody else holds this slice of `into`.
    unsafe fn put(self, x: &[f32], into: Parts<'_>) {
        for (token, x) in x.chunks_exact(self.dim).enumerate() {
            // SAFETY: by this function's contract.
            unsafe { into.part(self.values(token)) }.copy_from_slice(x);
        }
    }
}

/// Blocks of at most [`BLOCK`] queries.
fn blocks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(len))
}

impl Attention {
    /// Every pair of a row and a key-value head: they do not depend on each other.
    fn parts(&self) -> Vec<(Range<usize>, usize)> {
        let rows = self.bounds.windows(2).map(|bounds| bounds[0]..bounds[1]);
        rows.flat_map(|row| (0..self.heads.key_value).map(move |head| (row.clone(), head))).collect()
    }

    fn slice(&self, row: &Range<usize>, head: usize, heads: usize) -> Slice {
        let dim = self.heads.dim;
        Slice { first: row.start, len: row.len(), width: heads * dim, column: head * dim, dim }
    }

    /// What every token sees, `[tokens, query_width]`.
    pub fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let Heads { query, key_value, dim } = self.heads;
        let mut y = Fresh::new(q.len());
        let out = y.parts();
        self.parts().into_par_iter().for_each(|(row, answering)| {
            let at_kv = self.slice(&row, answering, key_value);
            let keys = at_kv.turned(k, &self.rope, 1.0);
            let mut p = vec![0.0; BLOCK.min(row.len()) * row.len()];
            for head in self.heads.served_by(answering) {
                let at_q = self.slice(&row, head, query);
                let queries = at_q.turned(q, &self.rope, self.heads.scale());
                for block in blocks(row.len()) {
                    let p =
                        probabilities(&queries[block.start * dim..block.end * dim], &keys, dim, block.start, &mut p);
                    let start = at_q.values(block.start).start;
                    // SAFETY: this block of this head of this row is ours alone.
                    let y = unsafe { MatrixMut::strided(out, start, (block.len(), dim), at_q.width) };
                    let values = at_kv.matrix(v, 0..block.end);
                    product(y, Write::Replace, 1.0, Matrix::new(p, block.end), values, Threads::One);
                }
            }
        });
        // SAFETY: rows and heads together cover every value.
        unsafe { y.filled() }
    }

    /// The gradients of queries, keys and values.
    pub fn backward(&self, q: &[f32], k: &[f32], v: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
        let Heads { query, key_value, dim } = self.heads;
        let (mut dq, mut dk, mut dv) = (Fresh::new(q.len()), Fresh::new(k.len()), Fresh::new(v.len()));
        let (dq_out, dk_out, dv_out) = (dq.parts(), dk.parts(), dv.parts());
        self.parts().into_par_iter().for_each(|(row, answering)| {
            let at_kv = self.slice(&row, answering, key_value);
            let keys = at_kv.turned(k, &self.rope, 1.0);
            let (mut dkeys, mut dvalues) = (vec![0.0; keys.len()], vec![0.0; keys.len()]);
            let mut p = vec![0.0; BLOCK.min(row.len()) * row.len()];
            let mut dp = p.clone();
            let mut dqueries = vec![0.0; keys.len()];
            for head in self.heads.served_by(answering) {
                let at_q = self.slice(&row, head, query);
                let queries = at_q.turned(q, &self.rope, self.heads.scale());
                for block in blocks(row.len()) {
                    let (end, here) = (block.end, block.start * dim..block.end * dim);
                    let q = Matrix::new(&queries[here.clone()], dim);
                    let p = probabilities(&queries[here.clone()], &keys, dim, block.start, &mut p);
                    let dy = at_q.matrix(dy, block.clone());
                    let add = |into: &mut [f32], a: Matrix<'_>, b: Matrix<'_>| {
                        product(MatrixMut::new(&mut into[..end * dim], dim), Write::Add, 1.0, a, b, Threads::One);
                    };
                    add(&mut dvalues, Matrix::new(p, end).t(), dy);
                    let dp = &mut dp[..p.len()];
                    let values = at_kv.matrix(v, 0..end);
                    product(MatrixMut::new(dp, end), Write::Replace, 1.0, dy, values.t(), Threads::One);
                    softmax_backward(p, dp, end);
                    let dscores = Matrix::new(dp, end);
                    add(&mut dkeys, dscores.t(), q);
                    let (dq, keys) = (&mut dqueries[here], Matrix::new(&keys[..end * dim], dim));
                    product(MatrixMut::new(dq, dim), Write::Replace, 1.0, dscores, keys, Threads::One);
                }
                // SAFETY: this head of this row is ours alone.
                unsafe { at_q.turn_back(&dqueries, &self.rope, self.heads.scale(), dq_out) };
            }
            // SAFETY: so are this row's keys and values.
            unsafe {
                at_kv.turn_back(&dkeys, &self.rope, 1.0, dk_out);
                at_kv.put(&dvalues, dv_out);
            }
        });
        // SAFETY: rows and heads together cover every value of all three.
        unsafe { [dq.filled(), dk.filled(), dv.filled()] }
    }
}

/// The keys (turned) and values of the tokens that a layer has seen, for answering token by token.
pub struct Cache {
    heads: Heads,
    /// For each key-value head `[tokens, dim]`.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Cache {
    pub fn new(heads: Heads) -> Self {
        Self { heads, keys: vec![Vec::new(); heads.key_value], values: vec![Vec::new(); heads.key_value] }
    }

    /// Takes in the keys and values of tokens that follow those seen before, and lets their queries look back.
    /// Queries and the result are `[tokens, query_width]`.
    pub fn attend(&mut self, rope: &Rope, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let Heads { query, key_value, dim } = self.heads;
        let before = self.keys[0].len() / dim;
        let tokens = q.len() / self.heads.query_width();
        for head in 0..key_value {
            for token in 0..tokens {
                let at = (token * key_value + head) * dim..(token * key_value + head + 1) * dim;
                let seen = self.keys[head].len();
                self.keys[head].resize(seen + dim, 0.0);
                rope.turn(before + token, Turn::Forward, 1.0, &k[at.clone()], &mut self.keys[head][seen..]);
                self.values[head].extend_from_slice(&v[at]);
            }
        }
        let mut y = vec![0.0; q.len()];
        let out = Parts::of(&mut y);
        (0..query).into_par_iter().for_each(|head| {
            let answering = head * key_value / query;
            let (keys, values) = (&self.keys[answering], &self.values[answering]);
            let (mut turned, mut p) =
                (vec![0.0; BLOCK.min(tokens) * dim], vec![0.0; BLOCK.min(tokens) * (before + tokens)]);
            for block in blocks(tokens) {
                let turned = &mut turned[..block.len() * dim];
                for (token, turned) in block.clone().zip(turned.chunks_exact_mut(dim)) {
                    let x = &q[(token * query + head) * dim..(token * query + head + 1) * dim];
                    rope.turn(before + token, Turn::Forward, self.heads.scale(), x, turned);
                }
                let end = before + block.end;
                let p = probabilities(turned, keys, dim, before + block.start, &mut p);
                let start = (block.start * query + head) * dim;
                // SAFETY: this head's part of these tokens is ours alone.
                let y = unsafe { MatrixMut::strided(out, start, (block.len(), dim), query * dim) };
                let values = Matrix::new(&values[..end * dim], dim);
                product(y, Write::Replace, 1.0, Matrix::new(p, end), values, Threads::One);
            }
        });
        y
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device, Result, Tensor};

    use super::*;
    use crate::kernels::testing::{Kernel, assert_close, random, weighted_sum_gradients};

    const HEADS: Heads = Heads { query: 6, key_value: 2, dim: 10 };

    fn rope() -> Arc<Rope> {
        Arc::new(Rope::new(&[1.0, 0.3, 0.1, 0.03, 0.01], 80))
    }

    /// The same with candle's own operations, one row after the other.
    fn slow(q: &Tensor, k: &Tensor, v: &Tensor, bounds: &[usize]) -> Result<Tensor> {
        let rows: Result<Vec<Tensor>> = bounds
            .windows(2)
            .map(|at| {
                let len = at[1] - at[0];
                let split = |x: &Tensor, heads| {
                    x.narrow(0, at[0], len)?.reshape((len, heads, HEADS.dim))?.transpose(0, 1)?.contiguous()
                };
                let angles: Vec<f32> =
                    (0..len).flat_map(|p| [1.0f32, 0.3, 0.1, 0.03, 0.01].map(|f| p as f32 * f)).collect();
                let angles = Tensor::from_vec(angles, (len, HEADS.dim / 2), &Device::Cpu)?;
                let (cos, sin) = (angles.cos()?, angles.sin()?);
                let turn = |x: &Tensor| -> Result<Tensor> {
                    let half = HEADS.dim / 2;
                    let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
                    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
                    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
                    Tensor::cat(&[first, second], 2)
                };
                let repeat = |x: &Tensor| -> Result<Tensor> {
                    let group = HEADS.query / HEADS.key_value;
                    let x = x.unsqueeze(1)?.repeat((1, group, 1, 1))?;
                    x.reshape((HEADS.query, len, HEADS.dim))
                };
                let (q, k) = (turn(&split(q, HEADS.query)?)?, repeat(&turn(&split(k, HEADS.key_value)?)?)?);
                let v = repeat(&split(v, HEADS.key_value)?)?;
                let hidden: Vec<f32> =
                    (0..len * len).map(|i| if i % len > i / len { f32::NEG_INFINITY } else { 0.0 }).collect();
                let mask = Tensor::from_vec(hidden, (len, len), &Device::Cpu)?;
                let scores = (q.matmul(&k.t()?)? * (1.0 / (HEADS.dim as f64).sqrt()))?.broadcast_add(&mask)?;
                let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
                let p = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
                p.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((len, HEADS.query_width()))
            })
            .collect();
        Tensor::cat(&rows?, 0)
    }

    #[test]
    fn attention_and_its_gradients_are_those_of_the_slow_operations() {
        let bounds: Arc<[usize]> = Arc::new([0, 1, 8, 73]);
        let q = random("q", (73, HEADS.query_width()));
        let (k, v) = (random("k", (73, HEADS.key_value_width())), random("v", (73, HEADS.key_value_width())));
        let (y, want) = weighted_sum_gradients(|x| slow(x[0], x[1], x[2], &bounds), &[&q, &k, &v]).unwrap();
        let fast = |x: &[&Tensor]| {
            let attention = Attention { heads: HEADS, rope: rope(), bounds: bounds.clone() };
            let again = attention.clone();
            let op = Kernel::new(
                (73, HEADS.query_width()),
                move |x| attention.forward(x[0], x[1], x[2]),
                move |x, dy| again.backward(x[0], x[1], x[2], dy).into(),
            );
            x[0].apply_op3(x[1], x[2], op)
        };
        let (fast_y, got) = weighted_sum_gradients(fast, &[&q, &k, &v]).unwrap();
        assert_close(&fast_y, &y, 1e-5);
        for (got, want) in got.iter().zip(&want) {
            assert_close(got, want, 2e-5);
        }
    }

    #[test]
    fn a_cache_answers_what_the_whole_row_would() {
        let (rope, tokens) = (rope(), 71);
        let q = random("q", (tokens, HEADS.query_width()));
        let (k, v) = (random("k", (tokens, HEADS.key_value_width())), random("v", (tokens, HEADS.key_value_width())));
        let [q, k, v] = [q, k, v].map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        let whole = Attention { heads: HEADS, rope: rope.clone(), bounds: Arc::new([0, tokens]) };
        let want = whole.forward(&q, &k, &v);
        let mut cache = Cache::new(HEADS);
        let mut got = Vec::new();
        for (from, to) in [(0, 66), (66, 67), (67, 68), (68, 71)] {
            let part = |x: &[f32]| x[from * x.len() / tokens..to * x.len() / tokens].to_vec();
            got.extend(cache.attend(&rope, &part(&q), &part(&k), &part(&v)));
        }
        let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(got.len() == want.len() && worst < 1e-6, "{worst:e}");
    }
}
