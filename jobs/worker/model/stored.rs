//! Frozen values, held in the form that takes the least memory.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;

use crate::blocks::BlockKind;
use crate::forget;
use crate::kernels::quantized::{Blocks, Turned};
use crate::kernels::weight::{Held, Weight};

/// A frozen matrix `[out, width]`; a vector is a matrix of one row.
#[derive(Debug, Clone)]
pub struct Stored {
    form: Form,
    out: usize,
    width: usize,
    /// Quantized rows as integer products want them, once one has been taken.
    turned: Arc<OnceLock<Turned>>,
}

#[derive(Debug, Clone)]
enum Form {
    /// In memory of its own.
    F32(Vec<f32>),
    /// Where it lies in its file: no second copy is made, and pages that nobody asks for are never read.
    MappedF32(Mapped),
    /// In a file's blocks: quantized, or floats of 16 bits.
    Blocks(BlockKind, Vec<u8>),
    /// The same, where they lie.
    MappedBlocks(BlockKind, Mapped),
}

/// A stretch of a mapped file; where it holds f32, they are aligned.
#[derive(Clone)]
struct Mapped {
    file: Arc<Mmap>,
    bytes: Range<usize>,
}

impl Stored {
    fn of(form: Form, out: usize, width: usize) -> Self {
        Self { form, out, width, turned: Arc::default() }
    }

    /// Rows of `width` values without gaps.
    pub fn f32(values: Vec<f32>, width: usize) -> Self {
        let out = values.len() / width.max(1);
        Self::of(Form::F32(values), out, width)
    }

    /// `bytes` of a file that are little-endian f32, used where they lie; where they cannot be (a file may start a
    /// tensor anywhere), they are copied.
    pub fn mapped_f32(file: &Arc<Mmap>, bytes: Range<usize>, width: usize) -> Self {
        let values = &file[bytes.clone()];
        if cfg!(target_endian = "big") || !values.as_ptr().cast::<f32>().is_aligned() {
            let values = values.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
            return Self::f32(values.collect(), width);
        }
        let out = values.len() / size_of::<f32>() / width.max(1);
        Self::of(Form::MappedF32(Mapped { file: file.clone(), bytes }), out, width)
    }

    /// Rows of `width` values in blocks of a file, which stay what they are.
    pub fn blocks(kind: BlockKind, bytes: Vec<u8>, width: usize) -> Self {
        let out = Weight::blocks(kind, &bytes, width).out;
        Self::of(Form::Blocks(kind, bytes), out, width)
    }

    /// `bytes` of a file that hold rows of `width` values in blocks, used where they lie.
    pub fn mapped_blocks(kind: BlockKind, file: &Arc<Mmap>, bytes: Range<usize>, width: usize) -> Self {
        let out = Weight::blocks(kind, &file[bytes.clone()], width).out;
        Self::of(Form::MappedBlocks(kind, Mapped { file: file.clone(), bytes }), out, width)
    }

    /// Some of the rows; those of a mapped file stay where they are.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let values = rows.start * self.width..rows.end * self.width;
        let form = match &self.form {
            Form::F32(all) => Form::F32(all[values].to_vec()),
            Form::Blocks(kind, bytes) => {
                let row = bytes.len() / self.out.max(1);
                Form::Blocks(*kind, bytes[rows.start * row..rows.end * row].to_vec())
            }
            Form::MappedBlocks(kind, Mapped { file, bytes }) => {
                let row = bytes.len() / self.out.max(1);
                let bytes = bytes.start + rows.start * row..bytes.start + rows.end * row;
                Form::MappedBlocks(*kind, Mapped { file: file.clone(), bytes })
            }
            Form::MappedF32(Mapped { file, bytes }) => {
                let at = |value: usize| bytes.start + value * size_of::<f32>();
                Form::MappedF32(Mapped { file: file.clone(), bytes: at(values.start)..at(values.end) })
            }
        };
        Self::of(form, rows.len(), self.width)
    }

    /// As the kernels take it.
    pub fn as_weight(&self) -> Weight<'_> {
        let held = match &self.form {
            Form::Blocks(kind, bytes) => self.held_blocks(*kind, bytes),
            Form::MappedBlocks(kind, mapped) => self.held_blocks(*kind, &mapped.file[mapped.bytes.clone()]),
            Form::F32(values) => Held::F32(values),
            Form::MappedF32(mapped) => Held::F32(mapped.values()),
        };
        Weight { held, out: self.out, width: self.width }
    }

    /// Holds the values in blocks of this kind from now on, rounded; those that are in quantized blocks already stay.
    pub fn quantize(&mut self, kind: BlockKind) {
        if let Form::Blocks(held, _) | Form::MappedBlocks(held, _) = &self.form
            && held.is_quantized()
        {
            return;
        }
        let mut values = Vec::new();
        self.append_to(&mut values);
        let row = kind.row_bytes(self.width).expect("the kind fits the rows");
        let mut bytes = vec![0; self.out * row];
        kind.encode_all(&values, self.width, None, &mut bytes);
        self.forget();
        *self = Self::blocks(kind, bytes, self.width);
    }

    /// To be called when the values have been read for the last time, or for the last time in a while.
    pub fn forget(&self) {
        if let Form::MappedF32(Mapped { file, bytes }) | Form::MappedBlocks(_, Mapped { file, bytes }) = &self.form {
            forget::pages(file, bytes.clone());
        }
    }

    fn held_blocks<'a>(&'a self, kind: BlockKind, bytes: &'a [u8]) -> Held<'a> {
        Held::Blocks(Blocks { turned: Some(&self.turned), ..Blocks::new(kind, bytes, self.width) })
    }

    /// Appends all values in f32.
    pub fn append_to(&self, values: &mut Vec<f32>) {
        let from = values.len();
        values.resize(from + self.out * self.width, 0.0);
        let weight = self.as_weight();
        let rows = values[from..].chunks_exact_mut(self.width.max(1));
        rows.enumerate().for_each(|(index, row)| weight.row(index, row));
    }
}

impl Mapped {
    fn values(&self) -> &[f32] {
        let bytes = &self.file[self.bytes.clone()];
        // SAFETY: `Stored::mapped_f32` has checked the alignment, every pattern of bits is an f32, and the slice lives
        // no longer than the mapping.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<f32>()) }
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {:?} of a file", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn values_are_used_where_they_lie_or_copied_where_they_cannot_be() {
        let mut file = tempfile::tempfile().unwrap();
        let values = [1.5f32, -2.0, 0.25, 8.0];
        file.write_all(&[0]).unwrap();
        file.write_all(&[0; 3]).unwrap();
        file.write_all(&values.map(f32::to_le_bytes).concat()).unwrap();
        // SAFETY: nobody else knows of the file.
        let map = Arc::new(unsafe { Mmap::map(&file) }.unwrap());
        let aligned = Stored::mapped_f32(&map, 4..20, 2);
        assert!(matches!(aligned.form, Form::MappedF32(_)));
        let mut read = vec![7.0];
        aligned.append_to(&mut read);
        assert_eq!(read, [7.0, 1.5, -2.0, 0.25, 8.0]);
        let mut second = Vec::new();
        aligned.rows(1..2).append_to(&mut second);
        assert_eq!(second, [0.25, 8.0]);
        let skewed = Stored::mapped_f32(&map, 3..19, 4);
        assert!(matches!(skewed.form, Form::F32(_)));
        assert_eq!((skewed.as_weight().out, skewed.as_weight().width), (1, 4));
        assert_eq!(Stored::f32(vec![1.0, 2.0, 3.0], 1).rows(1..3).as_weight().out, 2);
    }

    #[test]
    fn what_is_quantized_once_stays_as_it_is() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        let read = |stored: &Stored| {
            let mut values = Vec::new();
            stored.append_to(&mut values);
            values
        };
        let mut stored = Stored::f32(values.clone(), 32);
        stored.quantize(BlockKind::Q8_0);
        let rounded = read(&stored);
        assert!(rounded != values && rounded.iter().zip(&values).all(|(a, b)| (a - b).abs() < 0.005));
        stored.quantize(BlockKind::Q4_0);
        assert_eq!(read(&stored), rounded);
    }
}
