//! Attention on the device, as [`crate::kernels::attention`]: queries in blocks, whose probabilities are never kept.
//!
//! The heads that share their keys are rows of one matrix, so that each block of queries takes two products forward and
//! five backward, whatever the number of heads; the sum over the heads that share a key is made inside a product.

use std::ops::Range;

use drydock_spec::device::queries_at_once;

use super::batch::OnDevice;
use super::device::Device;
use super::error::Result;
use super::memory::{Buffer, Element, View};
use super::model::{Angles, Computed};
use super::module::{Shape, arguments};
use super::operations::{named, small};
use super::product::{Matrix, MatrixMut, Mix};
use super::rows::{Rows, RowsMut};
use crate::kernels::attention::{Heads, Scoring};

/// Attention of one layer over a batch.
#[derive(Clone, Copy)]
pub(super) struct Attention<'a> {
    pub device: &'a Device,
    pub layer: usize,
    pub heads: Heads,
    pub scoring: Scoring,
    pub angles: &'a Angles,
    /// Whether heads turn as in layers with a window.
    pub turns_as_window: bool,
    pub batch: &'a OnDevice,
}

/// Queries, keys and values; the heads of a token side by side.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a, T: Element> {
    pub q: Rows<'a, T>,
    pub k: Rows<'a, T>,
    pub v: Rows<'a, T>,
}

/// A block of queries of a row, and the keys that they see altogether, counted from the row's first token.
struct Block {
    /// Where the row begins in the batch.
    first: usize,
    queries: Range<usize>,
    keys: Range<usize>,
}

/// Queries of a block, and scores of all heads that exist at once.
fn at_once(heads: Heads, longest: usize) -> (usize, usize) {
    let queries = queries_at_once(heads.query as u64, longest as u64) as usize;
    (queries, heads.query * queries * longest)
}

impl Attention<'_> {
    pub(super) fn group(&self) -> usize {
        self.heads.query / self.heads.key_value
    }

    /// In an order that never changes.
    fn blocks(&self) -> Vec<Block> {
        let (len, _) = at_once(self.heads, self.batch.longest());
        let of_row = |row: &Range<usize>| {
            let row = row.clone();
            (0..row.len()).step_by(len).map(move |start| {
                let queries = start..(start + len).min(row.len());
                Block { first: row.start, keys: self.scoring.span(&queries), queries }
            })
        };
        self.batch.rows().iter().flat_map(of_row).collect()
    }

    /// The heads `[kv heads, tokens, group, dim]` of rows, turned and scaled.
    fn by_heads<T: Computed>(&self, x: Rows<'_, T>, group: usize, turns: bool, scale: f32) -> Result<Buffer<T>> {
        let mut heads = self.device.buffer(self.batch.len * x.width)?;
        let half = if turns { self.angles.half } else { 0 };
        self.device.launch(
            named!(T, "to_heads"),
            Shape::of(self.batch.len, 256),
            arguments![
                x.at,
                x.stride as u64,
                &self.angles.cosines,
                &self.angles.sines,
                self.batch.angles(self.turns_as_window),
                scale,
                &mut heads,
                small(self.batch.len),
                small(self.heads.key_value),
                small(group),
                small(self.heads.dim),
                small(half)
            ],
        )?;
        Ok(heads)
    }

    /// Turned back.
    fn put_heads<S: Element, T: Computed>(
        &self,
        kernel: &'static str,
        heads: &Buffer<S>,
        (group, turns, scale): (usize, bool, f32),
        x: RowsMut<'_, T>,
    ) -> Result<()> {
        let half = if turns { self.angles.half } else { 0 };
        self.device.launch(
            kernel,
            Shape::of(self.batch.len, 256),
            arguments![
                heads,
                &self.angles.cosines,
                &self.angles.sines,
                self.batch.angles(self.turns_as_window),
                scale,
                x.at,
                x.stride as u64,
                small(self.batch.len),
                small(self.heads.key_value),
                small(group),
                small(self.heads.dim),
                small(half)
            ],
        )
    }

    /// Of heads that asked, the rows of a block: for each kv head `[queries * group, dim]`.
    fn asking<'v, T: Computed>(&self, heads: View<'v, T>, block: &Block) -> Matrix<'v, T> {
        let (dim, group) = (self.heads.dim, self.group());
        let from = (block.first + block.queries.start) * group * dim;
        Matrix::strided(heads.part(from..), block.queries.len() * group, dim, dim).every(self.batch.len * group * dim)
    }

    /// Of heads that answer, the keys of a block: for each kv head `[keys, dim]`.
    fn answering<'v, T: Computed>(&self, heads: View<'v, T>, block: &Block) -> Matrix<'v, T> {
        let dim = self.heads.dim;
        let from = (block.first + block.keys.start) * dim;
        Matrix::strided(heads.part(from..), block.keys.len(), dim, dim).every(self.batch.len * dim)
    }

    /// The same of values as they lie, the heads of a token side by side.
    fn values<'v, T: Computed>(&self, v: Rows<'v, T>, block: &Block) -> Matrix<'v, T> {
        let dim = self.heads.dim;
        let from = (block.first + block.keys.start) * v.stride;
        Matrix::strided(v.at.part(from..), block.keys.len(), dim, v.stride).every(dim)
    }

    /// Scores and probabilities of a block: for each kv head `[queries * group, keys]`.
    fn probabilities<T: Computed>(
        &self,
        queries: &Buffer<T>,
        keys: &Buffer<T>,
        block: &Block,
        scores: &mut Buffer<f32>,
        p: &mut Buffer<T>,
    ) -> Result<()> {
        let (rows, width) = (block.queries.len() * self.group(), block.keys.len());
        self.device.multiply_batch(
            self.heads.key_value,
            self.asking(queries.view(), block),
            self.answering(keys.view(), block).t(),
            Mix::SET,
            MatrixMut::strided(scores.view_mut(), rows, width, width).every(rows * width),
        )?;
        self.device.launch(
            named!(T, "attend"),
            Shape::of(self.heads.key_value * rows, 128),
            arguments![
                &*scores,
                p,
                small(block.keys.start),
                small(width),
                small(block.queries.start),
                small(block.queries.len()),
                small(self.group()),
                self.scoring.window.map_or(0, |window| u32::try_from(window).unwrap_or(0)),
                self.scoring.softcap.unwrap_or(0.0)
            ],
        )
    }

    /// What every token sees, `[tokens, query_width]`.
    pub(super) fn forward<T: Computed>(&self, of: Parts<'_, T>) -> Result<Buffer<T>> {
        let width = self.heads.query_width();
        let mut y = self.device.buffer(self.batch.len * width)?;
        if !self.batch.rows().is_empty() {
            self.within_rows(of, RowsMut::of(&mut y, width))?;
        }
        if let Some(recalled) = &self.batch.recalled {
            self.remember(recalled, of.k, of.v)?;
            self.look_back(recalled, of, RowsMut::of(&mut y, width))?;
        }
        Ok(y)
    }

    /// What the tokens of whole rows see of each other.
    fn within_rows<T: Computed>(&self, of: Parts<'_, T>, y: RowsMut<'_, T>) -> Result<()> {
        let Heads { key_value, dim, .. } = self.heads;
        let group = self.group();
        let (_, at_once) = at_once(self.heads, self.batch.longest());
        let queries = self.by_heads(of.q, group, true, self.scoring.scale)?;
        let keys = self.by_heads(of.k, 1, true, 1.0)?;
        let mut seen: Buffer<T> = self.device.buffer(queries.len())?;
        let (mut scores, mut p) = (self.device.buffer(at_once)?, self.device.buffer::<T>(at_once)?);
        for block in self.blocks() {
            self.probabilities(&queries, &keys, &block, &mut scores, &mut p)?;
            let (rows, width) = (block.queries.len() * group, block.keys.len());
            let from = (block.first + block.queries.start) * group * dim;
            let into = MatrixMut::strided(seen.part_mut(from..), rows, dim, dim).every(self.batch.len * group * dim);
            self.device.multiply_batch(
                key_value,
                laid(p.view(), rows, width),
                self.values(of.v, &block),
                Mix::SET,
                into,
            )?;
        }
        self.put_heads(named_from_heads::<T>(), &seen, (group, false, 1.0), y)
    }

    /// The gradients of queries, keys and values, from that of what every token sees.
    pub(super) fn backward<T: Computed>(&self, of: Parts<'_, T>, dy: &Buffer<T>) -> Result<Gradients<T>> {
        let Heads { key_value, dim, .. } = self.heads;
        let (device, group, tokens) = (self.device, self.group(), self.batch.len);
        let (_, at_once) = at_once(self.heads, self.batch.longest());
        let queries = self.by_heads(of.q, group, true, self.scoring.scale)?;
        let keys = self.by_heads(of.k, 1, true, 1.0)?;
        let dseen = self.by_heads(Rows::of(dy, self.heads.query_width()), group, false, 1.0)?;
        let mut dqueries: Buffer<T> = device.buffer(queries.len())?;
        let (mut dkeys, mut dvalues) = (device.zeros::<f32>(keys.len())?, device.zeros::<f32>(keys.len())?);
        let (mut scores, mut dp) = (device.buffer(at_once)?, device.buffer::<f32>(at_once)?);
        let mut p: Buffer<T> = device.buffer(at_once)?;
        for block in self.blocks() {
            let (rows, width) = (block.queries.len() * group, block.keys.len());
            let there = (block.first + block.keys.start) * dim..;
            self.probabilities(&queries, &keys, &block, &mut scores, &mut p)?;
            let dseen = self.asking(dseen.view(), &block);
            let dvalues = MatrixMut::strided(dvalues.part_mut(there.clone()), width, dim, dim).every(tokens * dim);
            device.multiply_batch(key_value, laid(p.view(), rows, width).t(), dseen, Mix::ADD, dvalues)?;
            let into_dp = MatrixMut::strided(dp.view_mut(), rows, width, width).every(rows * width);
            device.multiply_batch(key_value, dseen, self.values(of.v, &block).t(), Mix::SET, into_dp)?;
            device.launch(
                named!(T, "attend_backward"),
                Shape::of(key_value * rows, 128),
                arguments![&scores, &dp, &mut p, small(width), self.scoring.softcap.unwrap_or(0.0)],
            )?;
            let dkeys = MatrixMut::strided(dkeys.part_mut(there), width, dim, dim).every(tokens * dim);
            let asked = self.asking(queries.view(), &block);
            device.multiply_batch(key_value, laid(p.view(), rows, width).t(), asked, Mix::ADD, dkeys)?;
            let from = (block.first + block.queries.start) * group * dim;
            let dq = MatrixMut::strided(dqueries.part_mut(from..), rows, dim, dim).every(tokens * group * dim);
            device.multiply_batch(
                key_value,
                laid(p.view(), rows, width),
                self.answering(keys.view(), &block),
                Mix::SET,
                dq,
            )?;
        }
        Ok(Gradients { dqueries, dkeys, dvalues })
    }

    /// Puts the gradient of the queries where it belongs, turned back.
    pub(super) fn put_dq<T: Computed>(&self, gradients: &Gradients<T>, dq: RowsMut<'_, T>) -> Result<()> {
        let how = (self.group(), true, self.scoring.scale);
        self.put_heads(named_from_heads::<T>(), &gradients.dqueries, how, dq)
    }

    /// Puts the gradient of the keys where it belongs, turned back.
    pub(super) fn put_dk<T: Computed>(&self, gradients: &Gradients<T>, dk: RowsMut<'_, T>) -> Result<()> {
        self.put_heads(named_from_sums::<T>(), &gradients.dkeys, (1, true, 1.0), dk)
    }

    /// Puts the gradient of the values where it belongs.
    pub(super) fn put_dv<T: Computed>(&self, gradients: &Gradients<T>, dv: RowsMut<'_, T>) -> Result<()> {
        self.put_heads(named_from_sums::<T>(), &gradients.dvalues, (1, false, 1.0), dv)
    }
}

/// The gradients of heads, as products leave them: `[kv heads, tokens, group, dim]`.
pub(super) struct Gradients<T: Element> {
    dqueries: Buffer<T>,
    /// Blocks add to these, so that they are held in f32.
    dkeys: Buffer<f32>,
    dvalues: Buffer<f32>,
}

/// For each kv head `[rows, width]`, one after the other.
fn laid<T: Computed>(values: View<'_, T>, rows: usize, width: usize) -> Matrix<'_, T> {
    Matrix::strided(values, rows, width, width).every(rows * width)
}

fn named_from_sums<T: Computed>() -> &'static str {
    T::kernel("from_heads_f32_f32", "from_heads_f32_bf16")
}

fn named_from_heads<T: Computed>() -> &'static str {
    T::kernel("from_heads_f32_f32", "from_heads_bf16_bf16")
}
