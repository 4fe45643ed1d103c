//! Matrix products over slices: our own packed ones where the CPU has AVX-512, the `gemm` crate's elsewhere.

#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
mod packed;
#[cfg(target_arch = "x86_64")]
mod tile;
#[cfg(target_arch = "x86_64")]
mod widen;

use std::borrow::Cow;
use std::marker::PhantomData;

use half::bf16;

use super::memory::{Fresh, Parts};
use super::quantized::Blocks;

/// What the operands of a product are rounded to; sums are always f32.
///
/// In bf16 the CPU's own instruction is used where there is one. It adds the products of two neighbours at a time and
/// takes denormal numbers for zero, so results differ from those of rounded operands multiplied in f32 by a few units
/// in the last place of f32, which is far less than the rounding of the operands itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    F32,
    /// Eight bits of mantissa, as bf16 autocast does it.
    Bf16,
    /// Activations rounded to eight bits, 32 values at a time, and multiplied with the weight's own codes: for scoring
    /// and answering with a quantized weight, as llama.cpp does it. Any other product is f32.
    Int8,
}

/// Numbers in the form that they are held in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Values<'a> {
    F32(&'a [f32]),
    /// Packed as they are, without a detour over f32.
    Bf16(&'a [bf16]),
    /// Of the right operand where [`takes_blocks`] says so.
    Blocks(Blocks<'a>),
}

impl Values<'_> {
    fn len(self) -> usize {
        match self {
            Values::F32(values) => values.len(),
            Values::Bf16(values) => values.len(),
            Values::Blocks(blocks) => blocks.len(),
        }
    }
}

impl<'a> Values<'a> {
    fn widened(self) -> Cow<'a, [f32]> {
        match self {
            Values::F32(values) => values.into(),
            Values::Bf16(values) => values.iter().map(|value| value.to_f32()).collect(),
            Values::Blocks(_) => unreachable!("only packed products take blocks"),
        }
    }

    /// As a CPU without bf16 instructions needs them: f32 that a bf16 could hold.
    fn rounded(self, precision: Precision) -> Cow<'a, [f32]> {
        match (self, precision) {
            (Values::F32(values), Precision::Bf16) => {
                values.iter().map(|&value| bf16::from_f32(value).to_f32()).collect()
            }
            (values, _) => values.widened(),
        }
    }
}

/// A matrix in somebody else's memory.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: Values<'a>,
    rows: usize,
    cols: usize,
    row_step: usize,
    col_step: usize,
}

impl<'a> Matrix<'a> {
    /// Row after row without gaps.
    pub(super) fn new(values: &'a [f32], cols: usize) -> Self {
        Self::of(Values::F32(values), cols)
    }

    /// Rows of `cols` values, each `row_step` values after the one before.
    pub(super) fn strided(values: &'a [f32], rows: usize, cols: usize, row_step: usize) -> Self {
        assert!(rows == 0 || (rows - 1) * row_step + cols <= values.len(), "{rows} x {cols} do not fit");
        Self { values: Values::F32(values), rows, cols, row_step, col_step: 1 }
    }

    /// Row after row without gaps, in any form.
    pub(super) fn of(values: Values<'a>, cols: usize) -> Self {
        assert!(values.len().is_multiple_of(cols), "{} values in rows of {cols}", values.len());
        Self { values, rows: values.len() / cols, cols, row_step: cols, col_step: 1 }
    }

    /// The transpose; nothing is moved.
    pub(super) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_step: self.col_step, col_step: self.row_step, ..self }
    }

    #[cfg(target_arch = "x86_64")]
    fn lines(self) -> pack::Lines<'a> {
        let Self { values, rows, cols, row_step, col_step } = self;
        pack::Lines { values, lines: rows, depth: cols, line_step: row_step, depth_step: col_step }
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

    /// The same matrix, lent on.
    fn again(&mut self) -> MatrixMut<'_> {
        MatrixMut { lent: PhantomData, ..*self }
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

/// `out = scale * a * b`, or `out += scale * a * b`, in f32.
pub(super) fn product(out: MatrixMut<'_>, write: Write, scale: f32, a: Matrix<'_>, b: Matrix<'_>, threads: Threads) {
    check(&out, write, a, b);
    let (a_values, b_values) = (a.values.widened(), b.values.widened());
    let parallelism = match (threads, rayon::current_num_threads()) {
        (Threads::One, _) | (_, 0 | 1) => gemm::Parallelism::None,
        (Threads::All, count) => gemm::Parallelism::Rayon(count),
    };
    let step = |step: usize| isize::try_from(step).expect("a slice is at most isize::MAX bytes long");
    // SAFETY: the constructors have checked that every index lies within its buffer, `out` is exclusively ours for the
    // time of the call, and it is not read when it is replaced.
    unsafe {
        gemm::gemm(
            out.rows,
            out.cols,
            a.cols,
            out.values,
            1,
            step(out.row_step),
            write == Write::Add,
            a_values.as_ptr(),
            step(a.col_step),
            step(a.row_step),
            b_values.as_ptr(),
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

/// Whether the right operand of a [`sum`] may be in blocks: they are widened where they are packed. Blocks that a strip
/// does not take in whole are widened for each strip anew.
pub(super) fn takes_blocks(precision: Precision) -> bool {
    #[cfg(target_arch = "x86_64")]
    return packed::available(precision);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = precision;
        false
    }
}

fn check(out: &MatrixMut<'_>, write: Write, a: Matrix<'_>, b: Matrix<'_>) {
    let (m, n, k) = (out.rows, out.cols, a.cols);
    assert!(a.rows == m && b.cols == n && b.rows == k, "{m} x {n} = {} x {k} * {} x {}", a.rows, b.rows, b.cols);
    assert!(write == Write::Replace || !out.fresh, "there is nothing to add to in a fresh buffer");
}

/// A product, or the sum of several, that is made in one go: `out = a * b + ...`, or `out += a * b + ...`.
pub(super) fn sum(mut out: MatrixMut<'_>, write: Write, terms: &[(Matrix<'_>, Matrix<'_>)], precision: Precision) {
    terms.iter().for_each(|&(a, b)| check(&out, write, a, b));
    #[cfg(target_arch = "x86_64")]
    if packed::available(precision) && out.rows * out.cols * terms.iter().map(|(a, _)| a.cols).sum::<usize>() > 0 {
        return packed::sum(&out, write, terms, precision, Threads::All);
    }
    let mut write = write;
    for (a, b) in terms {
        let (a_values, b_values) = (a.values.rounded(precision), b.values.rounded(precision));
        let (a, b) = (Matrix { values: Values::F32(&a_values), ..*a }, Matrix { values: Values::F32(&b_values), ..*b });
        product(out.again(), write, 1.0, a, b, Threads::All);
        out.fresh = false;
        write = Write::Add;
    }
}

/// [`sum`] in memory of its own.
pub(super) fn summed(terms: &[(Matrix<'_>, Matrix<'_>)], precision: Precision) -> Vec<f32> {
    let (rows, cols) = (terms[0].0.rows, terms[0].1.cols);
    let mut out = Fresh::new(rows * cols);
    sum(MatrixMut::fresh(&mut out, cols), Write::Replace, terms, precision);
    // SAFETY: the first product has written every value.
    unsafe { out.filled() }
}

/// `a * b` in memory of its own.
pub(super) fn multiplied(a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    summed(&[(a, b)], Precision::F32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::testing::random;

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

    fn values(name: &str, len: usize) -> Vec<f32> {
        random(name, len).to_vec1().unwrap()
    }

    /// Row after row; transposed, the same matrix column after column.
    fn laid_out(values: Values<'_>, rows: usize, cols: usize, transposed: bool) -> Matrix<'_> {
        if transposed { Matrix::of(values, rows).t() } else { Matrix::of(values, cols) }
    }

    fn at(matrix: Matrix<'_>, row: usize, col: usize) -> f32 {
        let index = row * matrix.row_step + col * matrix.col_step;
        match matrix.values {
            Values::F32(values) => values[index],
            Values::Bf16(values) => values[index].to_f32(),
            Values::Blocks(_) => unreachable!("none are laid out here"),
        }
    }

    /// The sum of the products in f64, of operands rounded as they should be.
    fn slow_sum(
        start: f32,
        (row, col): (usize, usize),
        terms: &[(Matrix<'_>, Matrix<'_>)],
        precision: Precision,
    ) -> f64 {
        let round = |value: f32| match precision {
            Precision::F32 | Precision::Int8 => f64::from(value),
            Precision::Bf16 => bf16::from_f32(value).to_f64(),
        };
        let inner = |&(a, b): &(Matrix<'_>, Matrix<'_>)| -> f64 {
            (0..a.cols).map(|k| round(at(a, row, k)) * round(at(b, k, col))).sum()
        };
        f64::from(start) + terms.iter().map(inner).sum::<f64>()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn sums_of_products_are_those_of_the_slow_reference(
            (m, n, k, more) in (1..70usize, 1..120usize, 1..500usize, 0..20usize),
            (a_turned, b_turned) in any::<(bool, bool)>(),
            (half, add, narrow) in any::<(bool, bool, bool)>(),
        ) {
            let precision = if narrow { Precision::Bf16 } else { Precision::F32 };
            let (a, b) = (values("a", m * k), values("b", k * n));
            let (c, d) = (values("c", m * more), values("d", more * n));
            let b_half: Vec<bf16> = b.iter().map(|&value| bf16::from_f32(value)).collect();
            let b = if half { Values::Bf16(&b_half) } else { Values::F32(&b) };
            let mut terms = vec![(laid_out(Values::F32(&a), m, k, a_turned), laid_out(b, k, n, b_turned))];
            if more > 0 {
                terms.push((Matrix::new(&c, more), Matrix::new(&d, more).t().t()));
                terms[1].1 = laid_out(Values::F32(&d), more, n, b_turned);
            }
            let start = values("out", m * n);
            let mut out = start.clone();
            let write = if add { Write::Add } else { Write::Replace };
            sum(MatrixMut::new(&mut out, n), write, &terms, precision);
            for row in 0..m {
                for col in 0..n {
                    let start = if add { start[row * n + col] } else { 0.0 };
                    let want = slow_sum(start, (row, col), &terms, precision);
                    let got = f64::from(out[row * n + col]);
                    prop_assert!((got - want).abs() < 2e-5 * (k as f64).sqrt(), "{row}, {col}: {got}, not {want}");
                }
            }
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (m, n, k) = (200, 100, 5000);
        let (a, b) = (values("a", m * k), values("b", k * n));
        for precision in [Precision::F32, Precision::Bf16] {
            let with = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| summed(&[(Matrix::new(&a, k), Matrix::new(&b, n))], precision))
            };
            assert_eq!(with(1), with(3));
        }
    }
}
