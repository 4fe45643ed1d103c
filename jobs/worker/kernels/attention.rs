//! Causal attention with rotary positions and grouped queries, over rows that lie end to end.
//!
//! Queries are taken in blocks and their probabilities are never kept: the backward pass computes them again from
//! queries and keys, so that memory grows with the tokens and not with their square (the idea of FlashAttention, in
//! the plain form that suits a CPU's caches). Where queries see a window only, keys outside of it are never touched.

mod cache;

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::matrix::{Matrix, MatrixMut, Threads, Write, product};
use super::memory::{Fresh, Parts};
use super::rope::{Rope, Table, Turn};
use super::simd::{dispatched, dot, exp_and_sum, max};
use super::softcap::{bend, slope};
pub use cache::{Cache, attend_each};

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
}

/// What comes of the products of queries and keys, and which of them there are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scoring {
    /// What the products are multiplied by; see [`Scoring::usual`].
    pub scale: f32,
    /// What the scores are bent to lie within (see [`super::softcap`]).
    pub softcap: Option<f32>,
    /// How many tokens a query sees at most: itself and those before it.
    pub window: Option<usize>,
}

impl Scoring {
    /// `1 / sqrt(dim)`, every token before, and no cap.
    pub fn usual(dim: usize) -> Self {
        Self { scale: 1.0 / (dim as f32).sqrt(), softcap: None, window: None }
    }

    /// The first key that the query at this position sees.
    fn first_seen(self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// The keys that a block of queries sees altogether.
    pub(crate) fn span(self, block: &Range<usize>) -> Range<usize> {
        self.first_seen(block.start)..block.end
    }

    /// Keys that any block of queries out of `len` sees at most.
    fn widest_span(self, len: usize) -> usize {
        self.window.map_or(len, |window| len.min(window.saturating_add(BLOCK)))
    }
}

/// Attention over a batch: queries are `[tokens, query_width]`, keys and values `[tokens, key_value_width]`.
#[derive(Debug, Clone)]
pub struct Attention {
    pub heads: Heads,
    pub scoring: Scoring,
    pub rope: Arc<Rope>,
    /// Where each row begins, and after the last one where it ends: `rows + 1` numbers.
    pub bounds: Arc<[usize]>,
}

dispatched! {
    /// Softmax over what each query of a block sees: of the keys `span`, query `i` at position `first_query + i` sees
    /// those up to its own and within the window. `slopes` takes those of the softcap, where a backward pass needs
    /// them.
    fn softmax(scores: &mut [f32], slopes: Option<&mut [f32]>, span: Range<usize>, first_query: usize, by: Scoring) {
        if let Some(cap) = by.softcap {
            bend(scores, cap);
            if let Some(slopes) = slopes {
                slopes.iter_mut().zip(&*scores).for_each(|(to, y)| *to = slope(*y, cap));
            }
        }
        for (i, row) in scores.chunks_exact_mut(span.len()).enumerate() {
            let position = first_query + i;
            let (seen, ahead) = row.split_at_mut(position + 1 - span.start);
            let (behind, seen) = seen.split_at_mut(by.first_seen(position) - span.start);
            let shift = max(seen);
            let inverse = 1.0 / exp_and_sum(seen, shift);
            seen.iter_mut().for_each(|p| *p *= inverse);
            ahead.fill(0.0);
            behind.fill(0.0);
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

dispatched! {
    fn multiply(values: &mut [f32], by: &[f32]) {
        values.iter_mut().zip(by).for_each(|(value, by)| *value *= by);
    }
}

/// The probabilities `[queries, span]` of turned and scaled queries, the first of which stands at position
/// `first_query` of its row, over the keys `[span, dim]`, and the slopes of the softcap where they are asked for.
fn probabilities<'p>(
    q: &[f32],
    first_query: usize,
    (k, span): (&[f32], Range<usize>),
    by: Scoring,
    (p, slopes): (&'p mut [f32], Option<&mut [f32]>),
) -> &'p mut [f32] {
    let dim = k.len() / span.len();
    let size = q.len() / dim * span.len();
    let p = &mut p[..size];
    let (q, k) = (Matrix::new(q, dim), Matrix::new(k, dim));
    product(MatrixMut::new(p, span.len()), Write::Replace, 1.0, q, k.t(), Threads::One);
    softmax(p, slopes.map(|slopes| &mut slopes[..size]), span, first_query, by);
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
    fn turned(self, x: &[f32], rope: &Table, scale: f32) -> Vec<f32> {
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
    unsafe fn turn_back(self, dx: &[f32], rope: &Table, scale: f32, into: Parts<'_>) {
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
        let by = self.scoring;
        let mut y = Fresh::new(q.len());
        let out = y.parts();
        self.parts().into_par_iter().for_each(|(row, answering)| {
            let rope = self.rope.table(row.len());
            let at_kv = self.slice(&row, answering, key_value);
            let keys = at_kv.turned(k, rope, 1.0);
            let mut p = vec![0.0; BLOCK.min(row.len()) * by.widest_span(row.len())];
            for head in self.heads.served_by(answering) {
                let at_q = self.slice(&row, head, query);
                let queries = at_q.turned(q, rope, by.scale);
                for block in blocks(row.len()) {
                    let span = by.span(&block);
                    let seen = (&keys[span.start * dim..span.end * dim], span.clone());
                    let q = &queries[block.start * dim..block.end * dim];
                    let p = probabilities(q, block.start, seen, by, (&mut p, None));
                    let start = at_q.values(block.start).start;
                    // SAFETY: this block of this head of this row is ours alone.
                    let y = unsafe { MatrixMut::strided(out, start, (block.len(), dim), at_q.width) };
                    let p = Matrix::new(p, span.len());
                    product(y, Write::Replace, 1.0, p, at_kv.matrix(v, span), Threads::One);
                }
            }
        });
        // SAFETY: rows and heads together cover every value.
        unsafe { y.filled() }
    }

    /// The gradients of queries, keys and values.
    pub fn backward(&self, q: &[f32], k: &[f32], v: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
        let Heads { query, key_value, dim } = self.heads;
        let by = self.scoring;
        let (mut dq, mut dk, mut dv) = (Fresh::new(q.len()), Fresh::new(k.len()), Fresh::new(v.len()));
        let (dq_out, dk_out, dv_out) = (dq.parts(), dk.parts(), dv.parts());
        self.parts().into_par_iter().for_each(|(row, answering)| {
            let rope = self.rope.table(row.len());
            let at_kv = self.slice(&row, answering, key_value);
            let keys = at_kv.turned(k, rope, 1.0);
            let (mut dkeys, mut dvalues) = (vec![0.0; keys.len()], vec![0.0; keys.len()]);
            let mut p = vec![0.0; BLOCK.min(row.len()) * by.widest_span(row.len())];
            let (mut dp, mut slopes) = (p.clone(), by.softcap.map(|_| p.clone()));
            let mut dqueries = vec![0.0; keys.len()];
            for head in self.heads.served_by(answering) {
                let at_q = self.slice(&row, head, query);
                let queries = at_q.turned(q, rope, by.scale);
                for block in blocks(row.len()) {
                    let (span, here) = (by.span(&block), block.start * dim..block.end * dim);
                    let (width, there) = (span.len(), span.start * dim..span.end * dim);
                    let seen = (&keys[there.clone()], span.clone());
                    let p =
                        probabilities(&queries[here.clone()], block.start, seen, by, (&mut p, slopes.as_deref_mut()));
                    let q = Matrix::new(&queries[here.clone()], dim);
                    let dy = at_q.matrix(dy, block.clone());
                    let add = |into: &mut [f32], a: Matrix<'_>, b: Matrix<'_>| {
                        let into = MatrixMut::new(&mut into[there.clone()], dim);
                        product(into, Write::Add, 1.0, a, b, Threads::One);
                    };
                    add(&mut dvalues, Matrix::new(p, width).t(), dy);
                    let dp = &mut dp[..p.len()];
                    let values = at_kv.matrix(v, span);
                    product(MatrixMut::new(dp, width), Write::Replace, 1.0, dy, values.t(), Threads::One);
                    softmax_backward(p, dp, width);
                    if let Some(slopes) = &slopes {
                        multiply(dp, slopes);
                    }
                    let dscores = Matrix::new(dp, width);
                    add(&mut dkeys, dscores.t(), q);
                    let (dq, keys) = (&mut dqueries[here], Matrix::new(&keys[there.clone()], dim));
                    product(MatrixMut::new(dq, dim), Write::Replace, 1.0, dscores, keys, Threads::One);
                }
                // SAFETY: this head of this row is ours alone.
                unsafe { at_q.turn_back(&dqueries, rope, by.scale, dq_out) };
            }
            // SAFETY: so are this row's keys and values.
            unsafe {
                at_kv.turn_back(&dkeys, rope, 1.0, dk_out);
                at_kv.put(&dvalues, dv_out);
            }
        });
        // SAFETY: rows and heads together cover every value of all three.
        unsafe { [dq.filled(), dk.filled(), dv.filled()] }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device, Result, Tensor};

    use super::*;
    use crate::kernels::rope::Frequencies;
    use crate::kernels::testing::{Kernel, assert_close, random, weighted_sum_gradients};

    const HEADS: Heads = Heads { query: 6, key_value: 2, dim: 10 };

    const INVERSE: [f32; 4] = [1.0, 0.3, 0.1, 0.03];
    const FACTOR: f32 = 1.25;

    /// Of a head's ten values eight turn.
    fn rope() -> Arc<Rope> {
        Arc::new(Rope::new(&Frequencies { inverse: INVERSE.to_vec(), factor: FACTOR }, 80))
    }

    /// Everything at once, and one thing after the other.
    fn scorings() -> [Scoring; 4] {
        let usual = Scoring::usual(HEADS.dim);
        [
            usual,
            Scoring { window: Some(5), ..usual },
            Scoring { softcap: Some(0.4), ..usual },
            Scoring { scale: 0.7, softcap: Some(0.9), window: Some(66) },
        ]
    }

    /// The same with candle's own operations, one row after the other.
    fn slow(q: &Tensor, k: &Tensor, v: &Tensor, bounds: &[usize], by: Scoring) -> Result<Tensor> {
        let rows: Result<Vec<Tensor>> = bounds
            .windows(2)
            .map(|at| {
                let len = at[1] - at[0];
                let split = |x: &Tensor, heads| {
                    x.narrow(0, at[0], len)?.reshape((len, heads, HEADS.dim))?.transpose(0, 1)?.contiguous()
                };
                let angles: Vec<f32> = (0..len).flat_map(|p| INVERSE.map(|f| p as f32 * f)).collect();
                let half = INVERSE.len();
                let angles = Tensor::from_vec(angles, (len, half), &Device::Cpu)?;
                let (cos, sin) = ((angles.cos()? * f64::from(FACTOR))?, (angles.sin()? * f64::from(FACTOR))?);
                let turn = |x: &Tensor| -> Result<Tensor> {
                    let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
                    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
                    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
                    Tensor::cat(&[first, second, x.narrow(2, 2 * half, HEADS.dim - 2 * half)?], 2)
                };
                let repeat = |x: &Tensor| -> Result<Tensor> {
                    let group = HEADS.query / HEADS.key_value;
                    let x = x.unsqueeze(1)?.repeat((1, group, 1, 1))?;
                    x.reshape((HEADS.query, len, HEADS.dim))
                };
                let (q, k) = (turn(&split(q, HEADS.query)?)?, repeat(&turn(&split(k, HEADS.key_value)?)?)?);
                let v = repeat(&split(v, HEADS.key_value)?)?;
                let sees = |i: usize, j: usize| j <= i && by.window.is_none_or(|window| j + window > i);
                let hidden: Vec<f32> =
                    (0..len * len).map(|i| if sees(i / len, i % len) { 0.0 } else { f32::NEG_INFINITY }).collect();
                let mask = Tensor::from_vec(hidden, (len, len), &Device::Cpu)?;
                let mut scores = (q.matmul(&k.t()?)? * f64::from(by.scale))?;
                if let Some(cap) = by.softcap {
                    scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
                }
                let scores = scores.broadcast_add(&mask)?;
                let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
                let p = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
                p.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((len, HEADS.query_width()))
            })
            .collect();
        Tensor::cat(&rows?, 0)
    }

    #[test]
    fn attention_and_its_gradients_are_those_of_the_slow_operations() {
        let bounds: Arc<[usize]> = Arc::new([0, 1, 8, 81]);
        let q = random("q", (81, HEADS.query_width()));
        let (k, v) = (random("k", (81, HEADS.key_value_width())), random("v", (81, HEADS.key_value_width())));
        for scoring in scorings() {
            let slow = |x: &[&Tensor]| slow(x[0], x[1], x[2], &bounds, scoring);
            let (y, want) = weighted_sum_gradients(slow, &[&q, &k, &v]).unwrap();
            let fast = |x: &[&Tensor]| {
                let attention = Attention { heads: HEADS, scoring, rope: rope(), bounds: bounds.clone() };
                let again = attention.clone();
                let op = Kernel::new(
                    (81, HEADS.query_width()),
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
    }

    #[test]
    fn a_cache_answers_what_the_whole_row_would() {
        let (rope, tokens) = (rope(), 71);
        let q = random("q", (tokens, HEADS.query_width()));
        let (k, v) = (random("k", (tokens, HEADS.key_value_width())), random("v", (tokens, HEADS.key_value_width())));
        let [q, k, v] = [q, k, v].map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        for scoring in scorings() {
            let whole = Attention { heads: HEADS, scoring, rope: rope.clone(), bounds: Arc::new([0, tokens]) };
            let want = whole.forward(&q, &k, &v);
            let mut cache = Cache::new(HEADS, scoring);
            let mut got = Vec::new();
            for (from, to) in [(0, 66), (66, 67), (67, 68), (68, 71)] {
                let part = |x: &[f32]| x[from * x.len() / tokens..to * x.len() / tokens].to_vec();
                got.extend(cache.attend(&rope, &part(&q), &part(&k), &part(&v)));
            }
            let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
            assert!(got.len() == want.len() && worst < 1e-6, "{scoring:?}: {worst:e}");
        }
    }
}
