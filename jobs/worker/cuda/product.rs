//! Products of matrices, by cuBLAS: row after row as everywhere in the worker, sums always f32.

use std::ffi::c_void;

use cudarc::cublas::result as cublas;
use cudarc::cublas::sys::{
    cublasComputeType_t as Compute, cublasGemmAlgo_t as Algorithm, cublasOperation_t as Operation, cudaDataType as Type,
};
use half::bf16;

use super::device::Device;
use super::error::{OrSay, Result};
use super::memory::{Element, View, ViewMut};

/// Numbers that can be multiplied.
pub trait Factor: Element {
    #[doc(hidden)]
    const TYPE: Type;
}

impl Factor for f32 {
    const TYPE: Type = Type::CUDA_R_32F;
}

impl Factor for bf16 {
    const TYPE: Type = Type::CUDA_R_16BF;
}

/// Numbers that a product of `T`s can be written as.
pub trait Product<T: Factor>: Factor {}
impl<T: Factor> Product<T> for f32 {}
impl Product<bf16> for bf16 {}

/// How matrices lie: `rows` rows of `cols` values, each `row_step` values after the one before; and of a batch, each
/// matrix `batch_step` values after the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    rows: usize,
    cols: usize,
    row_step: usize,
    batch_step: usize,
}

impl Layout {
    fn packed(len: usize, cols: usize) -> Self {
        assert!(cols > 0 && len.is_multiple_of(cols), "{len} values in rows of {cols}");
        Self { rows: len / cols, cols, row_step: cols, batch_step: 0 }
    }

    /// Values from the first to the last of a batch.
    fn reach(self, batch: usize) -> usize {
        if self.rows == 0 || self.cols == 0 || batch == 0 {
            return 0;
        }
        (batch - 1) * self.batch_step + (self.rows - 1) * self.row_step + self.cols
    }

    fn check(self, len: usize, batch: usize) {
        assert!(self.row_step >= self.cols, "rows of {} values, {} apart", self.cols, self.row_step);
        assert!(self.reach(batch) <= len, "{batch} matrices laid as {self:?} in {len} values");
    }
}

/// A matrix to be multiplied, or a batch of them.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T: Factor> {
    values: View<'a, T>,
    layout: Layout,
    turned: bool,
}

impl<'a, T: Factor> Matrix<'a, T> {
    /// Row after row without gaps.
    #[must_use]
    pub fn new(values: View<'a, T>, cols: usize) -> Self {
        Self { values, layout: Layout::packed(values.len(), cols), turned: false }
    }

    /// `rows` rows of `cols` values, each `row_step` values after the one before.
    #[must_use]
    pub fn strided(values: View<'a, T>, rows: usize, cols: usize, row_step: usize) -> Self {
        Self { values, layout: Layout { rows, cols, row_step, batch_step: 0 }, turned: false }
    }

    /// The first of a batch of such matrices, each `batch_step` values after the one before; 0 for the same each time.
    #[must_use]
    pub fn every(mut self, batch_step: usize) -> Self {
        self.layout.batch_step = batch_step;
        self
    }

    /// The transpose; nothing is moved.
    #[must_use]
    pub fn t(self) -> Self {
        Self { turned: !self.turned, ..self }
    }

    fn rows(&self) -> usize {
        if self.turned { self.layout.cols } else { self.layout.rows }
    }

    fn cols(&self) -> usize {
        if self.turned { self.layout.rows } else { self.layout.cols }
    }

    /// What lies row after row is, column after column, the transpose: cuBLAS's way to look at it.
    fn operation(&self) -> Operation {
        if self.turned { Operation::CUBLAS_OP_T } else { Operation::CUBLAS_OP_N }
    }
}

/// A matrix to be written, or a batch of them.
pub struct MatrixMut<'a, T: Factor> {
    values: ViewMut<'a, T>,
    layout: Layout,
}

impl<'a, T: Factor> MatrixMut<'a, T> {
    /// Row after row without gaps.
    #[must_use]
    pub fn new(values: ViewMut<'a, T>, cols: usize) -> Self {
        let layout = Layout::packed(values.len(), cols);
        Self { values, layout }
    }

    /// `rows` rows of `cols` values, each `row_step` values after the one before.
    #[must_use]
    pub fn strided(values: ViewMut<'a, T>, rows: usize, cols: usize, row_step: usize) -> Self {
        Self { values, layout: Layout { rows, cols, row_step, batch_step: 0 } }
    }

    /// The first of a batch of such matrices, each `batch_step` values after the one before.
    #[must_use]
    pub fn every(mut self, batch_step: usize) -> Self {
        self.layout.batch_step = batch_step;
        self
    }
}

/// What becomes of a product: `c = scale * a b + keep * c`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    pub scale: f32,
    /// Of what lay there; at 0 it may have been anything, even no number.
    pub keep: f32,
}

impl Mix {
    /// The product and nothing else.
    pub const SET: Self = Self { scale: 1.0, keep: 0.0 };
    /// The product, added to what is there.
    pub const ADD: Self = Self { scale: 1.0, keep: 1.0 };

    /// The product times a number, and nothing else.
    #[must_use]
    pub fn scaled(scale: f32) -> Self {
        Self { scale, keep: 0.0 }
    }
}

impl Device {
    /// `c = mix(a b)`; `a` is `[m, k]`, `b` is `[k, n]`, `c` is `[m, n]`.
    ///
    /// # Panics
    /// If the shapes do not fit together or reach beyond their buffers: mistakes of the caller.
    pub fn multiply<T: Factor, U: Product<T>>(
        &self,
        a: Matrix<'_, T>,
        b: Matrix<'_, T>,
        mix: Mix,
        c: MatrixMut<'_, U>,
    ) -> Result<()> {
        self.multiply_batch(1, a, b, mix, c)
    }

    /// As [`Device::multiply`], for each of `batch` matrices.
    ///
    /// # Panics
    /// As [`Device::multiply`], and if the results of a batch overlap.
    pub fn multiply_batch<T: Factor, U: Product<T>>(
        &self,
        batch: usize,
        a: Matrix<'_, T>,
        b: Matrix<'_, T>,
        mix: Mix,
        c: MatrixMut<'_, U>,
    ) -> Result<()> {
        let (m, k, n) = (a.rows(), a.cols(), b.cols());
        assert_eq!((b.rows(), c.layout.rows, c.layout.cols), (k, m, n), "[{m}, {k}] times [_, {n}]");
        a.layout.check(a.values.len(), batch);
        b.layout.check(b.values.len(), batch);
        c.layout.check(c.values.len(), batch);
        assert!(batch < 2 || c.layout.batch_step >= n, "the {batch} results overlap");
        if m == 0 || n == 0 || batch == 0 {
            return Ok(());
        }
        let (scale, keep) = ((&raw const mix.scale).cast::<c_void>(), (&raw const mix.keep).cast::<c_void>());
        let [m, n, k, batch] = [m, n, k, batch].map(small);
        let [step_a, step_b, step_c] = [a.layout, b.layout, c.layout].map(|layout| small(layout.row_step));
        let [every_a, every_b, every_c] = [a.layout, b.layout, c.layout].map(|layout| layout.batch_step as i64);
        self.cublas(|handle| {
            // The transpose of the product is the product of the transposes, the second first.
            // SAFETY: the handle is open, scalars are on the host, and all three lie in living buffers, as checked above.
            unsafe {
                let (a_values, b_values) = (a.values.pointer as *const c_void, b.values.pointer as *const c_void);
                let c_values = c.values.pointer as *mut c_void;
                cublas::gemm_strided_batched_ex(
                    handle,
                    b.operation(),
                    a.operation(),
                    n,
                    m,
                    k,
                    scale,
                    b_values,
                    T::TYPE,
                    step_b,
                    every_b,
                    a_values,
                    T::TYPE,
                    step_a,
                    every_a,
                    keep,
                    c_values,
                    U::TYPE,
                    step_c,
                    every_c,
                    batch,
                    Compute::CUBLAS_COMPUTE_32F,
                    Algorithm::CUBLAS_GEMM_DEFAULT,
                )
            }
        })?
        .or_say("a product")
    }
}

/// As cuBLAS counts.
fn small(number: usize) -> i32 {
    i32::try_from(number).expect("a matrix has fewer than 2^31 rows and columns")
}
