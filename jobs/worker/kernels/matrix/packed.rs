//! Our own matrix product for CPUs with AVX-512: both operands packed, the right one strip by strip in the cache.
//!
//! The plan is that of GotoBLAS (Goto and van de Geijn 2008), with the roles that suit training: the left operand (a
//! batch's tokens) is packed once for all threads; the right one is cut into strips of 96 columns, two tiles wide, each
//! of which is packed by the thread that is about to use it, a block of its depth at a time, and stays in that core's
//! cache while all rows pass by. Rounding to bf16 and widening from it, or from a file's blocks, happen in packing, so they cost no
//! pass of their own.
//!
//! Every value of the result is summed in the order of depth, whoever computes it: the bits do not depend on the number
//! of threads.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::pack::{Lines, pack};
use super::tile::{self, GROUP, GROUPS, Packed, Place, ROWS};
use super::widen::widened;
use super::{Matrix, MatrixMut, Precision, Threads, Values, Write};
use crate::kernels::simd::{Level, level};

/// Cells of depth that a strip is packed for at a time: 288 KiB. Longer than the first-level cache would like, but each
/// block costs a pass over the result, and that is dearer.
const BLOCK: usize = 768;
/// Groups of columns in a strip. Two tiles meet the rows while these are in the first-level cache, and no blocks of 32
/// columns are cut, which would be widened twice.
const STRIP_GROUPS: usize = 2 * GROUPS;
/// Cells of depth for which the left operand is packed at a time, and groups of its rows: 8 MiB at most, and mostly
/// less, so that it stays in the last cache while strip after strip meets it.
const SPAN: usize = 2048;
const ROW_GROUPS: usize = 64;

/// Whether this CPU has what it takes.
pub(super) fn available(precision: Precision) -> bool {
    level() == Level::Avx512 && (precision != Precision::Bf16 || is_x86_feature_detected!("avx512bf16"))
}

/// The sum of the products of `terms`, written or added to `out`.
pub(super) fn sum(
    out: &MatrixMut<'_>,
    write: Write,
    terms: &[(Matrix<'_>, Matrix<'_>)],
    precision: Precision,
    threads: Threads,
) {
    let rows: Vec<Lines<'_>> = terms.iter().map(|(a, _)| a.lines()).collect();
    let cols: Vec<Lines<'_>> = terms.iter().map(|(_, b)| b.t().lines()).collect();
    let cells: usize = rows.iter().map(|lines| lines.cells(precision)).sum();
    let strips = out.cols.div_ceil(STRIP_GROUPS * GROUP);
    for groups in even_ranges(out.rows.div_ceil(GROUP), ROW_GROUPS) {
        let pieces = row_pieces(groups.clone(), strips, threads);
        for span in even_ranges(cells, SPAN) {
            let write = if span.start == 0 { write } else { Write::Add };
            let left = Left::packed(&rows, precision, groups.clone(), span.clone(), threads);
            let product = SpanOfProduct { left, cols: &cols, precision, span, write, out: out.place() };
            each(strips * pieces.len(), threads, |i| product.strip(i / pieces.len(), pieces[i % pieces.len()].clone()));
        }
    }
}

/// Groups of rows, cut further where there would not be enough to do for all threads.
fn row_pieces(groups: Range<usize>, strips: usize, threads: Threads) -> Vec<Range<usize>> {
    let wanted = match threads {
        Threads::One => 1,
        Threads::All => (4 * rayon::current_num_threads()).div_ceil(strips),
    };
    let most = groups.len().div_ceil(wanted);
    even_ranges(groups.len(), most).map(|piece| groups.start + piece.start..groups.start + piece.end).collect()
}

/// `0..len` in equal ranges of at most `most`.
fn even_ranges(len: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let step = len.div_ceil(len.div_ceil(most).max(1)).max(1);
    (0..len).step_by(step).map(move |from| from..(from + step).min(len))
}

fn each(count: usize, threads: Threads, f: impl Fn(usize) + Send + Sync) {
    match threads {
        Threads::One => (0..count).for_each(f),
        Threads::All => (0..count).into_par_iter().for_each(f),
    }
}

/// Some of the left operand's rows, packed for a span of depth: `[group][cell][16]`.
struct Left {
    values: Box<[MaybeUninit<u32>]>,
    first_group: usize,
    cells: usize,
}

impl Left {
    fn packed(
        terms: &[Lines<'_>],
        precision: Precision,
        groups: Range<usize>,
        span: Range<usize>,
        threads: Threads,
    ) -> Self {
        let len = span.len() * GROUP;
        let mut values = Box::new_uninit_slice(groups.len() * len);
        let parts = Address(values.as_mut_ptr());
        each(groups.len(), threads, |group| {
            // SAFETY: each group is written once, and lies within the buffer.
            let into = unsafe { std::slice::from_raw_parts_mut(parts.get().add(group * len), len) };
            for (lines, cells, at) in pieces_of(terms, precision, span.clone()) {
                let into = &mut into[at * GROUP..(at + cells.len()) * GROUP];
                pack(lines, precision, groups.start + group, cells, into);
            }
        });
        Self { values, first_group: groups.start, cells: span.len() }
    }

    /// Eight rows from `row` on, at a cell.
    fn at(&self, row: usize, cell: usize) -> *const u32 {
        let group = row / GROUP - self.first_group;
        self.values[(group * self.cells + cell) * GROUP + row % GROUP..].as_ptr().cast()
    }
}

/// A pointer that several threads write through, each to a part of its own.
#[derive(Clone, Copy)]
struct Address<T>(*mut T);

// SAFETY: whoever writes through it takes care to write to its own part.
unsafe impl<T> Send for Address<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Address<T> {}

impl<T> Address<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

/// The terms that some cells belong to, whose depths follow each other: each with the cells in its own depth, and where
/// the first of them lies among all.
fn pieces_of<'a>(
    terms: &[Lines<'a>],
    precision: Precision,
    cells: Range<usize>,
) -> impl Iterator<Item = (Lines<'a>, Range<usize>, usize)> {
    let mut end = 0;
    terms.iter().filter_map(move |&lines| {
        let start = end;
        end += lines.cells(precision);
        let (from, to) = (cells.start.max(start), cells.end.min(end));
        (from < to).then(|| (lines, from - start..to - start, from - cells.start))
    })
}

/// Packs cells of the terms' depths for the groups of a strip: `[group][cell][16]`. Blocks become numbers on the way, in
/// `room`.
fn pack_strip(
    terms: &[Lines<'_>],
    precision: Precision,
    groups: Range<usize>,
    cells: Range<usize>,
    into: &mut [MaybeUninit<u32>],
    room: &mut Vec<f32>,
) {
    let len = cells.len() * GROUP;
    for (lines, cells, at) in pieces_of(terms, precision, cells) {
        let place = at * GROUP..(at + cells.len()) * GROUP;
        let (lines, first, cells) = match lines.values {
            Values::Blocks(blocks) => (widened(blocks, lines, precision, &groups, &cells, room), 0, 0..cells.len()),
            _ => (lines, groups.start, cells),
        };
        for (group, into) in into.chunks_exact_mut(len).enumerate() {
            pack(lines, precision, first + group, cells.clone(), &mut into[place.clone()]);
        }
    }
}

thread_local! {
    /// A strip, packed, and room for what its blocks are widened to. Every thread keeps its own for the next product:
    /// there are a thousand strips in a training step.
    static STRIP: RefCell<(Vec<MaybeUninit<u32>>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// A product over a span of its depth.
struct SpanOfProduct<'a> {
    left: Left,
    cols: &'a [Lines<'a>],
    precision: Precision,
    span: Range<usize>,
    write: Write,
    out: OutPlace,
}

/// The result: its values, and its shape.
#[derive(Clone, Copy)]
pub(super) struct OutPlace {
    values: Address<f32>,
    rows: usize,
    cols: usize,
    row_step: usize,
}

impl MatrixMut<'_> {
    fn place(&self) -> OutPlace {
        OutPlace { values: Address(self.values), rows: self.rows, cols: self.cols, row_step: self.row_step }
    }
}

impl SpanOfProduct<'_> {
    /// One strip of columns, for some groups of rows.
    fn strip(&self, strip: usize, row_groups: Range<usize>) {
        let rows = row_groups.start * GROUP..(row_groups.end * GROUP).min(self.out.rows);
        let first = strip * STRIP_GROUPS;
        let groups = (self.out.cols.div_ceil(GROUP) - first).min(STRIP_GROUPS);
        STRIP.with_borrow_mut(|(packed, room)| {
            packed.resize(packed.len().max(groups * BLOCK.min(self.span.len()) * GROUP), MaybeUninit::uninit());
            for block in even_ranges(self.span.len(), BLOCK) {
                let len = block.len() * GROUP;
                let cells = self.span.start + block.start..self.span.start + block.end;
                let into = &mut packed[..groups * len];
                pack_strip(self.cols, self.precision, first..first + groups, cells, into, room);
                for row in rows.clone().step_by(ROWS) {
                    for (tile, cols) in packed[..groups * len].chunks(GROUPS * len).enumerate() {
                        let packed = Packed {
                            rows: self.left.at(row, block.start),
                            cols: cols.as_ptr().cast(),
                            group_step: len,
                            cells: block.len(),
                        };
                        let column = (first + tile * GROUPS) * GROUP;
                        let place = Place {
                            first: self.out.values.get().wrapping_add(row * self.out.row_step + column),
                            row_step: self.out.row_step,
                            rows: (rows.end - row).min(ROWS),
                            cols: self.out.cols - column,
                            add: block.start > 0 || self.write == Write::Add,
                        };
                        // SAFETY: `available` has found the instructions; both operands are packed for these cells; no
                        // two strips share a value of the result, whose bounds `MatrixMut` has checked.
                        unsafe {
                            match (self.precision, cols.len() / len) {
                                (Precision::F32 | Precision::Int8, 1) => tile::single::<1>(packed, place),
                                (Precision::F32 | Precision::Int8, 2) => tile::single::<2>(packed, place),
                                (Precision::F32 | Precision::Int8, _) => tile::single::<3>(packed, place),
                                (Precision::Bf16, 1) => tile::pairs::<1>(packed, place),
                                (Precision::Bf16, 2) => tile::pairs::<2>(packed, place),
                                (Precision::Bf16, _) => tile::pairs::<3>(packed, place),
                            }
                        }
                    }
                }
            }
        });
    }
}
