//! Matrix products over slices: the one door to the `gemm` crate.

use std::marker::PhantomData;

use super::memory::{Fresh, Parts};

/// A matrix in somebody else's memory.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    row_step: usize,
    col_step: usize,
}

impl<'a> Matrix<'a> {
    /// Row after row without gaps.
    pub(super) fn new(values: &'a [f32], cols: usize) -> Self {
        assert!(values.len().is_multiple_of(cols), "{} values in rows of {cols}", values.len());
        Self::strided(values, values.len() / cols, cols, cols)
    }

    /// Rows of `cols` values, each `row_step` values after the one before.
    pub(super) fn strided(values: &'a [f32], rows: usize, cols: usize, row_step: usize) -> Self {
        assert!(rows == 0 || (rows - 1) * row_step + cols <= values.len(), "{rows} x {cols} do not fit");
        Self { values, rows, cols, row_step, col_step: 1 }
    }

    /// The transpose; nothing is moved.
    pub(super) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_step: self.col_step, col_step: self.row_step, ..self }
    }
}

/// A matrix to be written, row after row.
pub(super) struct MatrixMut<'a> {
    values: *mut f32,
    rows: usize,
    cols: usize,
    row_step: usize,
    fresh: bool,
    lent: PhantomData<&'a mut [f32]>,
}

impl<'a> MatrixMut<'a> {
    pub(super) fn new(values: &'a mut [f32], cols: usize) -> Self {
        assert!(values.len().is_multiple_of(cols), "{} values in rows of {cols}", values.len());
        let rows = values.len() / cols;
        Self { values: values.as_mut_ptr(), rows, cols, row_step: cols, fresh: false, lent: PhantomData }
    }

    /// The whole of a buffer that nothing has been written to yet.
    pub(super) fn fresh(buffer: &'a mut Fresh, cols: usize) -> Self {
        assert!(buffer.len().is_multiple_of(cols), "{} values in rows of {cols}", buffer.len());
        let rows = buffer.len() / cols;
        Self { values: buffer.as_mut_ptr(), rows, cols, row_step: cols, fresh: true, lent: PhantomData }
    }

    /// Rows of `cols` values from `start` on, each `row_step` values after the one before.
    ///
    /// # Safety
    /// None of these values is lent elsewhere while the matrix is in use.
    pub(super) unsafe fn strided(
        parts: Parts<'a>,
        start: usize,
        (rows, cols): (usize, usize),
        row_step: usize,
    ) -> Self {
        let end = start + if rows == 0 { 0 } else { (rows - 1) * row_step + cols };
        Self { values: parts.pointer(start, end), rows, cols, row_step, fresh: true, lent: PhantomData }
    }

    /// The same where every value has been written before, so that it may be added to.
    ///
    /// # Safety
    /// As for [`Self::strided`], and the values are there.
    pub(super) unsafe fn strided_filled(
        parts: Parts<'a>,
        start: usize,
        shape: (usize, usize),
        row_step: usize,
    ) -> Self {
        // SAFETY: by this function's contract.
        Self { fresh: false, ..unsafe { Self::strided(parts, start, shape, row_step) } }
    }
}

/// What happens to the values that are there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    Replace,
    Add,
}

/// Who computes a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// The caller alone, because it is one of many already.
    One,
    All,
}

/// `out = scale * a * b`, or `out += scale * a * b`.
pub(super) fn product(out: MatrixMut<'_>, write: Write, scale: f32, a: Matrix<'_>, b: Matrix<'_>, threads: Threads) {
    let (m, n, k) = (out.rows, out.cols, a.cols);
    assert!(a.rows == m && b.cols == n && b.rows == k, "{m} x {n} = {} x {k} * {} x {}", a.rows, b.rows, b.cols);
    assert!(write == Write::Replace || !out.fresh, "there is nothing to add to in a fresh buffer");
    let parallelism = match (threads, rayon::current_num_threads()) {
        (Threads::One, _) | (_, 0 | 1) => gemm::Parallelism::None,
        (Threads::All, count) => gemm::Parallelism::Rayon(count),
    };
    let step = |step: usize| isize::try_from(step).expect("a slice is at most isize::MAX bytes long");
    // SAFETY: the constructors have checked that every index lies within its buffer, `out` is exclusively ours for the
    // time of the call, and it is not read when it is replaced.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.values,
            1,
            step(out.row_step),
            write == Write::Add,
            a.values.as_ptr(),
            step(a.col_step),
            step(a.row_step),
            b.values.as_ptr(),
            step(b.col_step),
            step(b.row_step),
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `a * b` in memory of its own.
pub(super) fn multiplied(a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    scaled(1.0, a, b)
}

/// `scale * a * b` in memory of its own.
pub(super) fn scaled(scale: f32, a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    let mut out = Fresh::new(a.rows * b.cols);
    product(MatrixMut::fresh(&mut out, b.cols), Write::Replace, scale, a, b, Threads::All);
    // SAFETY: the product has written every value.
    unsafe { out.filled() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_the_sum_over_the_inner_index() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 2.0, 1.0, 0.0, 3.0]);
        let (a, b) = (Matrix::new(&a, 3), Matrix::new(&b, 2));
        assert_eq!(multiplied(a, b), [5.0, 11.0, 14.0, 23.0]);
        assert_eq!(multiplied(b.t(), a.t()), [5.0, 14.0, 11.0, 23.0]);
        let mut sum = vec![1.0; 4];
        product(MatrixMut::new(&mut sum, 2), Write::Add, 2.0, a, b, Threads::One);
        assert_eq!(sum, [11.0, 23.0, 29.0, 47.0]);
    }
}
