//! A strip of a matrix in blocks, widened for packing.
//!
//! What a strip needs of the matrix for one block of depth fits the core's own cache: the f32 never see the memory that
//! the blocks were meant to save.

use std::ops::Range;

use super::pack::{Lines, values_in_cell};
use super::tile::GROUP;
use super::{Precision, Values};
use crate::kernels::quantized::Blocks;

/// The lines of some groups of `lines`, which are the rows or the columns of `blocks`, for some cells of their depth:
/// in f32, in `room`.
pub(super) fn widened<'r>(
    blocks: Blocks<'_>,
    lines: Lines<'_>,
    precision: Precision,
    groups: &Range<usize>,
    cells: &Range<usize>,
    room: &'r mut Vec<f32>,
) -> Lines<'r> {
    let wide = values_in_cell(precision);
    let some_lines = groups.start * GROUP..(groups.end * GROUP).min(lines.lines);
    let depths = cells.start * wide..(cells.end * wide).min(lines.depth);
    let by_rows = lines.depth_step == 1;
    let (rows, columns, width) =
        if by_rows { (&some_lines, &depths, lines.line_step) } else { (&depths, &some_lines, lines.depth_step) };
    // Blocks that the range cuts are widened as a whole.
    let len = blocks.kind.block_len();
    let whole = columns.start / len * len..columns.end.next_multiple_of(len);
    let needed = rows.len() * whole.len();
    room.resize(room.len().max(needed), 0.0);
    blocks.widen(rows.clone(), whole.clone(), width, &mut room[..needed]);
    let (line_step, depth_step) = if by_rows { (whole.len(), 1) } else { (1, whole.len()) };
    let values = Values::F32(&room[columns.start - whole.start..needed]);
    Lines { values, lines: some_lines.len(), depth: depths.len(), line_step, depth_step }
}
