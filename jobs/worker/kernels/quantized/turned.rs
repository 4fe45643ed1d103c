//! Quantized rows in the order in which integer products read them: sixteen at a time, turned over.
//!
//! The bytes are those of the file's blocks, word by word: first word 0 of sixteen rows, then word 1, and so on. Where a
//! block is no whole number of words, its scale (an f16, its first or last two bytes) lies apart. So a product reads
//! memory from one end to the other, and a register is filled by one load. llama.cpp does the like with some of its
//! formats ("repacking").

use super::lanes::{Halves, ROWS, Words};
use crate::blocks::BlockKind;

/// A matrix `[out, width]`, turned. The last rows of the last sixteen may be nothing.
#[derive(Debug)]
pub struct Turned {
    layout: Layout,
    /// Blocks of a row.
    blocks: usize,
    words: Vec<Words>,
    halves: Vec<Halves>,
}

/// How the bytes of a block are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    bytes: usize,
    /// Where the words begin.
    words_at: usize,
    /// Where an f16 lies that belongs to none of them.
    half_at: Option<usize>,
}

impl Layout {
    fn of(kind: BlockKind) -> Self {
        let (words_at, half_at) = match kind {
            BlockKind::Q4_0 | BlockKind::Q5_0 | BlockKind::Q8_0 => (2, Some(0)),
            BlockKind::Q3K => (0, Some(108)),
            BlockKind::Q6K => (0, Some(208)),
            _ => (0, None),
        };
        Self { bytes: kind.block_bytes(), words_at, half_at }
    }

    fn words(self) -> usize {
        self.bytes / 4
    }
}

/// A block of each of sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) words: &'a [Words],
    /// The scales, for a kind that has them apart.
    pub(super) half: Option<&'a Halves>,
}

impl Turned {
    /// Turns rows of `row_bytes` bytes. On the calling thread: others may wait for the result, and a thread that helps
    /// here could be made to wait for itself.
    pub(super) fn new(kind: BlockKind, bytes: &[u8], row_bytes: usize) -> Self {
        let layout = Layout::of(kind);
        let (tiles, blocks) = ((bytes.len() / row_bytes).div_ceil(ROWS), row_bytes / layout.bytes);
        let of_tile = blocks * layout.words();
        let mut words = vec![Words::ZERO; tiles * of_tile];
        for (words, rows) in words.chunks_exact_mut(of_tile).zip(bytes.chunks(ROWS * row_bytes)) {
            for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
                let blocks = bytes.chunks_exact(layout.bytes).map(|block| &block[layout.words_at..]);
                let values = blocks.flat_map(|block| &block.as_chunks().0[..layout.words()]);
                words.iter_mut().zip(values).for_each(|(words, &word)| words.0[row] = u32::from_le_bytes(word));
            }
        }
        let mut halves = vec![Halves::ZERO; layout.half_at.map_or(0, |_| tiles * blocks)];
        if let Some(at) = layout.half_at {
            for (halves, rows) in halves.chunks_exact_mut(blocks).zip(bytes.chunks(ROWS * row_bytes)) {
                for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
                    for (halves, block) in halves.iter_mut().zip(bytes.chunks_exact(layout.bytes)) {
                        halves.0[row] = u16::from_le_bytes([block[at], block[at + 1]]);
                    }
                }
            }
        }
        Self { layout, blocks, words, halves }
    }

    /// The blocks of sixteen rows, from the first to the last.
    #[inline(always)]
    pub(super) fn tile(&self, tile: usize) -> impl Iterator<Item = Block<'_>> {
        let of_block = self.layout.words();
        let here = tile * self.blocks..(tile + 1) * self.blocks;
        let words = &self.words[here.start * of_block..here.end * of_block];
        let halves = if self.layout.half_at.is_some() { &self.halves[here] } else { &[] };
        words.chunks_exact(of_block).enumerate().map(move |(block, words)| Block { words, half: halves.get(block) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{KINDS, some_blocks};
    use super::*;

    #[test]
    fn every_byte_is_found_again() {
        for kind in KINDS {
            let (out, width) = (21, 512);
            let bytes = some_blocks(kind, out, width);
            let row_bytes = kind.row_bytes(width).unwrap();
            let turned = Turned::new(kind, &bytes, row_bytes);
            let layout = Layout::of(kind);
            for (row, bytes) in bytes.chunks(row_bytes).enumerate() {
                let again: Vec<u8> = turned
                    .tile(row / ROWS)
                    .flat_map(|block| {
                        let words = block.words.iter().flat_map(|words| words.0[row % ROWS].to_le_bytes()).collect();
                        let half = block.half.map(|half| half.0[row % ROWS].to_le_bytes().to_vec()).unwrap_or_default();
                        if layout.words_at > 0 { [half, words].concat() } else { [words, half].concat() }
                    })
                    .collect();
                assert!(again == bytes, "{kind}, row {row}");
            }
        }
    }
}
