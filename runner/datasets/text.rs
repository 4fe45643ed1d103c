//! Plain text: a file is one long row, read in pieces so that it may be larger than memory.

use std::io::Read;

use drydock_spec::dataset::{Example, Format};

use super::DatasetError;
use super::read::{Tally, tokens, unreadable};

const PIECE: usize = 1 << 20;
/// Characters of the text that are shown.
const SHOWN: usize = 1900;

/// What a text comes to.
#[derive(Default)]
struct Account {
    bytes: u64,
    tokens: u64,
    begins: String,
    is_blank: bool,
}

impl Tally<'_> {
    /// Counts a file of plain text as one row.
    pub(super) fn text(&mut self, file: &str, source: &mut impl Read) -> Result<(), DatasetError> {
        let refused = |problem: String, next: &str| {
            Err(DatasetError::File { file: file.to_owned(), problem, next: next.to_owned() })
        };
        if self.format.is_some_and(|format| format != Format::Text) {
            return refused("plain text among rows of another form".into(), "load them as datasets of their own");
        }
        let mut account = Account { is_blank: true, ..Account::default() };
        let mut piece = Vec::new();
        loop {
            let kept = piece.len();
            let read = source
                .by_ref()
                .take((PIECE - kept) as u64)
                .read_to_end(&mut piece)
                .map_err(|error| unreadable(file, &error))?;
            let whole = match std::str::from_utf8(&piece) {
                Ok(_) => piece.len(),
                // A character may be cut by the end of the piece, but not by that of the file.
                Err(error) if error.error_len().is_none() && read > 0 => error.valid_up_to(),
                Err(error) => {
                    let at = account.bytes + error.valid_up_to() as u64;
                    let problem = format!("not UTF-8 text: the byte at offset {at} fits no character");
                    return refused(problem, "convert it with iconv, or name it .jsonl if it holds rows");
                }
            };
            // Just checked.
            account.add(std::str::from_utf8(&piece[..whole]).unwrap_or_default());
            piece.drain(..whole);
            if read == 0 {
                break;
            }
        }
        self.format = Some(Format::Text);
        self.count_text(account);
        Ok(())
    }

    fn count_text(&mut self, account: Account) {
        if account.is_blank {
            self.blank += 1;
            return;
        }
        self.rows += 1;
        self.text_bytes += account.bytes;
        self.measure(account.tokens);
        let more = account.bytes - account.begins.len() as u64;
        let shown = if more > 0 { format!("{}... ({more} bytes more)", account.begins) } else { account.begins };
        self.show(Example::Text(shown));
    }
}

impl Account {
    fn add(&mut self, text: &str) {
        self.bytes += text.len() as u64;
        self.tokens += tokens(text);
        self.is_blank &= text.trim().is_empty();
        if self.begins.len() < SHOWN && self.bytes == text.len() as u64 {
            self.begins = text.chars().take(SHOWN).collect();
        }
    }
}
