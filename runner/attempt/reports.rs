//! Reading what a worker says: the events file, by byte offset.
//!
//! The file is hostile input. A line is taken only when its newline is there, is capped in length, and must parse;
//! one that does not is kept as a warning and acted on by nobody. Text in it is made legible, so that nothing beyond this
//! point has to guard against terminals' commands. What has been read is only ever told by the offset
//! that the database holds, so reading can begin anew at any time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use drydock_spec::report::MAX_LINE_BYTES;
use drydock_spec::{Report, ReportLine};
use serde::de::Error as _;

use crate::legible::{is_plain, make_legible};
use crate::store::ReportBatch;

/// Bytes that one call reads at most, so that a worker that writes without end cannot fill our memory.
const READ_BYTES: usize = 256 * 1024;
/// Lines that may be unreadable before the worker counts as broken.
const MAX_UNREADABLE: u32 = 100;

/// Reads an events file from a given offset on.
#[derive(Debug)]
pub struct ReportReader {
    file: File,
    buffer: Vec<u8>,
    offset: u64,
    unreadable: u32,
    ended: bool,
}

/// The worker breaks its contract in a way that cannot be read past.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("a report is longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    #[error("more than {MAX_UNREADABLE} reports do not parse")]
    TooMany,
    #[error("the events file shrank from {was} to {is} bytes")]
    Shrank { was: u64, is: u64 },
    #[error("a report follows the final one")]
    AfterTheEnd,
}

/// What one call found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    pub batch: ReportBatch,
    /// Set once the worker is beyond reading; the batch holds what came before.
    pub unreadable: Option<String>,
}

impl ReportReader {
    /// Opens the file to read on from `offset`; `ended` tells whether what lies before it held a final report.
    pub fn open(path: &Path, offset: u64, ended: bool) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, buffer: vec![0; READ_BYTES], offset, unreadable: 0, ended })
    }

    /// Reads the complete lines that have come, up to a bound; an empty batch means that there are none.
    pub fn read_once(&mut self) -> io::Result<Reading> {
        let size = self.file.metadata()?.len();
        if size < self.offset {
            return Ok(self.give_up(Vec::new(), &Unreadable::Shrank { was: self.offset, is: size }));
        }
        let read = read_at(&self.file, &mut self.buffer, self.offset)?;
        let Some(newline) = self.buffer[..read].iter().rposition(|byte| *byte == b'\n') else {
            if read > MAX_LINE_BYTES {
                return Ok(self.give_up(Vec::new(), &Unreadable::TooLong));
            }
            return Ok(self.reading(Vec::new()));
        };
        let mut lines = Vec::new();
        for line in self.buffer[..newline].split(|byte| *byte == b'\n') {
            let end = self.offset + line.len() as u64 + 1;
            if line.len() > MAX_LINE_BYTES {
                return Ok(self.give_up(lines, &Unreadable::TooLong));
            }
            let parsed = parse(line);
            if self.ended {
                return Ok(self.give_up(lines, &Unreadable::AfterTheEnd));
            }
            match parsed {
                Ok(report) => {
                    self.ended = report.report.is_last();
                    lines.push(report);
                }
                Err(error) => {
                    self.unreadable += 1;
                    if self.unreadable > MAX_UNREADABLE {
                        return Ok(self.give_up(lines, &Unreadable::TooMany));
                    }
                    lines.push(unreadable_line(line, &error));
                }
            }
            self.offset = end;
        }
        Ok(self.reading(lines))
    }

    /// Whether the final report has been read.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    fn reading(&self, lines: Vec<ReportLine>) -> Reading {
        Reading { batch: ReportBatch { lines, end_offset: self.offset }, unreadable: None }
    }

    fn give_up(&self, lines: Vec<ReportLine>, why: &Unreadable) -> Reading {
        Reading { unreadable: Some(why.to_string()), ..self.reading(lines) }
    }
}

/// The report, with every text in it made legible. What is the host's to say is refused.
fn parse(line: &[u8]) -> serde_json::Result<ReportLine> {
    let line: ReportLine = if is_plain(line) {
        serde_json::from_slice(line)?
    } else {
        let mut value = serde_json::from_slice(line)?;
        make_legible(&mut value);
        serde_json::from_value(value)?
    };
    match line.report.is_of_host() {
        true => Err(serde_json::Error::custom(format!("`{}` is not a worker's to say", line.report.name()))),
        false => Ok(line),
    }
}

/// Fills as much of the buffer as the file has.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Stands in the log where a line could not be understood. The runner says so, not the worker.
fn unreadable_line(line: &[u8], error: &serde_json::Error) -> ReportLine {
    let start: String = String::from_utf8_lossy(&line[..line.len().min(80)]).escape_debug().collect();
    let message = format!("a report does not parse ({error}): {start}");
    ReportLine { elapsed_ms: 0, report: Report::Warning { code: "unreadable_report".into(), message } }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use drydock_spec::Stage;
    use drydock_spec::report::Finished;
    use proptest::prelude::*;

    use super::*;

    fn stage(elapsed_ms: u64) -> ReportLine {
        ReportLine { elapsed_ms, report: Report::Stage { stage: Stage::Train } }
    }

    fn finished() -> ReportLine {
        let finished = Finished { steps: 1, train_loss: Some(1.0), tokens: 1, peak_rss_bytes: 1 };
        ReportLine { elapsed_ms: 9, report: Report::Finished(finished) }
    }

    fn text(line: &ReportLine) -> String {
        serde_json::to_string(line).unwrap() + "\n"
    }

    fn file_with(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn read_all(path: &Path, offset: u64) -> Reading {
        let mut reader = ReportReader::open(path, offset, false).unwrap();
        let mut all = Reading::default();
        loop {
            let reading = reader.read_once().unwrap();
            let nothing = reading.batch.lines.is_empty();
            all.batch.lines.extend(reading.batch.lines);
            all.batch.end_offset = reading.batch.end_offset;
            all.unreadable = reading.unreadable;
            if nothing || all.unreadable.is_some() {
                return all;
            }
        }
    }

    #[test]
    fn a_line_without_its_newline_is_not_there_yet() {
        let whole = text(&stage(1));
        let mut file = file_with(whole.as_bytes());
        file.write_all(&whole.as_bytes()[..10]).unwrap();
        let reading = read_all(file.path(), 0);
        assert_eq!(reading.batch, ReportBatch { lines: vec![stage(1)], end_offset: whole.len() as u64 });
        file.write_all(&whole.as_bytes()[10..]).unwrap();
        assert_eq!(read_all(file.path(), reading.batch.end_offset).batch.lines, [stage(1)]);
    }

    #[test]
    fn what_does_not_parse_is_kept_and_escaped() {
        let file = file_with(b"{\"elapsed_ms\":1,\"type\":\"succeeded\"}\n\x1b[31m\xff\n\n");
        let reading = read_all(file.path(), 0);
        assert_eq!(reading.batch.lines.len(), 3);
        for line in &reading.batch.lines {
            let Report::Warning { code, message } = &line.report else { panic!("{line:?}") };
            assert_eq!(code, "unreadable_report");
            assert!(!message.contains('\x1b'), "{message}");
        }
    }

    #[test]
    fn commands_to_terminals_are_written_out_in_what_parses() {
        let line = br#"{"elapsed_ms":1,"type":"warning","code":"x\u001b[2J","message":"50 %\r100 %\u202e\u0000 \"\\"}"#;
        let file = file_with(&[line, &b"\n"[..]].concat());
        let Report::Warning { code, message } = &read_all(file.path(), 0).batch.lines[0].report else { panic!() };
        assert_eq!(code, "x\\u{1b}[2J");
        assert_eq!(message, "50 %\\r100 %\\u{202e}\\u{0} \"\\");
    }

    #[test]
    fn a_report_says_nothing_but_what_its_type_has() {
        let forged = r#"{"elapsed_ms":1,"type":"stage","stage":"train","seq":1,"attempt":9,"job":"x","at_ms":0}"#;
        let file = file_with(forged.as_bytes());
        std::fs::OpenOptions::new().append(true).open(file.path()).unwrap().write_all(b"\n").unwrap();
        assert_eq!(read_all(file.path(), 0).batch.lines, [stage(1)]);
    }

    #[test]
    fn a_worker_cannot_say_how_much_of_a_gpu_it_holds() {
        let reading = drydock_spec::report::GpuReading {
            uuid: "GPU-0".into(),
            memory_used_bytes: 1,
            memory_peak_bytes: 1,
            utilization_percent: None,
            power_watts: None,
        };
        let forged = ReportLine { elapsed_ms: 1, report: Report::Gpus { gpus: vec![reading] } };
        let Report::Warning { message, .. } =
            &read_all(file_with(text(&forged).as_bytes()).path(), 0).batch.lines[0].report
        else {
            panic!("it is believed")
        };
        assert!(message.contains("not a worker's to say"), "{message}");
    }

    #[test]
    fn numbers_that_are_none_do_not_parse() {
        for number in ["NaN", "Infinity", "1e999", "-1", "18446744073709551616"] {
            let line = format!("{{\"elapsed_ms\":{number},\"type\":\"stage\",\"stage\":\"train\"}}\n");
            let file = file_with(line.as_bytes());
            assert_eq!(read_all(file.path(), 0).batch.lines[0].report.name(), "warning", "{number}");
        }
    }

    #[test]
    fn two_hundred_megabytes_without_a_newline_are_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(200 << 20).unwrap();
        let mut reader = ReportReader::open(file.path(), 0, false).unwrap();
        let reading = reader.read_once().unwrap();
        assert_eq!((reading.batch.end_offset, reader.buffer.capacity()), (0, READ_BYTES));
        assert!(reading.unreadable.unwrap().contains("longer than"));
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let file = file_with(&vec![b'x'; 2 * READ_BYTES]);
        let reading = read_all(file.path(), 0);
        assert!(reading.unreadable.unwrap().contains("longer than"));
        assert_eq!(reading.batch.end_offset, 0);
    }

    #[test]
    fn endless_nonsense_is_given_up() {
        let file = file_with(&vec![b'\n'; 2_000_000]);
        assert!(read_all(file.path(), 0).unreadable.unwrap().contains("do not parse"));
    }

    #[test]
    fn nothing_counts_after_the_final_report() {
        let file = file_with((text(&finished()) + &text(&stage(2))).as_bytes());
        let reading = read_all(file.path(), 0);
        assert_eq!(reading.batch.lines, [finished()]);
        assert_eq!(reading.unreadable.unwrap(), "a report follows the final one");
    }

    #[test]
    fn a_file_that_shrinks_is_noticed() {
        let file = file_with(text(&stage(1)).as_bytes());
        let mut reader = ReportReader::open(file.path(), 0, false).unwrap();
        reader.read_once().unwrap();
        file.as_file().set_len(3).unwrap();
        assert!(reader.read_once().unwrap().unreadable.unwrap().contains("shrank"));
    }

    proptest! {
        #[test]
        fn reading_in_pieces_gives_what_was_written(
            count in 1..200usize,
            cuts in proptest::collection::vec(0..10_000usize, 0..10),
        ) {
            let lines: Vec<_> = (0..count as u64).map(stage).collect();
            let content: String = lines.iter().map(text).collect();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut % content.len()).collect();
            cuts.push(content.len());
            cuts.sort_unstable();
            let mut file = file_with(b"");
            let (mut written, mut offset, mut read) = (0, 0, Vec::new());
            for cut in cuts {
                file.write_all(&content.as_bytes()[written..cut]).unwrap();
                written = cut;
                // A new reader each time, as after a restart.
                let reading = read_all(file.path(), offset);
                offset = reading.batch.end_offset;
                read.extend(reading.batch.lines);
            }
            prop_assert_eq!(read, lines);
        }
    }
}
