//! A tensor from one form into another, and what was lost on the way.

use std::ops::Range;

use drydock_spec::FailureKind::BadModel;
use rayon::prelude::*;

use crate::blocks::BlockKind;
use crate::ending::{Result, failed};

/// Values that are held in f32 at a time: a large tensor goes by in pieces.
const PIECE_VALUES: usize = 1 << 23;
/// Values that a thread takes at a time. Errors are added up share by share, so that the sum does not depend on how
/// many threads there are.
const SHARE_VALUES: usize = 1 << 14;

/// Sums over the values of a tensor.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss {
    pub values: u64,
    /// Of the squares of the values.
    pub squares: f64,
    /// Of the squares of the differences.
    pub errors: f64,
}

impl Loss {
    pub fn add(&mut self, other: Self) {
        self.values += other.values;
        self.squares += other.squares;
        self.errors += other.errors;
    }

    /// The root of the mean square of the differences.
    pub fn rmse(&self) -> f64 {
        if self.values == 0 { 0.0 } else { (self.errors / self.values as f64).sqrt() }
    }

    /// How long the differences are beside the values.
    pub fn relative(&self) -> f64 {
        if self.squares == 0.0 { 0.0 } else { (self.errors / self.squares).sqrt() }
    }
}

/// A tensor to encode: rows of `width` values.
pub struct Encoding<'a> {
    pub name: &'a str,
    pub rows: usize,
    pub width: usize,
    pub kind: BlockKind,
    /// The mean square of what each column is multiplied with.
    pub importance: Option<&'a [f32]>,
}

impl Encoding<'_> {
    /// Reads rows by `read`, encodes them and hands the bytes to `write`, piece by piece.
    pub fn encode(
        &self,
        read: impl Fn(Range<usize>, &mut [f32]) + Sync,
        mut write: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Loss> {
        let row_bytes = self.kind.row_bytes(self.width).expect("a form was chosen that the rows can take");
        let piece_rows = (PIECE_VALUES / self.width).max(1);
        let share_rows = (SHARE_VALUES / self.width).max(1);
        let mut loss = Loss::default();
        let mut bytes = Vec::new();
        for from in (0..self.rows).step_by(piece_rows) {
            let piece = from..(from + piece_rows).min(self.rows);
            bytes.resize(piece.len() * row_bytes, 0);
            let shares = bytes.par_chunks_mut(share_rows * row_bytes).enumerate().map(|(index, bytes)| {
                let first = piece.start + index * share_rows;
                self.encode_share(first..first + bytes.len() / row_bytes, bytes, &read)
            });
            for share in shares.collect::<Vec<_>>() {
                loss.add(share);
            }
            if !loss.squares.is_finite() {
                return failed(BadModel, format!("tensor `{}` holds values that are no finite numbers", self.name));
            }
            if !loss.errors.is_finite() {
                let message = format!("tensor `{}` holds values too large for {}", self.name, self.kind);
                return failed(BadModel, message);
            }
            write(&bytes)?;
        }
        Ok(loss)
    }

    fn encode_share(&self, rows: Range<usize>, bytes: &mut [u8], read: &impl Fn(Range<usize>, &mut [f32])) -> Loss {
        let mut values = vec![0.0; rows.len() * self.width];
        read(rows, &mut values);
        let row_bytes = bytes.len() / (values.len() / self.width);
        for (values, bytes) in values.chunks_exact(self.width).zip(bytes.chunks_exact_mut(row_bytes)) {
            self.kind.encode(values, self.importance, bytes);
        }
        let mut back = vec![0.0; values.len()];
        self.kind.decode(bytes, &mut back);
        let mut loss = Loss { values: values.len() as u64, ..Loss::default() };
        for (value, back) in values.iter().zip(&back) {
            let (value, error) = (f64::from(*value), f64::from(*value) - f64::from(*back));
            loss.squares += value * value;
            loss.errors += error * error;
        }
        loss
    }
}
