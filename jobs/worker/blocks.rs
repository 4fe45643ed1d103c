//! The forms in which a file holds the values of a tensor: floats of three widths, and ggml's quantized blocks.
//!
//! A row is cut into blocks of equal length; a block holds one or several scales and a few bits for each value (its
//! *code*). The layouts are ggml's, to the bit; each family's file says in words what lies where:
//!
//! - [`float`]: f32, f16 and bf16, where a block is one value;
//! - [`legacy`]: blocks of 32 values with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0;
//! - [`super_block`]: 256 values with scales of scales, the "K-quants": Q2_K to Q6_K.
//!
//! Decoding computes `scale * code + min` with a product and a sum that are rounded each, as ggml's reference code
//! says; a compiler that fuses the two gives other last bits.

mod float;
mod legacy;
mod search;
mod super_block;

pub(crate) use float::from_f16;

use rayon::prelude::*;

/// Fewer rows than this are not worth a thread's while.
const ROWS_OF_A_SHARE: usize = 8;

/// How the values of a tensor are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockKind {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// What ggml says about a kind: its number in a file, its name, the values of a block, and the bytes that hold them.
struct Facts {
    id: u32,
    name: &'static str,
    len: usize,
    bytes: usize,
}

impl BlockKind {
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    const fn facts(self) -> Facts {
        let (id, name, len, bytes) = match self {
            Self::F32 => (0, "F32", 1, 4),
            Self::F16 => (1, "F16", 1, 2),
            Self::Bf16 => (30, "BF16", 1, 2),
            Self::Q4_0 => (2, "Q4_0", 32, 18),
            Self::Q4_1 => (3, "Q4_1", 32, 20),
            Self::Q5_0 => (6, "Q5_0", 32, 22),
            Self::Q5_1 => (7, "Q5_1", 32, 24),
            Self::Q8_0 => (8, "Q8_0", 32, 34),
            Self::Q2K => (10, "Q2_K", 256, 84),
            Self::Q3K => (11, "Q3_K", 256, 110),
            Self::Q4K => (12, "Q4_K", 256, 144),
            Self::Q5K => (13, "Q5_K", 256, 176),
            Self::Q6K => (14, "Q6_K", 256, 210),
        };
        Facts { id, name, len, bytes }
    }

    /// The number that stands for this kind in a GGUF file.
    pub const fn ggml_id(self) -> u32 {
        self.facts().id
    }

    /// The kind of that number, if it is one of these.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.ggml_id() == id)
    }

    /// As people write it: `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Values in a block; rows are a multiple of it.
    pub const fn block_len(self) -> usize {
        self.facts().len
    }

    /// Bytes that hold a block.
    pub const fn block_bytes(self) -> usize {
        self.facts().bytes
    }

    /// Whether a code and a scale stand for a value, rather than the value itself.
    pub const fn is_quantized(self) -> bool {
        self.facts().len > 1
    }

    /// Bytes of a row of `width` values; none if such a row is no whole number of blocks, or too long to be counted.
    pub const fn row_bytes(self, width: usize) -> Option<usize> {
        if !width.is_multiple_of(self.block_len()) {
            return None;
        }
        (width / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Decodes whole blocks, on the calling thread.
    ///
    /// # Panics
    /// If the bytes are not those of as many values as there is room for.
    pub fn decode(self, bytes: &[u8], into: &mut [f32]) {
        assert_eq!(Some(bytes.len()), self.row_bytes(into.len()), "{} of {} values", self.name(), into.len());
        match self {
            Self::F32 => float::decode_f32(bytes, into),
            Self::F16 => float::decode_f16(bytes, into),
            Self::Bf16 => float::decode_bf16(bytes, into),
            Self::Q4_0 => legacy::decode_q4_0(bytes, into),
            Self::Q4_1 => legacy::decode_q4_1(bytes, into),
            Self::Q5_0 => legacy::decode_q5_0(bytes, into),
            Self::Q5_1 => legacy::decode_q5_1(bytes, into),
            Self::Q8_0 => legacy::decode_q8_0(bytes, into),
            Self::Q2K => super_block::decode_q2k(bytes, into),
            Self::Q3K => super_block::decode_q3k(bytes, into),
            Self::Q4K => super_block::decode_q4k(bytes, into),
            Self::Q5K => super_block::decode_q5k(bytes, into),
            Self::Q6K => super_block::decode_q6k(bytes, into),
        }
    }

    /// Encodes a row of whole blocks, on the calling thread.
    ///
    /// Floats are rounded to the nearest, ties to even. Blocks of 32 get the bytes that llama.cpp gives them; the
    /// K-quants are of the same layout, but come of a search of our own. `importance`, the mean square of what each value
    /// is multiplied with, makes errors count where they do harm: then blocks of 32 are searched for too. Q8_0 and floats
    /// do without.
    ///
    /// # Panics
    /// If there is not exactly as much room as the values need, or not as many importances as values.
    pub fn encode(self, values: &[f32], importance: Option<&[f32]>, into: &mut [u8]) {
        assert_eq!(Some(into.len()), self.row_bytes(values.len()), "{} of {} values", self.name(), values.len());
        assert!(importance.is_none_or(|importance| importance.len() == values.len()), "an importance for each value");
        match (self, importance) {
            (Self::Q4_0, Some(importance)) => return legacy::encode_q4_0_by(importance, values, into),
            (Self::Q4_1, Some(importance)) => return legacy::encode_q4_1_by(importance, values, into),
            (Self::Q5_0, Some(importance)) => return legacy::encode_q5_0_by(importance, values, into),
            (Self::Q5_1, Some(importance)) => return legacy::encode_q5_1_by(importance, values, into),
            _ => {}
        }
        match self {
            Self::F32 => float::encode_f32(values, into),
            Self::F16 => float::encode_f16(values, into),
            Self::Bf16 => float::encode_bf16(values, into),
            Self::Q4_0 => legacy::encode_q4_0(values, into),
            Self::Q4_1 => legacy::encode_q4_1(values, into),
            Self::Q5_0 => legacy::encode_q5_0(values, into),
            Self::Q5_1 => legacy::encode_q5_1(values, into),
            Self::Q8_0 => legacy::encode_q8_0(values, into),
            Self::Q2K => super_block::encode_q2k(values, importance, into),
            Self::Q3K => super_block::encode_q3k(values, importance, into),
            Self::Q4K => super_block::encode_q4k(values, importance, into),
            Self::Q5K => super_block::encode_q5k(values, importance, into),
            Self::Q6K => super_block::encode_q6k(values, importance, into),
        }
    }

    /// Encodes a tensor in rows of `width` on all threads. `importance` has a value for each column.
    ///
    /// # Panics
    /// As [`Self::encode`] does.
    pub fn encode_all(self, values: &[f32], width: usize, importance: Option<&[f32]>, into: &mut [u8]) {
        let Some(row_bytes) = self.row_bytes(width).filter(|bytes| *bytes > 0) else {
            panic!("{} in rows of {width}", self.name());
        };
        let rows = values.par_chunks(width).zip(into.par_chunks_mut(row_bytes));
        rows.with_min_len(ROWS_OF_A_SHARE).for_each(|(values, into)| self.encode(values, importance, into));
    }

    /// Decodes a whole tensor on all threads.
    ///
    /// # Panics
    /// As [`Self::decode`] does.
    pub fn decode_all(self, bytes: &[u8], into: &mut [f32]) {
        // A share is a few pages of either form: enough to be worth a thread's while, and it stays in the cache.
        const SHARE: usize = 1 << 14;
        assert_eq!(Some(bytes.len()), self.row_bytes(into.len()), "{} of {} values", self.name(), into.len());
        let share_bytes = SHARE / self.block_len() * self.block_bytes();
        into.par_chunks_mut(SHARE)
            .zip(bytes.par_chunks(share_bytes))
            .for_each(|(into, bytes)| self.decode(bytes, into));
    }
}

/// The blocks of a row, of so many bytes each, beside the room for their values.
#[inline(always)]
fn of_row<'a, const BYTES: usize, const LEN: usize>(
    bytes: &'a [u8],
    into: &'a mut [f32],
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [f32; LEN])> {
    bytes.as_chunks().0.iter().zip(into.as_chunks_mut().0)
}

impl std::fmt::Display for BlockKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QStorage, QTensor};
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    /// candle's name for a kind; its decoding is a second opinion.
    fn dtype(kind: BlockKind) -> GgmlDType {
        match kind {
            BlockKind::F32 => GgmlDType::F32,
            BlockKind::F16 => GgmlDType::F16,
            BlockKind::Bf16 => GgmlDType::BF16,
            BlockKind::Q4_0 => GgmlDType::Q4_0,
            BlockKind::Q4_1 => GgmlDType::Q4_1,
            BlockKind::Q5_0 => GgmlDType::Q5_0,
            BlockKind::Q5_1 => GgmlDType::Q5_1,
            BlockKind::Q8_0 => GgmlDType::Q8_0,
            BlockKind::Q2K => GgmlDType::Q2K,
            BlockKind::Q3K => GgmlDType::Q3K,
            BlockKind::Q4K => GgmlDType::Q4K,
            BlockKind::Q5K => GgmlDType::Q5K,
            BlockKind::Q6K => GgmlDType::Q6K,
        }
    }

    fn decoded_by_candle(kind: BlockKind, bytes: Vec<u8>, len: usize) -> Vec<f32> {
        let storage = QStorage::from_data(bytes.into(), &Device::Cpu, dtype(kind)).unwrap();
        let tensor = QTensor::new(storage, len).unwrap();
        tensor.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn any_bytes_decode_to_what_candle_makes_of_them() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        for kind in BlockKind::ALL {
            let len = 256 * 67;
            let mut bytes = vec![0; kind.row_bytes(len).unwrap()];
            random.fill_bytes(&mut bytes);
            let mut values = vec![0.0; len];
            kind.decode_all(&bytes, &mut values);
            let expected = decoded_by_candle(kind, bytes, len);
            for (index, (got, want)) in values.iter().zip(&expected).enumerate() {
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "{kind}, value {index}: {got}, not {want}");
            }
        }
    }

    #[test]
    fn a_kind_is_found_by_its_number_and_rows_are_whole_blocks() {
        for kind in BlockKind::ALL {
            assert_eq!(BlockKind::from_ggml_id(kind.ggml_id()), Some(kind));
            assert_eq!(dtype(kind).block_size(), kind.block_len());
            assert_eq!(dtype(kind).type_size(), kind.block_bytes());
            assert_eq!(kind.row_bytes(kind.block_len() * 3), Some(kind.block_bytes() * 3));
        }
        assert_eq!(BlockKind::from_ggml_id(4), None);
        assert_eq!(BlockKind::Q4K.row_bytes(576), None);
        assert_eq!(BlockKind::F32.row_bytes(usize::MAX), None);
    }
}
