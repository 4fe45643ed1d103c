//! What a program printed about its own end, found among everything else that it printed.
//!
//! Not the last line decides, which is often what followed from the failure, and not the first that looks like one,
//! which may be a warning; but the form in which programs speak when they die: an uncaught exception, a panic, an error
//! of a driver, and only then a line that calls itself an error.

use std::sync::LazyLock;

use regex::Regex;

/// Why a program died, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    pub message: String,
    /// The place in the program, without the line, which moves with every version: `train.py:forward`.
    pub frame: Option<String>,
}

/// Letters of a message that are kept.
const MOST_CHARS: usize = 600;

fn expression(text: &str) -> Regex {
    Regex::new(text).expect("the expression is a constant")
}

/// What loggers and launchers put before a line: `[rank0]: `, `2026-11-20 13:42:37,123 ERROR `.
static PREFIX: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"(?x)^ (?: \[ (?: rank | worker | pid | ) \s? \d+ \] :? \s )?
          (?: \[? \d{4}-\d\d-\d\d [T\ ] \d\d:\d\d:\d\d (?: [.,]\d+ )? Z? \]? [\s:-]* )?
          (?: \[? (?i: error | fatal | critical | panic ) \]? [\s:-]+ )?",
    )
});

static PYTHON_FRAME: LazyLock<Regex> = LazyLock::new(|| expression(r#"^\s+File "([^"]+)", line \d+, in (\S+)"#));
/// An exception's name, alone or before its message.
static PYTHON_ERROR: LazyLock<Regex> = LazyLock::new(|| {
    expression(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning|Timeout)?(?::|$)")
});
static PANIC: LazyLock<Regex> = LazyLock::new(|| {
    expression(r"^thread '[^']*'(?: \(\d+\))? panicked at (?:'(?P<old>.*)', )?(?P<file>[^ :]+):\d+(?::\d+)?:?$")
});
/// Panics over what another thread's panic has left behind.
static FOLLOWING: LazyLock<Regex> =
    LazyLock::new(|| expression("PoisonError|RecvError|SendError|SendTimeoutError|JoinError|Disconnected"));
static CPLUSPLUS: LazyLock<Regex> =
    LazyLock::new(|| expression(r"terminate called after throwing an instance of '(.+)'"));
static DRIVER: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"CUDA_ERROR_\w+|DriverError\(|CUDA error|CUDA out of memory|NVRM: Xid|NCCL error|Failed to initialize NVML",
    )
});
static SAYS_SO: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"(?i)^(?:\S+: )?(?:fatal|error|panic|critical|exception)\b[^:]{0,40}:|(?i)\b(?:fatal error|segmentation fault|bus error|illegal instruction|stack overflow|killed)\b",
    )
});
static NO_ERROR: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"(?i)^\W*(?:\S+: )?(?:user|future|deprecation|runtime)?warn(?:ing)?\b|\bDeprecationWarning\b|\bignored\b",
    )
});

/// What the text, such as the end of a container's output, says about why its program died.
#[must_use]
pub fn of_output(text: &str) -> Option<Root> {
    let lines: Vec<&str> = text.lines().collect();
    exception(&lines).or_else(|| panic(&lines)).or_else(|| thrown(&lines)).or_else(|| said(&lines))
}

fn bare(line: &str) -> &str {
    &line[PREFIX.find(line).map_or(0, |prefix| prefix.end())..]
}

fn cut(text: &str) -> String {
    text.trim().chars().take(MOST_CHARS).collect()
}

/// The first exception of Python that was not caught. Of a chain it is the one that the others followed from.
fn exception(lines: &[&str]) -> Option<Root> {
    let begins = lines.iter().position(|line| line.contains("Traceback (most recent call last):"))?;
    let mut frames: Vec<(String, String)> = Vec::new();
    for line in &lines[begins + 1..] {
        let line = line.find("  File \"").map_or(*line, |at| &line[at..]);
        if let Some(frame) = PYTHON_FRAME.captures(line) {
            frames.push((frame[1].to_owned(), frame[2].to_owned()));
        } else if !frames.is_empty() && PYTHON_ERROR.is_match(bare(line)) {
            // The program's own place says more than that in a library, which everything passes through.
            let own = frames.iter().rfind(|(file, _)| !file.contains("site-packages") && !file.contains("/lib/python"));
            let frame = own.or(frames.last()).map(|(file, function)| format!("{}:{function}", file_name(file)));
            return Some(Root { message: cut(bare(line)), frame });
        }
    }
    None
}

/// The first panic of Rust that is not about another one.
fn panic(lines: &[&str]) -> Option<Root> {
    let panics = lines.iter().enumerate().filter_map(|(at, line)| {
        let found = PANIC.captures(bare(line))?;
        let message = match found.name("old") {
            Some(message) => message.as_str(),
            None => lines.get(at + 1).copied().unwrap_or_default(),
        };
        Some(Root { message: cut(message), frame: Some(place(&found["file"])) })
    });
    let mut following = None;
    for panic in panics {
        if !FOLLOWING.is_match(&panic.message) {
            return Some(panic);
        }
        following.get_or_insert(panic);
    }
    following
}

fn thrown(lines: &[&str]) -> Option<Root> {
    let at = lines.iter().position(|line| CPLUSPLUS.is_match(line))?;
    let class = &CPLUSPLUS.captures(lines[at])?[1];
    let what = lines.iter().skip(at + 1).take(3).find_map(|line| line.trim_start().strip_prefix("what():"));
    Some(Root { message: cut(&format!("{class}: {}", what.unwrap_or_default().trim())), frame: None })
}

/// A line that speaks of an error: of a driver's before any other.
fn said(lines: &[&str]) -> Option<Root> {
    let of = |pattern: &Regex| {
        let line = lines.iter().find(|line| pattern.is_match(bare(line)) && !NO_ERROR.is_match(line))?;
        Some(Root { message: cut(bare(line)), frame: None })
    };
    let marked = || {
        // A logger's mark counts as well as the program's own word.
        let line = lines.iter().find(|line| {
            let prefix = &line[..line.len() - bare(line).len()];
            let prefix = prefix.to_ascii_lowercase();
            ["error", "fatal", "critical", "panic"].iter().any(|level| prefix.contains(level))
        })?;
        Some(Root { message: cut(bare(line)), frame: None })
    };
    of(&DRIVER).or_else(|| of(&SAYS_SO)).or_else(marked)
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
        let Root { message, frame } = of_output(text).unwrap_or_else(|| panic!("nothing found in {text}"));
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
                    thread 'a' panicked at /build/.cargo/registry/src/index-1/candle-core-0.9.1/src/shape.rs:77:5:\nindex out of bounds\n";
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
