//! What a program printed, line by line as the program meant them.
//!
//! On the way to a log, lines are coloured, drawn over (progress bars), marked by launchers and loggers, and wrapped at
//! the width of a terminal. None of that is the program's word, and none of it may make one failure look like another.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

/// A line, free of colours and in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    pub text: Cow<'a, str>,
    /// Where in the output it stands, in bytes.
    pub at: Range<usize>,
    /// Whether its end was printed; if not, it may be cut off.
    pub is_ended: bool,
}

/// Widths that terminals have and that lines are wrapped at, in letters.
const WIDTHS: [usize; 3] = [80, 100, 120];
/// Letters by which the longest line of a text that is wrapped between words may fall short of the width.
const SHORT_OF: usize = 15;

static COLOUR: LazyLock<Regex> =
    LazyLock::new(|| expression(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)"));
/// A progress bar that nobody ended the line of.
static BAR: LazyLock<Regex> =
    LazyLock::new(|| expression(r"^[^|]{0,200}\d%\|[^|]{0,300}\|[^\[\]]{0,40}\[[^\]]{0,80}\]"));
/// What a launcher of several processes puts before each of their lines.
static SPEAKER: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"^(?:\[(?:rank|worker|pid)? ?\d+(?:,\d+)?\](?:<std(?:err|out)>)?:? ?|(?:rank|worker)[ -]?\d+ ?[:|] |\(\w+ pid=\d+[^)]{0,60}\) )",
    )
});
/// What a logger puts before a line: a time, a level, in this order or the other one.
static MARK: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"(?x)^ (?: \[ \s* \d+\.\d+ \] \s
          | [A-Z][a-z]{2} \s [\s\d]\d \s \d\d:\d\d:\d\d \s \S+ \s kernel: \s (?: \[ \s* \d+\.\d+ \] \s )?
          | \[? \d{4}[-/]\d\d[-/]\d\d [T\ ] \d\d:\d\d:\d\d (?: [.,]\d+ )? (?: Z | [+-]\d\d:?\d\d )? \]? [\s:-]*
          | [EFWI]\d{4} \s \d\d:\d\d:\d\d\.\d+ \s+ \d+ \s [^\]\s]+:\d+ \] \s
          | \[? (?: ERROR | FATAL | CRITICAL | PANIC ) \]? (?: : \w[\w.]*: | [\s:-]+ )
          | \[? (?i: error | fatal | critical | panic ) (?: \] | : | \s - ) \s+ )+",
    )
});
/// With what no line goes on that was wrapped.
static FRESH: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"^(?:\s|$|Traceback \(|thread '|note: run with |terminate called|During handling|The above exception|\[\w* ?\d|\d{4}-\d\d-\d\d|[\w.]+(?:Error|Exception|Warning): )",
    )
});

fn expression(text: &str) -> Regex {
    Regex::new(text).expect("the expression is a constant")
}

/// The lines of what was printed, those that a terminal wrapped joined again.
#[must_use]
pub fn of(output: &str) -> Vec<Line<'_>> {
    joined(pieces(output))
}

impl Line<'_> {
    /// Which of several processes says it, as a launcher marks it, and what it says.
    #[must_use]
    pub fn spoken(&self) -> (&str, &str) {
        self.text.split_at(SPEAKER.find(&self.text).map_or(0, |mark| mark.end()))
    }

    /// What is said, without the marks of launchers and loggers.
    #[must_use]
    pub fn bare(&self) -> &str {
        self.marked().1
    }

    /// A logger's mark, and what is said.
    #[must_use]
    pub fn marked(&self) -> (&str, &str) {
        let (_, said) = self.spoken();
        said.split_at(MARK.find(said).map_or(0, |mark| mark.end()))
    }
}

/// The output cut at the ends of lines and where a bar is drawn over, without colours.
fn pieces(output: &str) -> Vec<Line<'_>> {
    let mut found: Vec<Line<'_>> = Vec::with_capacity(output.len() / 48);
    let mut from = 0;
    for piece in output.split_inclusive(['\n', '\r']) {
        let at = from..from + piece.len();
        from = at.end;
        if piece == "\n"
            && let Some(before) = found.last_mut()
            && output[before.at.clone()].ends_with('\r')
        {
            before.at.end = at.end;
            continue;
        }
        let is_ended = piece.ends_with(['\n', '\r']);
        let piece = piece.trim_end_matches(['\n', '\r']);
        let text = if piece.contains('\x1b') { COLOUR.replace_all(piece, "") } else { Cow::Borrowed(piece) };
        found.push(Line { text: without_bar(text), at, is_ended });
    }
    found
}

fn without_bar(text: Cow<'_, str>) -> Cow<'_, str> {
    if !text.contains("%|") {
        return text;
    }
    let Some(end) = BAR.find(&text).map(|bar| bar.end()) else { return text };
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(&text[end..]),
        Cow::Owned(text) => Cow::Owned(text[end..].to_owned()),
    }
}

/// How the lines were wrapped, if they were.
enum Wrapping {
    /// Wherever the width ended.
    Anywhere(usize),
    BetweenWords(usize),
}

impl Wrapping {
    /// No line is longer than the width, and some reach it.
    fn of(lines: &[Line<'_>]) -> Option<Self> {
        let longest = lines.iter().map(|line| length(line)).max()?;
        let width = WIDTHS.into_iter().find(|width| (width - SHORT_OF..=*width).contains(&longest))?;
        let whole = lines.windows(2).filter(|pair| is_broken_anywhere(pair, width)).count();
        let broken = lines.windows(2).filter(|pair| is_broken_between_words(pair, width)).count();
        // Of lines that are broken between words a few end at the very width, too.
        if whole > 0 && whole * 4 >= broken {
            return Some(Self::Anywhere(width));
        }
        (broken > 0).then_some(Self::BetweenWords(width))
    }

    /// What stood between the two lines before they were taken apart, if they were one.
    fn seam(&self, pair: &[Line<'_>]) -> Option<&'static str> {
        match *self {
            Self::Anywhere(width) => is_broken_anywhere(pair, width).then_some(""),
            Self::BetweenWords(width) => is_broken_between_words(pair, width).then_some(" "),
        }
    }
}

fn joined(lines: Vec<Line<'_>>) -> Vec<Line<'_>> {
    let Some(wrapping) = Wrapping::of(&lines) else { return lines };
    let seams: Vec<_> = lines.windows(2).map(|pair| wrapping.seam(pair)).collect();
    let mut whole: Vec<Line<'_>> = Vec::with_capacity(lines.len());
    for (number, line) in lines.into_iter().enumerate() {
        let seam = number.checked_sub(1).and_then(|before| seams[before]);
        match (seam, whole.last_mut()) {
            (Some(seam), Some(begun)) => {
                let text = begun.text.to_mut();
                text.push_str(seam);
                text.push_str(&line.text);
                begun.at.end = line.at.end;
            }
            _ => whole.push(line),
        }
    }
    whole
}

/// Whether the first line ends where the width does, and not because its sentence does.
fn is_broken_anywhere(pair: &[Line<'_>], width: usize) -> bool {
    let (before, behind) = (&pair[0], &pair[1]);
    let sentence = before.text.ends_with('.') && !behind.text.starts_with(char::is_numeric);
    // As the first line of a panic does, behind the place.
    let place = before.text.strip_suffix(':').is_some_and(|place| place.ends_with(char::is_numeric));
    let ends = sentence || place;
    length(before) == width && goes_on(behind) && !ends
}

/// Whether the first word of the second line would not have gone onto the first one, and both read as if they were one:
/// lines of their own happen to be that long, too.
fn is_broken_between_words(pair: &[Line<'_>], width: usize) -> bool {
    let (before, behind) = (&pair[0], &pair[1]);
    let word = behind.text.split(' ').next().unwrap_or_default();
    let no_room = length(before) + 1 + word.chars().count() > width;
    let quoting = before.text.matches('"').count() % 2 == 1;
    let begins = word.starts_with(|c: char| c.is_uppercase() || c == '{') && !quoting;
    let ends = !before.text.ends_with(|c: char| c.is_alphanumeric() || c == ',');
    no_room && goes_on(behind) && (introduces(&before.text) || !begins && !ends)
}

/// Whether a word and a colon are the last of it.
fn introduces(text: &str) -> bool {
    text.strip_suffix(':').is_some_and(|word| word.ends_with(char::is_alphabetic))
}

fn goes_on(line: &Line<'_>) -> bool {
    line.is_ended && !FRESH.is_match(&line.text)
}

/// In letters.
fn length(line: &Line<'_>) -> usize {
    if line.text.is_ascii() { line.text.len() } else { line.text.chars().count() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(output: &str) -> Vec<String> {
        of(output).into_iter().map(|line| line.text.into_owned()).collect()
    }

    #[test]
    fn colours_and_bars_are_no_words() {
        assert_eq!(texts("\x1b[1;31mError\x1b[0m: x\r\n"), ["Error: x"]);
        assert_eq!(texts(" 10%|# | 1/9 [00:01<00:02]\r 20%|## | 2/9 [00:01<00:02]Error: x\n"), ["", "Error: x"]);
    }

    #[test]
    fn marks_of_launchers_and_loggers_are_told_from_what_is_said() {
        for marked in [
            "[rank3]: no such layer",
            "[1,0]<stderr>:no such layer",
            "(RayWorker pid=77, ip=10.0.0.1) no such layer",
            "2026-11-20 13:42:37,123 ERROR - no such layer",
            "[rank0]: E1120 13:42:37.123456 140 elastic/api.py:12] no such layer",
            "ERROR:root:no such layer",
            "[ 1234.567890] no such layer",
        ] {
            assert_eq!(of(marked)[0].bare(), "no such layer", "{marked}");
        }
    }

    #[test]
    fn what_rust_says_behind_every_panic_is_a_line_of_its_own() {
        let said = format!("{:x<100}", "cannot reach the tracker: ");
        let shown = format!("begin\n{said}\nnote: run with `RUST_BACKTRACE=1` to display a backtrace\n");
        assert_eq!(texts(&shown)[1], said);
    }

    #[test]
    fn a_line_that_a_terminal_wrapped_is_whole_again() {
        let said = "torch.cuda.Failure: the tensor that was asked for lies on a device that this program does not have at all, sir";
        for width in [80, 100] {
            let wrapped = format!("begin\n{}\n{}\nend\n", &said[..width], &said[width..]);
            assert_eq!(texts(&wrapped), ["begin", said, "end"], "at {width}");
        }
        let unwrapped = format!("begin\n{said}\nend\n");
        assert_eq!(texts(&unwrapped), ["begin", said, "end"]);
    }

    #[test]
    fn where_a_line_stands_is_known() {
        let output = "ä\x1b[1mb\r\nTraceback\n";
        let last = of(output).pop().unwrap();
        assert_eq!(&output[last.at], "Traceback\n");
    }
}
