//! Rows of values on the device: what products and kernels are about.

use std::ops::Range;

use super::memory::{Buffer, Element, View, ViewMut};
use super::product::{Factor, Matrix, MatrixMut};

/// `rows` rows of `width` values, each `stride` values after the one before.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T: Element> {
    pub at: View<'a, T>,
    pub rows: usize,
    pub width: usize,
    pub stride: usize,
}

/// The same, to be written.
pub(super) struct RowsMut<'a, T: Element> {
    pub at: ViewMut<'a, T>,
    pub rows: usize,
    pub width: usize,
    pub stride: usize,
}

impl<'a, T: Element> Rows<'a, T> {
    /// Rows without gaps that fill a buffer.
    pub(super) fn of(buffer: &'a Buffer<T>, width: usize) -> Self {
        Self::new(buffer.view(), width)
    }

    /// Rows without gaps.
    pub(super) fn new(at: View<'a, T>, width: usize) -> Self {
        let rows = whole_rows(at.len(), width);
        Self { at, rows, width, stride: width }
    }

    /// Some of the columns.
    pub(super) fn columns(self, columns: Range<usize>) -> Self {
        let at = self.at.part(stretch(self.rows, self.width, self.stride, &columns));
        Self { at, width: columns.len(), ..self }
    }
}

impl<'a, T: Element> RowsMut<'a, T> {
    /// Rows without gaps that fill a buffer.
    pub(super) fn of(buffer: &'a mut Buffer<T>, width: usize) -> Self {
        Self::new(buffer.view_mut(), width)
    }

    /// Rows without gaps.
    pub(super) fn new(at: ViewMut<'a, T>, width: usize) -> Self {
        let rows = whole_rows(at.len(), width);
        Self { at, rows, width, stride: width }
    }

    /// Some of the columns, lent on.
    pub(super) fn columns(&mut self, columns: Range<usize>) -> RowsMut<'_, T> {
        let stretch = stretch(self.rows, self.width, self.stride, &columns);
        RowsMut { at: self.at.part(stretch), rows: self.rows, width: columns.len(), stride: self.stride }
    }

    /// All of it, lent on.
    pub(super) fn again(&mut self) -> RowsMut<'_, T> {
        RowsMut { at: self.at.again(), rows: self.rows, width: self.width, stride: self.stride }
    }
}

impl<'a, T: Factor> Rows<'a, T> {
    /// As products take it.
    pub(super) fn matrix(self) -> Matrix<'a, T> {
        Matrix::strided(self.at, self.rows, self.width, self.stride)
    }
}

impl<'a, T: Factor> RowsMut<'a, T> {
    /// As products write it.
    pub(super) fn matrix(self) -> MatrixMut<'a, T> {
        MatrixMut::strided(self.at, self.rows, self.width, self.stride)
    }
}

fn whole_rows(len: usize, width: usize) -> usize {
    assert!(len.is_multiple_of(width), "{len} values in rows of {width}");
    len / width
}

/// From the first value of some columns to their last.
fn stretch(rows: usize, width: usize, stride: usize, columns: &Range<usize>) -> Range<usize> {
    assert!(columns.end <= width, "columns {columns:?} of {width}");
    let end = if rows == 0 { columns.start } else { (rows - 1) * stride + columns.end };
    columns.start..end
}
