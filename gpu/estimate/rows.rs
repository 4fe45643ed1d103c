//! What rows take: while they are read and tokenized, and after.

use super::{Decoder, Needs, Part};

/// A job's rows, of all of its datasets together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rows {
    pub count: u64,
    /// Of the files.
    pub file_bytes: u64,
    /// Of their text.
    pub text_bytes: u64,
    /// Of the text of the longest row, about.
    pub longest_bytes: u64,
}

/// What a row has beside its tokens: where it stands, and the ends of its lists.
const ROW_BYTES: u64 = 160;
/// What a tokenizer holds of each byte of a row that goes through it: for every token its text, its place and six more
/// numbers (measured: 116 bytes of text of which a token is 2.4).
const ENCODED: u64 = 116;
/// What stays of a tokenizer that was learnt here: the words that it has met, and the heap's pages that are not free as a
/// whole (measured).
const LEARNT_BYTES: u64 = 24 << 20;

impl Rows {
    /// What is left of them when they are tokenized: an id and a mark for each token, of about four bytes of text.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.text_bytes.saturating_mul(8) / 5 + self.count.saturating_mul(ROW_BYTES)
    }

    /// What they take before: the files as they are read, their text, and the longest row in its tokenizer.
    #[must_use]
    pub fn reading(&self) -> u64 {
        let text = self.file_bytes.saturating_mul(2).saturating_add(self.text_bytes / 2);
        text.saturating_add(self.longest_bytes.min(self.text_bytes).saturating_mul(ENCODED))
    }

    /// The same of a job that needs `after` when they are tokenized, on so many threads.
    #[must_use]
    pub fn then(&self, after: Needs, model: &Decoder, threads: u32) -> Needs {
        let reading = model.worker(threads).with(Part::Rows, self.held().max(self.reading()));
        Needs::largest([reading, after.with(Part::Rows, self.held())])
    }

    /// The same where a tokenizer is learnt from them first.
    #[must_use]
    pub fn learnt_then(&self, after: Needs, model: &Decoder, threads: u32) -> Needs {
        self.then(after.with(Part::Tokenizer, LEARNT_BYTES), model, threads)
    }
}

#[cfg(test)]
mod tests {
    use super::super::SMOLLM2_135M;
    use super::*;

    #[test]
    fn what_is_read_is_let_go_before_anything_is_learnt() {
        let rows = Rows { count: 1, file_bytes: 7 << 20, text_bytes: 7 << 20, longest_bytes: 7 << 20 };
        // A text of 7 MB in one row, as it goes through its tokenizer: 817 MiB were measured.
        let reading = rows.then(Needs::default(), &SMOLLM2_135M, 2);
        assert!((780..900).contains(&(reading.get(Part::Rows) >> 20)), "{reading:?}");
        let learning = Needs::default().with(Part::Activations, 1 << 30);
        assert_eq!(rows.then(learning, &SMOLLM2_135M, 2).get(Part::Rows), rows.held());
    }
}
