//! Buffers for results: not cleared before they are written, and written by several threads at once.

use std::marker::PhantomData;
use std::ops::Range;

use memmap2::MmapMut;
use rayon::prelude::*;

/// A vector that a kernel is about to fill. Clearing it first would cost a memory pass for every result, which is
/// about a tenth of a training step.
pub(super) struct Fresh {
    values: Vec<f32>,
    len: usize,
}

impl Fresh {
    pub(super) fn new(len: usize) -> Self {
        Self { values: Vec::with_capacity(len), len }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.values.as_mut_ptr()
    }

    pub(super) fn parts(&mut self) -> Parts<'_> {
        Parts { values: self.values.as_mut_ptr(), len: self.len, lent: PhantomData }
    }

    /// # Safety
    /// Every value has been written.
    pub(super) unsafe fn filled(mut self) -> Vec<f32> {
        // SAFETY: the capacity is `len`, and the caller vouches for the values.
        unsafe { self.values.set_len(self.len) };
        self.values
    }
}

/// Zeros in memory of their own, which goes back to the system as a whole. A block as large as a batch's logits finds no room
/// between what layers have left in the heap, so that the heap would grow by it, and would do so once more with the next batch
/// that is a little larger.
pub(super) enum Apart {
    Mapped(MmapMut),
    /// Too few to be worth a mapping, or where the system gives none.
    InHeap(Vec<f32>),
}

/// Bytes from which on zeros are mapped: the system clears a page for about what it costs to clear it here.
const MAPPED_BYTES: usize = 1 << 20;

impl Apart {
    pub(super) fn zeros(len: usize) -> Self {
        let bytes = len * size_of::<f32>();
        let mapped = if bytes < MAPPED_BYTES { None } else { MmapMut::map_anon(bytes).ok() };
        mapped.map_or_else(|| Self::InHeap(vec![0.0; len]), Self::Mapped)
    }

    pub(super) fn values(&mut self) -> &mut [f32] {
        match self {
            // SAFETY: a mapping begins with a page, so that all of it is aligned, and every pattern of bits is an f32.
            Self::Mapped(bytes) => unsafe { bytes.align_to_mut().1 },
            Self::InHeap(values) => values,
        }
    }
}

/// A buffer lent to several threads, each of which writes to parts of its own.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    values: *mut f32,
    len: usize,
    lent: PhantomData<&'a mut [f32]>,
}

// SAFETY: `part` is the only way in, and its contract forbids two threads the same values.
unsafe impl Send for Parts<'_> {}
// SAFETY: as above.
unsafe impl Sync for Parts<'_> {}

impl<'a> Parts<'a> {
    pub(super) fn of(values: &'a mut [f32]) -> Self {
        Self { values: values.as_mut_ptr(), len: values.len(), lent: PhantomData }
    }

    /// # Safety
    /// No value of the range is lent elsewhere while the part is in use, and in a fresh buffer none is read before it
    /// is written.
    pub(super) unsafe fn part(self, range: Range<usize>) -> &'a mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {} values", self.len);
        // SAFETY: within the buffer, and not lent elsewhere by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(range.start), range.len()) }
    }

    /// Where a strided part begins whose last value is `end - 1`, for [`super::matrix::MatrixMut::strided`].
    pub(super) fn pointer(self, start: usize, end: usize) -> *mut f32 {
        assert!(start <= end && end <= self.len, "part {start}..{end} of {} values", self.len);
        // SAFETY: within the buffer.
        unsafe { self.values.add(start) }
    }
}

/// Calls `f` on ranges that together are `0..rows`, on all threads. The cut depends on the number of threads only,
/// and no two ranges share a row; so what is computed row by row does not depend on who computes it.
pub(super) fn by_rows(rows: usize, f: impl Fn(Range<usize>) + Sync) {
    let threads = rayon::current_num_threads();
    if threads <= 1 || rows < 8 {
        return f(0..rows);
    }
    // More pieces than threads, so that a thread that was interrupted does not keep the others waiting.
    let piece = rows.div_ceil(threads * 4);
    (0..rows.div_ceil(piece)).into_par_iter().for_each(|i| f(i * piece..((i + 1) * piece).min(rows)));
}

/// Rows that are summed up at a time.
const SUMMED: usize = 32;

/// Adds to `sums` what `f` adds up for each range of rows. Which rows are summed up together does not depend on the
/// number of threads, so neither does the result.
pub(super) fn sum_over_rows(rows: usize, sums: &mut [f32], f: impl Fn(Range<usize>, &mut [f32]) + Sync) {
    let (blocks, width) = (rows.div_ceil(SUMMED), sums.len());
    let mut partial = vec![0.0; blocks * width];
    let parts = Parts::of(&mut partial);
    by_rows(blocks, |blocks| {
        for block in blocks {
            // SAFETY: `by_rows` gives no block out twice.
            let sums = unsafe { parts.part(block * width..(block + 1) * width) };
            f(block * SUMMED..((block + 1) * SUMMED).min(rows), sums);
        }
    });
    for partial in partial.chunks_exact(width) {
        sums.iter_mut().zip(partial).for_each(|(sum, partial)| *sum += partial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once() {
        for rows in [0, 1, 7, 8, 9, 100, 1001] {
            let mut seen = vec![0.0; rows];
            let parts = Parts::of(&mut seen);
            by_rows(rows, |range| {
                // SAFETY: the ranges do not overlap.
                unsafe { parts.part(range) }.iter_mut().for_each(|seen| *seen += 1.0);
            });
            assert!(seen.iter().all(|&seen| seen == 1.0));
        }
    }

    #[test]
    fn zeros_are_there_wherever_they_lie() {
        for len in [0, 7, MAPPED_BYTES / 4, MAPPED_BYTES / 4 + 5] {
            let mut zeros = Apart::zeros(len);
            assert_eq!(matches!(zeros, Apart::Mapped(_)), len >= MAPPED_BYTES / 4);
            assert!(zeros.values().len() == len && zeros.values().iter().all(|value| *value == 0.0));
            zeros.values().fill(1.0);
            assert_eq!(zeros.values().iter().sum::<f32>(), len as f32);
        }
    }

    #[test]
    fn sums_do_not_depend_on_the_number_of_threads() {
        let x: Vec<f32> = (0..1000).map(|i| 1.0 / (i as f32 + 1.0)).collect();
        let sum = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut sums = [1.0];
            pool.install(|| sum_over_rows(1000, &mut sums, |rows, sums| sums[0] += x[rows].iter().sum::<f32>()));
            sums[0].to_bits()
        };
        assert_eq!(sum(1), sum(3));
        assert!((f32::from_bits(sum(2)) - 1.0 - x.iter().sum::<f32>()).abs() < 1e-4);
    }
}
