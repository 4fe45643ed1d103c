//! What one row of the dataset has to teach.

use sha2::{Digest, Sha256};

use super::rows::Row;

/// Something to learn from, and where it stands for those who look for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lesson {
    pub matter: Matter,
    /// File and line, as in `train.jsonl, line 17`.
    pub place: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matter {
    /// To be said.
    Text(Row),
    /// Two answers to the same prompt, the first of them better.
    Pair { chosen: Row, rejected: Row },
    /// An answer that is good or bad.
    Answer { row: Row, good: bool },
}

impl Lesson {
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        let (first, second) = match &self.matter {
            Matter::Text(row) | Matter::Answer { row, .. } => (row, None),
            Matter::Pair { chosen, rejected } => (chosen, Some(rejected)),
        };
        std::iter::once(first).chain(second)
    }

    pub fn tokens(&self) -> usize {
        self.rows().map(|row| row.ids.len()).sum()
    }

    /// Tokens that count.
    pub fn supervised(&self) -> usize {
        self.rows().map(Row::supervised).sum()
    }
}

/// What tells one list of lessons from another: a SHA-256 over every token, what counts, and what is better.
pub fn digest(lessons: &[Lesson]) -> String {
    let mut hash = Sha256::new();
    for lesson in lessons {
        hash.update([match lesson.matter {
            Matter::Text(_) => 0,
            Matter::Pair { .. } => 1,
            Matter::Answer { good: true, .. } => 2,
            Matter::Answer { good: false, .. } => 3,
        }]);
        for row in lesson.rows() {
            hash.update((row.ids.len() as u64).to_le_bytes());
            for (id, counts) in row.ids.iter().zip(&row.counts) {
                hash.update(id.to_le_bytes());
                hash.update([u8::from(*counts)]);
            }
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_tells_what_is_taught_and_not_where_it_stands() {
        let row = |ids: &[u32]| Row { ids: ids.to_vec(), counts: vec![true; ids.len()] };
        let text = |ids: &[u32]| Lesson { matter: Matter::Text(row(ids)), place: "a, line 1".into() };
        let first = digest(&[text(&[1, 2]), text(&[3])]);
        assert_eq!(first.len(), 64);
        let moved = Lesson { place: "b, line 9".into(), ..text(&[1, 2]) };
        assert_eq!(first, digest(&[moved, text(&[3])]));
        let masked =
            Lesson { matter: Matter::Text(Row { counts: vec![false, true], ..row(&[1, 2]) }), ..text(&[1, 2]) };
        assert_ne!(first, digest(&[masked, text(&[3])]));
        assert_ne!(first, digest(&[text(&[1]), text(&[2, 3])]));
        assert_ne!(
            digest(&[Lesson { matter: Matter::Answer { row: row(&[1, 2]), good: true }, ..text(&[1, 2]) }]),
            digest(&[Lesson { matter: Matter::Answer { row: row(&[1, 2]), good: false }, ..text(&[1, 2]) }])
        );
    }
}
