//! Which rows a finetune will cut, as far as that is known before a tokenizer has seen them: pure rules.

use std::fmt;

use drydock_spec::lengths::Lengths;
use drydock_spec::report::DatasetReport;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rows that are longer than what they are cut to; their answers, which come last, are cut with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CutRows {
    /// So many at most; where they were `tokenized`, exactly so many.
    pub rows: u64,
    /// Of so many.
    pub of: u64,
    /// What they are cut to, in tokens.
    pub max_seq_length: u32,
    /// Whether the model's tokenizer has counted. Otherwise their letters were, which make more than a tokenizer does.
    pub tokenized: bool,
    /// What would cut fewer; absent if the model takes no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longer: Option<Longer>,
}

/// A length that would cut fewer rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Longer {
    pub max_seq_length: u32,
    /// Rows that would still be cut, at most.
    pub rows: u64,
}

/// A length that cuts this share of the rows is long enough to be proposed: 1 %.
const FEW: u64 = 100;

/// What is cut of `rows` rows at `length` tokens, if anything may be; of a model that takes `limit` tokens.
pub(super) fn of<'a>(
    lengths: impl Iterator<Item = &'a Lengths> + Clone,
    rows: u64,
    length: u32,
    limit: u32,
) -> Option<CutRows> {
    let beyond = |length: u32| lengths.clone().map(|lengths| lengths.beyond(u64::from(length))).sum::<u64>();
    let cut = beyond(length);
    let doubled = std::iter::successors(Some(length), |length| (*length < limit).then(|| (2 * length).min(limit)));
    let candidates: Vec<_> =
        doubled.skip(1).map(|length| Longer { max_seq_length: length, rows: beyond(length) }).collect();
    let enough = candidates.iter().find(|longer| longer.rows * FEW <= rows).or(candidates.last());
    let longer = enough.filter(|longer| longer.rows < cut).copied();
    (cut > 0).then_some(CutRows { rows: cut, of: rows, max_seq_length: length, tokenized: false, longer })
}

impl CutRows {
    /// The same after a tokenizer has seen all rows; nothing if it cuts none.
    #[must_use]
    pub fn tokenized(self, report: &DatasetReport) -> Option<Self> {
        let rows = report.truncated_rows;
        let longer = self.longer.map(|longer| Longer { rows: longer.rows.min(rows), ..longer });
        (rows > 0).then_some(Self { rows, tokenized: true, longer, ..self })
    }
}

/// A warning.
impl fmt::Display for CutRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, of, max_seq_length, .. } = self;
        match self.tokenized {
            true => {
                write!(f, "{rows} of {of} rows are longer than max_seq_length = {max_seq_length} tokens and are cut")?
            }
            false => write!(
                f,
                "up to {rows} of {of} rows may be longer than max_seq_length = {max_seq_length} tokens, and would be cut \
                 (counted by letters: a tokenizer makes fewer tokens of them)"
            )?,
        }
        match self.longer {
            None => write!(f, "; the model takes no more: shorten the rows"),
            Some(Longer { max_seq_length, rows: 0 }) => write!(f, "; max_seq_length = {max_seq_length} would keep all"),
            Some(Longer { max_seq_length, rows }) => {
                write!(f, "; max_seq_length = {max_seq_length} would keep all but {rows} at most")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(rows: &[(u64, u64)]) -> Lengths {
        let text: Vec<_> = rows.iter().map(|(tokens, rows)| format!("\"{tokens}\": {rows}")).collect();
        serde_json::from_str(&format!("{{{}}}", text.join(", "))).unwrap()
    }

    fn said(rows: &[(u64, u64)], length: u32, limit: u32) -> Option<String> {
        let lengths = lengths(rows);
        let all = rows.iter().map(|(_, rows)| rows).sum();
        of(std::iter::once(&lengths), all, length, limit).map(|cut| cut.to_string())
    }

    #[test]
    fn rows_that_are_cut_are_told_with_the_length_that_keeps_them() {
        let rows = [(64, 170), (256, 35), (640, 2)];
        let counted = "(counted by letters: a tokenizer makes fewer tokens of them)";
        assert_eq!(
            said(&rows, 128, 2048).unwrap(),
            format!(
                "up to 37 of 207 rows may be longer than max_seq_length = 128 tokens, and would be cut {counted}; \
                 max_seq_length = 256 would keep all but 2 at most"
            )
        );
        assert!(said(&rows, 512, 2048).unwrap().ends_with("max_seq_length = 1024 would keep all"));
        assert!(
            said(&rows, 256, 600).unwrap().ends_with("the model takes no more: shorten the rows"),
            "600 cuts as many"
        );
        assert!(said(&rows, 128, 128).unwrap().ends_with("the model takes no more: shorten the rows"));
        assert_eq!(said(&rows, 640, 2048), None);
        assert_eq!(said(&[], 8, 16), None, "nothing is known of datasets that were loaded before");
    }

    #[test]
    fn what_a_tokenizer_counts_is_exact() {
        let lengths = lengths(&[(256, 10)]);
        let cut = of(std::iter::once(&lengths), 10, 128, 512).unwrap();
        assert_eq!(cut.tokenized(&DatasetReport::default()), None);
        let exact = cut.tokenized(&DatasetReport { truncated_rows: 3, ..DatasetReport::default() }).unwrap();
        let expected =
            "3 of 10 rows are longer than max_seq_length = 128 tokens and are cut; max_seq_length = 256 would keep all";
        assert_eq!(exact.to_string(), expected);
    }
}
