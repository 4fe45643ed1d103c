//! Products with matrices of few rows, as an adapter has them: `x Aᵀ`, and the gradients of A and B.
//!
//! There is so little to compute for each value read that memory decides: a general product would rearrange a large
//! operand that it uses eight times, and read it again for each of the three. Here a few tokens at a time stay in the
//! cache until all that an adapter wants of them is done.

#[cfg(target_arch = "x86_64")]
mod avx512;

use std::ops::Range;

use rayon::prelude::*;

use super::add::add_to;
use super::memory::{Fresh, by_rows};
#[cfg(target_arch = "x86_64")]
use super::simd::{Level, level};
use super::simd::{dispatched, dot};

/// Tokens that are taken on together, so that they come out of the cache the second time.
const TOKENS: usize = 16;
/// Tokens whose gradients are summed up before they join the others. It does not depend on the number of threads, and
/// so neither does a gradient.
const SUMMED: usize = 128;

/// `y = scale * x Aᵀ` for some rows `[width]` of `x`; `y` is `[tokens, rank]`, `a` is `[rank, width]`.
fn reduce(x: &[f32], a: &[f32], width: usize, scale: f32, y: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        // SAFETY: the CPU has the instructions.
        return unsafe { avx512::reduce(x, a, width, scale, y) };
    }
    plain_reduce(x, a, width, scale, y);
}

/// `g += cᵀ x` for some rows: `c` is `[tokens, rank]`, `x` `[tokens, width]`, `g` `[rank, width]`.
fn add_outer_products(c: &[f32], x: &[f32], rank: usize, g: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        // SAFETY: the CPU has the instructions.
        return unsafe { avx512::add_outer_products(c, x, rank, g) };
    }
    plain_add_outer_products(c, x, rank, g);
}

dispatched! {
    fn plain_reduce(x: &[f32], a: &[f32], width: usize, scale: f32, y: &mut [f32]) {
        let rank = a.len() / width;
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(rank)) {
            for (a, y) in a.chunks_exact(width).zip(y) {
                *y = scale * dot(x, a);
            }
        }
    }
}

dispatched! {
    fn plain_add_outer_products(c: &[f32], x: &[f32], rank: usize, g: &mut [f32]) {
        let width = g.len() / rank;
        for (c, x) in c.chunks_exact(rank).zip(x.chunks_exact(width)) {
            for (c, g) in c.iter().zip(g.chunks_exact_mut(width)) {
                g.iter_mut().zip(x).for_each(|(g, x)| *g += c * x);
            }
        }
    }
}

/// `scale * x Aᵀ`, `[tokens, rank]`, of `[tokens, width]` and `[rank, width]`.
pub fn reduced(x: &[f32], a: &[f32], width: usize, scale: f32) -> Vec<f32> {
    let (tokens, rank) = (x.len() / width, a.len() / width);
    let mut y = Fresh::new(tokens * rank);
    let parts = y.parts();
    by_rows(tokens, |rows| {
        // SAFETY: `by_rows` gives no row out twice, and `reduce` only writes to it.
        let y = unsafe { parts.part(rows.start * rank..rows.end * rank) };
        reduce(&x[rows.start * width..rows.end * width], a, width, scale, y);
    });
    // SAFETY: every row has been written.
    unsafe { y.filled() }
}

/// The transpose of `[rows, cols]`.
fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    let mut turned = vec![0.0; values.len()];
    for (row, values) in values.chunks_exact(cols).enumerate() {
        for (turned, value) in turned[row..].iter_mut().step_by(rows).zip(values) {
            *turned = *value;
        }
    }
    turned
}

/// An adapter of a projection, with what went into it and the gradient of what came out.
#[derive(Clone, Copy)]
pub struct Adapted<'a> {
    /// `[rank, width]`
    pub a: &'a [f32],
    /// `[out, rank]`
    pub b: &'a [f32],
    pub rank: usize,
    pub scale: f32,
    /// `[tokens, width]`
    pub x: &'a [f32],
    /// `[tokens, out]`
    pub dy: &'a [f32],
}

impl Adapted<'_> {
    /// Adds the gradients of A and B where they are asked for, and returns that of `x Aᵀ`: `scale * dy B`, `[tokens,
    /// rank]`. `x Aᵀ` itself is computed again; it takes less time than to keep it takes memory.
    pub fn backward(&self, da: Option<&mut [f32]>, db: Option<&mut [f32]>) -> Vec<f32> {
        let (width, out) = (self.a.len() / self.rank, self.b.len() / self.rank);
        let tokens = self.x.len() / width;
        let (len_a, len_b) = (da.as_ref().map_or(0, |da| da.len()), db.as_ref().map_or(0, |db| db.len()));
        let b_turned = transposed(self.b, self.rank);
        let mut dreduced = Fresh::new(tokens * self.rank);
        let parts = dreduced.parts();
        let pieces: Vec<(Vec<f32>, Vec<f32>)> = (0..tokens.div_ceil(SUMMED))
            .into_par_iter()
            .map(|piece| {
                let (mut da, mut db_turned) = (vec![0.0; len_a], vec![0.0; len_b]);
                let mut reduced = vec![0.0; TOKENS * self.rank];
                for rows in blocks(piece * SUMMED..((piece + 1) * SUMMED).min(tokens)) {
                    let x = &self.x[rows.start * width..rows.end * width];
                    let dy = &self.dy[rows.start * out..rows.end * out];
                    // SAFETY: pieces and their blocks share no row.
                    let dreduced = unsafe { parts.part(rows.start * self.rank..rows.end * self.rank) };
                    reduce(dy, &b_turned, out, self.scale, dreduced);
                    if !da.is_empty() {
                        add_outer_products(dreduced, x, self.rank, &mut da);
                    }
                    if !db_turned.is_empty() {
                        let reduced = &mut reduced[..rows.len() * self.rank];
                        reduce(x, self.a, width, self.scale, reduced);
                        add_outer_products(reduced, dy, self.rank, &mut db_turned);
                    }
                }
                (da, db_turned)
            })
            .collect();
        let mut pieces = pieces.into_iter();
        let (mut sum_a, mut sum_b_turned) = pieces.next().unwrap_or_default();
        for (a, b_turned) in pieces {
            add_to(&mut sum_a, &a);
            add_to(&mut sum_b_turned, &b_turned);
        }
        if let Some(da) = da {
            add_to(da, &sum_a);
        }
        if let Some(db) = db {
            add_to(db, &transposed(&sum_b_turned, out));
        }
        // SAFETY: every row has been written.
        unsafe { dreduced.filled() }
    }
}

fn blocks(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = rows.end;
    rows.step_by(TOKENS).map(move |from| from..(from + TOKENS).min(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::random;

    fn values(name: &str, len: usize) -> Vec<f32> {
        random(name, len).to_vec1().unwrap()
    }

    /// `[rows of a, rows of b]`: the inner products in f64.
    fn slow(a: &[f32], b: &[f32], depth: usize) -> Vec<f32> {
        let inner = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let row = |a| b.chunks_exact(depth).map(move |b| inner(a, b) as f32);
        a.chunks_exact(depth).flat_map(row).collect()
    }

    #[track_caller]
    fn assert_near(got: &[f32], want: impl Iterator<Item = f32>) {
        let want: Vec<f32> = want.collect();
        assert_eq!(got.len(), want.len());
        let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-5, "{worst:e}");
    }

    #[test]
    fn every_cpu_computes_the_same_but_for_rounding() {
        for (tokens, width, rank) in [(1, 1, 1), (3, 31, 8), (16, 100, 19)] {
            let (x, a, c) = (values("x", tokens * width), values("a", rank * width), values("c", tokens * rank));
            let (mut fast, mut plain) = (vec![0.0; tokens * rank], vec![0.0; tokens * rank]);
            reduce(&x, &a, width, 0.5, &mut fast);
            plain_reduce(&x, &a, width, 0.5, &mut plain);
            assert_near(&fast, plain.into_iter());
            let (mut fast, mut plain) = (a.clone(), a);
            add_outer_products(&c, &x, rank, &mut fast);
            plain_add_outer_products(&c, &x, rank, &mut plain);
            assert_near(&fast, plain.into_iter());
        }
    }

    #[test]
    fn an_adapters_products_are_those_of_the_slow_reference() {
        for (tokens, width, out, rank) in [(1, 5, 7, 1), (17, 16, 48, 8), (150, 37, 50, 11), (300, 64, 33, 16)] {
            let (x, dy) = (values("x", tokens * width), values("dy", tokens * out));
            let (a, b) = (values("a", rank * width), values("b", out * rank));
            let scale = 0.1;
            assert_near(&reduced(&x, &a, width, scale), slow(&x, &a, width).into_iter().map(|y| y * scale));
            let (mut da, mut db) = (vec![1.0; a.len()], vec![2.0; b.len()]);
            let adapted = Adapted { a: &a, b: &b, rank, scale, x: &x, dy: &dy };
            let dreduced = adapted.backward(Some(&mut da), Some(&mut db));
            let want: Vec<f32> = slow(&dy, &transposed(&b, rank), out).into_iter().map(|y| y * scale).collect();
            assert_near(&dreduced, want.iter().copied());
            let want_a = slow(&transposed(&want, rank), &transposed(&x, width), tokens);
            assert_near(&da, want_a.into_iter().map(|da| da + 1.0));
            let reduced: Vec<f32> = slow(&x, &a, width).into_iter().map(|y| y * scale).collect();
            let want_b = slow(&transposed(&dy, out), &transposed(&reduced, rank), tokens);
            assert_near(&db, want_b.into_iter().map(|db| db + 2.0));
            assert_eq!(adapted.backward(None, None), dreduced);
        }
    }
}
