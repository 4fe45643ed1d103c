//! What a program printed about its own end, found among everything else that it printed.
//!
//! Not the last line decides, which is often what followed from the failure, and not the first that looks like one,
//! which may have been mended; but the form in which programs speak when they die: an uncaught exception, a panic, an
//! error of a driver, and only then a line that calls itself an error. Of several the first of the last group counts:
//! what came long before did not end the program, what comes right after follows from it.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::lines::{self, Line};
use crate::legible::legible;

/// Why a program died, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    pub message: String,
    /// The place in the program, without the line, which moves with every version: `train.py:forward`.
    pub frame: Option<String>,
    /// Where in the output it is told, in bytes.
    pub at: Range<usize>,
}

impl Root {
    /// Whether it is a panic of Rust: only those are told of with a source file of Rust's.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        self.frame.as_ref().is_some_and(|frame| frame.ends_with(".rs"))
    }
}

/// Letters of a message that are kept.
const MOST_CHARS: usize = 600;
/// Lines of other things that may stand between two failures of which one follows from the other.
const CLOSE: usize = 30;
/// Lines that an exception's account may be long, those of other processes among them.
const LONGEST_ACCOUNT: usize = 2000;
/// Lines that are looked at in all accounts together: who prints nothing but beginnings gets no more time than others.
const MOST_LOOKED_AT: usize = 100_000;

/// What may stand before an error on its line: clauses that speak of an error themselves, or the program's path. What
/// stands behind other words, such as `text: `, is not the program's own.
pub(super) const LEAD: &str = r#"^(?:(?:[^"'`:]|:\S)*?(?i:error|fail|fatal|panic|exception|unable|cannot|could not|abort|critical)(?:[^"'`:]|:\S)*: |called `Result::unwrap\(\)` on an `Err` value: |(?:/[\w./+-]+|[\w-]+\.(?:py|sh)): )*"#;

fn expression(text: &str) -> Regex {
    Regex::new(text).expect("the expression is a constant")
}

/// Words without which a line is nothing to look at.
static WORTH_A_LOOK: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"(?i)traceback|panicked at|terminate called|error|fatal|critical|exception|panic|CUDA|NVRM|NVML|NVIDIA|fault|illegal instruction|stack overflow|killed|memory allocation of|permi|denied|no space|bad system call|unable to",
    )
});
static PYTHON_FRAME: LazyLock<Regex> = LazyLock::new(|| expression(r#"^\s+File "([^"]+)", line \d+, in (\S+)"#));
/// An exception's name, alone or before its message. Only those of the language itself come without their module.
static PYTHON_ERROR: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"^(?:[A-Z]\w*(?:Error|Exception|Exit|Group|Interrupt|Iteration|Warning)|(?:[A-Za-z_]\w*\.)+_?[A-Z]\w*)(?::|$)",
    )
});
/// What Python says before an exception that ends nothing.
static PYTHON_WENT_ON: LazyLock<Regex> =
    LazyLock::new(|| expression(r"^(?:Exception ignored in|Error in atexit|--- Logging error)"));
static PANIC: LazyLock<Regex> = LazyLock::new(|| {
    expression(r"thread '[^']*'(?: \(\d+\))? panicked at (?:'(?P<old>.*)', )?(?P<file>[^ :]+):\d+(?::\d+)?:?$")
});
/// What another failure has left behind: of a thread, of a process on the other end, of a child.
static FOLLOWING: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"(?x) PoisonError | RecvError | SendError | SendTimeoutError | JoinError | Disconnected
          | ChildFailedError | DistBackendError | ProcessRaisedException | ProcessExitedException | BrokenProcessPool
          | BrokenPipeError | ConnectionResetError | CalledProcessError | KeyboardInterrupt | SystemExit
          | exited\ unexpectedly | (?i: NCCL\ error | connection\ closed\ by\ peer | job\ failed
          | exit(?: ed | s )? \s (?: with \s )? (?: code | status ) | (?: child | process ) \b .{0,40} \b failed )",
    )
});
static CPLUSPLUS: LazyLock<Regex> =
    LazyLock::new(|| expression(r"terminate called after throwing an instance of '(.+)'"));
static DRIVER: LazyLock<Regex> = LazyLock::new(|| {
    expression(&format!(
        r"{LEAD}(?:DriverError\(|CUDA_ERROR_\w+|CUDA error|CUDA out of memory|CUDA driver|NVRM: |NVML: |Driver/library version|GPU is lost|(?:torch\.)?(?:cuda\.)?OutOfMemoryError: |Failed to initialize NVML|Unable to d|[Ee]rror while loading shared libraries|libcuda\S*: )"
    ))
});
static SAYS_SO: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"^(?:\S+: )?(?i:fatal|error|panic|critical|exception)\b[^:]{0,40}:|^(?:\S+: )?(?i:fatal error|segmentation fault|bus error|illegal instruction|bad system call|stack overflow|killed)\b|^memory allocation of \d+ bytes failed|^(?:[A-Z]\w*Error|[\w.]+\.[A-Z]\w*Error): |(?i:permission denied|operation not permitted|no space left on device)$|\(os error \d+\)$",
    )
});
static NO_ERROR: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r#"(?i)^\W*(?:\S+: )?(?:user|future|deprecation|runtime)?warn(?:ing)?\b|\bDeprecationWarning\b|\bignored\b|^\s*[{"'>]"#,
    )
});

/// A failure that a program tells of.
struct Told {
    /// The lines of the account.
    lines: Range<usize>,
    message: String,
    frame: Option<String>,
}

impl Told {
    fn follows(&self) -> bool {
        FOLLOWING.is_match(&self.message)
    }
}

/// What the text, such as the end of a container's output, says about why its program died.
#[must_use]
pub fn of_output(output: &str) -> Option<Root> {
    let lines = lines::of(output);
    let telling: Vec<usize> = (0..lines.len()).filter(|at| WORTH_A_LOOK.is_match(&lines[*at].text)).collect();
    let told = first_of_the_last(deaths(&lines, &telling))
        .or_else(|| first_of_the_last(said(&lines, &telling, |line| DRIVER.is_match(line.bare()))))
        .or_else(|| first_of_the_last(said(&lines, &telling, calls_itself_an_error)))?;
    let at = lines[told.lines.start].at.start..lines[told.lines.end - 1].at.end;
    Some(Root { message: told.message, frame: told.frame, at })
}

/// The same of an output whose beginning was cut off, be it in the middle of a line: half a line may read as what it is
/// not.
#[must_use]
pub fn of_tail(output: &str) -> Option<Root> {
    let whole = output.find('\n').map_or(0, |end| end + 1);
    let root = of_output(&output[whole..])?;
    Some(Root { at: root.at.start + whole..root.at.end + whole, ..root })
}

/// Groups of failures stand close together; the last group has one that ended the program, unless all in it followed
/// from an earlier one.
fn first_of_the_last(told: Vec<Told>) -> Option<Told> {
    let mut chosen: Option<Told> = None;
    let mut end = 0;
    for one in told {
        let new_group = one.lines.start > end + CLOSE;
        end = end.max(one.lines.end);
        let better = match &chosen {
            None => true,
            Some(before) => !one.follows() && (new_group || before.follows()),
        };
        if better {
            chosen = Some(one);
        }
    }
    chosen
}

/// The forms in which programs die, in the order of their lines.
fn deaths(lines: &[Line<'_>], telling: &[usize]) -> Vec<Told> {
    let mut left = MOST_LOOKED_AT;
    let of = |at: &usize| {
        let account = &lines[..lines.len().min(at + 1 + LONGEST_ACCOUNT.min(left))];
        exception(account, *at, &mut left).or_else(|| panic(lines, *at)).or_else(|| thrown(lines, *at))
    };
    // The last ones matter most.
    let mut told: Vec<_> = telling.iter().rev().filter_map(of).collect();
    told.reverse();
    told
}

/// An exception of Python that was not caught, whose account begins here.
fn exception(lines: &[Line<'_>], begins: usize, left: &mut usize) -> Option<Told> {
    let header = &lines[begins];
    if !header.bare().ends_with("Traceback (most recent call last):") || NO_ERROR.is_match(header.spoken().1) {
        return None;
    }
    let (speaker, _) = header.spoken();
    if begins.checked_sub(1).is_some_and(|before| PYTHON_WENT_ON.is_match(lines[before].bare())) {
        return None;
    }
    let mut frames: Vec<(&str, &str)> = Vec::new();
    for (at, line) in lines.iter().enumerate().skip(begins + 1) {
        *left = left.saturating_sub(1);
        // Processes that write to one log interrupt each other.
        let (by, said) = line.spoken();
        if by != speaker {
            continue;
        }
        let said = said.find("  File \"").map_or(said, |from| &said[from..]);
        if let Some(frame) = PYTHON_FRAME.captures(said) {
            frames.extend(frame.get(1).zip(frame.get(2)).map(|(file, function)| (file.as_str(), function.as_str())));
        } else if !frames.is_empty() && PYTHON_ERROR.is_match(line.bare()) {
            // The program's own place says more than that in a library, which everything passes through.
            let own = frames.iter().rfind(|(file, _)| !file.contains("site-packages") && !file.contains("/lib/python"));
            let frame = own.or(frames.last()).map(|(file, function)| format!("{}:{function}", file_name(file)));
            return Some(Told { lines: begins..at + 1, message: cut(line.bare()), frame });
        }
    }
    None
}

/// A panic of Rust.
fn panic(lines: &[Line<'_>], at: usize) -> Option<Told> {
    let found = lines[at].text.contains("panicked at").then(|| PANIC.captures(&lines[at].text))??;
    let (message, end) = match found.name("old") {
        Some(message) => (message.as_str(), at + 1),
        None => (lines.get(at + 1).map_or("", Line::bare), (at + 2).min(lines.len())),
    };
    Some(Told { lines: at..end, message: cut(message), frame: Some(place(&found["file"])) })
}

/// An exception of C++ that was not caught.
fn thrown(lines: &[Line<'_>], at: usize) -> Option<Told> {
    let found = lines[at].text.contains("terminate called").then(|| CPLUSPLUS.captures(&lines[at].text))??;
    let what = lines[at + 1..].iter().take(3).find_map(|line| line.bare().trim_start().strip_prefix("what():"));
    let message = cut(&format!("{}: {}", &found[1], what.unwrap_or_default().trim()));
    Some(Told { lines: at..(at + 2).min(lines.len()), message, frame: None })
}

/// Lines that speak of an error in a certain way.
fn said(lines: &[Line<'_>], telling: &[usize], so: impl Fn(&Line<'_>) -> bool) -> Vec<Told> {
    let telling = telling.iter().filter(|at| so(&lines[**at]) && !NO_ERROR.is_match(lines[**at].spoken().1));
    telling.map(|at| Told { lines: *at..at + 1, message: cut(lines[*at].bare()), frame: None }).collect()
}

fn calls_itself_an_error(line: &Line<'_>) -> bool {
    let (mark, said) = line.marked();
    // A logger's mark counts as well as the program's own word.
    let mark = mark.trim_start();
    let glog = mark.starts_with(['E', 'F']) && mark[1..].starts_with(|c: char| c.is_ascii_digit());
    let mark = mark.to_ascii_lowercase();
    glog || ["error", "fatal", "critical", "panic"].iter().any(|level| mark.contains(level)) || SAYS_SO.is_match(said)
}

fn cut(text: &str) -> String {
    legible(text.trim()).chars().take(MOST_CHARS).collect()
}

fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// A source file as it is called within its own package: where that lay when it was compiled says nothing.
fn place(file: &str) -> String {
    let inside = ["/registry/src/", "/git/checkouts/", "/rustc/"].iter().find_map(|root| {
        let (_, rest) = file.split_once(root)?;
        // The index's or the repository's folder.
        Some(rest.split_once('/')?.1)
    });
    inside.unwrap_or(file).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TORCH: &str = r#"Loading checkpoint shards: 100%|##########| 2/2
Traceback (most recent call last):
  File "/app/train.py", line 81, in <module>
    main()
  File "/app/train.py", line 64, in step
    out = model(**batch)
  File "/usr/lib/python3/site-packages/torch/nn/modules/module.py", line 1751, in _wrapped_call_impl
    return self._call_impl(*args, **kwargs)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 144.00 MiB. GPU 0 has a total capacity of 23.68 GiB

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/app/train.py", line 85, in <module>
    log.close()
ValueError: I/O operation on closed file.
"#;

    fn root(text: &str) -> (String, Option<String>) {
        let Root { message, frame, .. } = of_output(text).unwrap_or_else(|| panic!("nothing found in {text}"));
        (message, frame)
    }

    #[test]
    fn of_a_chain_of_exceptions_the_first_is_the_root_and_the_programs_own_place_its_frame() {
        let (message, frame) = root(TORCH);
        assert!(message.starts_with("torch.OutOfMemoryError: CUDA out of memory."), "{message}");
        assert_eq!(frame.as_deref(), Some("train.py:step"));
    }

    #[test]
    fn what_a_launcher_puts_before_each_line_is_no_part_of_it() {
        let ranked: String = TORCH.lines().map(|line| format!("[rank3]: {line}\n")).collect();
        assert_eq!(root(&ranked), root(TORCH));
        assert_eq!(root("2026-11-20 13:42:37,123 ERROR - no such layer").0, "no such layer");
    }

    #[test]
    fn of_several_panics_the_one_that_is_not_about_another_is_the_root() {
        let text = "thread 'b' (7) panicked at src/pool.rs:8:9:\ncalled `Result::unwrap()` on an `Err` value: PoisonError { .. }\n\
                    thread 'a' panicked at /opt/x/.cargo/registry/src/index-1/candle-core-0.9.1/src/shape.rs:77:5:\nindex out of bounds\n";
        assert_eq!(root(text), ("index out of bounds".into(), Some("candle-core-0.9.1/src/shape.rs".into())));
        let old = "thread 'main' panicked at 'no token left', src/main.rs:3:1\n";
        assert_eq!(root(old), ("no token left".into(), Some("src/main.rs".into())));
    }

    #[test]
    fn exceptions_of_cplusplus_and_errors_of_drivers_are_found() {
        let text =
            "terminate called after throwing an instance of 'std::runtime_error'\n  what():  bad file\nAborted\n";
        assert_eq!(root(text).0, "std::runtime_error: bad file");
        let text = "warning: error: may follow\nError: DriverError(CUDA_ERROR_NO_DEVICE, \"no CUDA-capable device\")\n";
        assert!(root(text).0.starts_with("DriverError(CUDA_ERROR_NO_DEVICE"), "{text}");
    }

    #[test]
    fn what_only_warns_or_tells_of_progress_is_no_root() {
        for text in ["", "step 3, loss 0.5\n", "UserWarning: error: deprecated\n", "0 errors\n"] {
            assert_eq!(of_output(text), None, "{text}");
        }
    }

    #[test]
    fn neither_noise_around_it_nor_a_later_error_changes_the_root() {
        let noise = "step 12, loss 0.5\nUserWarning: old option\n\n".repeat(50);
        let noisy = format!("{noise}{TORCH}{noise}ERROR: job failed with exit code 1\n");
        assert_eq!(root(&noisy), root(TORCH));
    }
}
