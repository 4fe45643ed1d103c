//! Frozen values, held in the form that takes the least memory.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

use crate::kernels::weight::{Held, Weight};

/// A frozen matrix `[out, width]`; a vector is a matrix of one row.
#[derive(Debug, Clone)]
pub struct Stored {
    form: Form,
    out: usize,
    width: usize,
}

#[derive(Debug, Clone)]
enum Form {
    /// In memory of its own.
    F32(Vec<f32>),
    /// Where it lies in its file: no second copy is made, and pages that nobody asks for are never read.
    MappedF32(Mapped),
}

/// A stretch of a mapped file that holds aligned f32.
#[derive(Clone)]
struct Mapped {
    file: Arc<Mmap>,
    bytes: Range<usize>,
}

impl Stored {
    /// Rows of `width` values without gaps.
    pub fn f32(values: Vec<f32>, width: usize) -> Self {
        let out = values.len() / width.max(1);
        Self { form: Form::F32(values), out, width }
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
        Self { form: Form::MappedF32(Mapped { file: file.clone(), bytes }), out, width }
    }

    /// As the kernels take it.
    pub fn as_weight(&self) -> Weight<'_> {
        let held = match &self.form {
            Form::F32(values) => Held::F32(values),
            Form::MappedF32(mapped) => Held::F32(mapped.values()),
        };
        Weight { held, out: self.out, width: self.width }
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
        let skewed = Stored::mapped_f32(&map, 3..19, 4);
        assert!(matches!(skewed.form, Form::F32(_)));
        assert_eq!((skewed.as_weight().out, skewed.as_weight().width), (1, 4));
    }
}
