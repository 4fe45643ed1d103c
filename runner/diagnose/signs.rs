//! What kind of failure the worker's own words tell of, where the facts leave it open.
//!
//! The last resort. Facts are asked first; only if they say no more than that the worker went down is the root among
//! what it printed ([`Root`]) held against what drivers, systems and languages are known to say. Printed text may be
//! anybody's: it names a kind more exactly, and never one that would have the job tried again. What no rule knows stays
//! unexplained. The words are those of the CUDA driver API's `CUresult`, of PyTorch's CUDA allocator, of NVIDIA's Xid
//! catalogue, of cudarc, and of errno(3).

use std::sync::LazyLock;

use drydock_spec::{Failure, FailureKind};
use regex::RegexSet;

use super::root::{LEAD, Root};
use super::template::Template;
use super::{End, Ending};

/// What there is to read of a worker that did not say why it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// Its exit code.
    pub exit: i64,
    /// Why, by what it printed.
    pub root: Option<Root>,
    /// Whether the exit says no more than that it ended.
    pub is_open: bool,
}

/// Letters of the root that a message quotes.
const QUOTED: usize = 300;
/// What Rust's runtime leaves with after a panic.
const PANICKED: i64 = 101;
/// Aborted by itself, which a program does after it has said why.
const ABORTED: i64 = 128 + 6;
/// The last exit code that a program chooses itself; those above are shells' and signals'.
const LAST_OWN: i64 = 124;

/// What the root says of GPUs, and what languages say of memory. Behind [`LEAD`]; the first that fits wins.
static SAID: LazyLock<RegexSet> = LazyLock::new(|| {
    let expressions = SIGNS.iter().map(|(_, sign)| format!(r"{LEAD}(?:DriverError\()?(?:{sign})"));
    RegexSet::new(expressions).expect("the expressions are constants")
});

const SIGNS: [(FailureKind, &str); 7] = [
    (
        FailureKind::GpuHardware,
        r"CUDA_ERROR_(?:ECC_UNCORRECTABLE|NVLINK_UNCORRECTABLE)|CUDA error: uncorrectable (?:ECC|NVLink) error|NVRM: Xid \([^)]*\): (?:48|63|64|74|79|94|95)\b|NVRM: .{0,40}GPU .{0,40}has fallen off the bus|Unable to determine the device handle for (?:GPU|gpu) ?\S* (?:GPU is lost|Unknown Error)|GPU is lost|.{0,60}GPU has fallen off the bus",
    ),
    (
        FailureKind::GpuDriver,
        r"CUDA_ERROR_(?:UNSUPPORTED_PTX_VERSION|INVALID_PTX|NO_BINARY_FOR_GPU|SYSTEM_DRIVER_MISMATCH|COMPAT_NOT_SUPPORTED_ON_DEVICE|INSUFFICIENT_DRIVER|STUB_LIBRARY)\b|cudaErrorInsufficientDriver|CUDA driver version is insufficient|CUDA error: (?:CUDA driver version is insufficient|no kernel image is available|the provided PTX was compiled|system has unsupported display driver)|no kernel image is available for execution|Driver/library version mismatch|NVML: Driver/library version mismatch|The NVIDIA driver on your system is too old",
    ),
    (
        FailureKind::GpuMissing,
        r#"CUDA_ERROR_(?:NO_DEVICE|SYSTEM_NOT_READY)\b|CUDA error: no CUDA-capable device|no CUDA-capable device is detected|Unable to dynamically load the "?(?:cuda|nvcuda)"? shared library|libcuda\.so\S* cannot open shared object file|Found no NVIDIA driver on your system|No CUDA GPUs are available|NVIDIA-SMI has failed because it couldn't communicate"#,
    ),
    (
        FailureKind::GpuOutOfMemory,
        r"CUDA_ERROR_OUT_OF_MEMORY\b|CUDA out of memory|CUDA error: out of memory|cudaErrorMemoryAllocation|torch\.(?:cuda\.)?OutOfMemoryError: |OutOfMemoryError: CUDA",
    ),
    (
        FailureKind::GpuFault,
        r"CUDA_ERROR_(?:ILLEGAL_ADDRESS|LAUNCH_FAILED|LAUNCH_TIMEOUT|MISALIGNED_ADDRESS|ILLEGAL_INSTRUCTION|INVALID_ADDRESS_SPACE|INVALID_PC|HARDWARE_STACK_ERROR|ASSERT)\b|CUDA error: (?:an illegal memory access|unspecified launch failure|misaligned address|an illegal instruction|device-side assert)|NVRM: Xid \([^)]*\): (?:13|31|43|45)\b",
    ),
    (
        FailureKind::OutOfMemory,
        r"MemoryError(?::|$)|numpy\.\S*MemoryError: |memory allocation of \d+ bytes failed|std::bad_alloc|\S*DefaultCPUAllocator: (?:can't|not enough)|.{0,40}DefaultCPUAllocator: (?:can't allocate|not enough) memory",
    ),
    (FailureKind::NotPermitted, r"PermissionError(?::|$)|(?i:bad system call)"),
];

/// What the numbers of the system's errors say.
fn of_errno(number: u32) -> Option<FailureKind> {
    match number {
        // EPERM, EACCES, EROFS: of a container, what may not be written to is mounted read-only.
        1 | 13 | 30 => Some(FailureKind::NotPermitted),
        // ENOMEM
        12 => Some(FailureKind::OutOfMemory),
        // ENOSPC, EDQUOT
        28 | 122 => Some(FailureKind::DiskFull),
        _ => None,
    }
}

impl Traces {
    /// The traces of a worker whose end nobody has explained; `None` where somebody has: drydock, the kernel's count
    /// of memory, or the worker in a report.
    #[must_use]
    pub fn of(ending: &Ending, failure: &Failure, root: Option<Root>) -> Option<Self> {
        let End::Seen(exit) = &ending.end else { return None };
        let unsaid = match failure.kind {
            FailureKind::Crashed | FailureKind::Unexplained => true,
            // Broken by what was said, or by nothing having been said?
            FailureKind::ContractBroken => ending.broken.is_none() && ending.terminated.is_none(),
            _ => false,
        };
        let reported = matches!(ending.last, Some(drydock_spec::Report::Failed(_)));
        let is_open = (0..=LAST_OWN).contains(&exit.code) || exit.code == ABORTED;
        (unsaid && !reported).then_some(Self { exit: exit.code, root, is_open })
    }

    /// The failure with the kind that the traces tell of, and with what they say.
    #[must_use]
    pub fn explain(&self, failure: Failure) -> Failure {
        let Some(root) = &self.root else { return failure };
        let known = self.is_open.then(|| kind(&root.message)).flatten();
        let panicked = root.is_panic() && self.exit == PANICKED && failure.kind == FailureKind::Unexplained;
        let Failure { stage, message, .. } = &failure;
        let quoted: String = root.message.chars().take(QUOTED).collect();
        let message = match known {
            Some(_) => format!("{message}; it had printed: {quoted}"),
            None => format!("{message}; it had printed: {quoted} (what that comes from is not known)"),
        };
        match known {
            Some(kind) => {
                let next =
                    if kind == FailureKind::DiskFull && names_scratch(&root.message) { SCRATCH } else { kind.hint() };
                let hint = format!("{next} (judged by what the worker printed, which may mislead)");
                Failure { stage: *stage, ..Failure::new(kind, message).with_hint(hint) }
            }
            None if panicked => Failure { stage: *stage, ..Failure::new(FailureKind::Crashed, message) },
            None => Failure { message, ..failure },
        }
    }
}

/// Whether the words name the place of scratch files in the container: there another limit holds than for the output.
#[must_use]
pub fn names_scratch(words: &str) -> bool {
    words
        .split(|c: char| c.is_whitespace() || "'\"`:,".contains(c))
        .any(|word| word == "/tmp" || word.starts_with("/tmp/"))
}

/// What to do when scratch files have no more room.
const SCRATCH: &str =
    "raise sandbox.tmp in the gateway's configuration; a job's limits.memory_mib has to hold it as well";

/// What kind of failure speaks so, if that is known.
#[must_use]
pub fn kind(root: &str) -> Option<FailureKind> {
    let said = SAID.matches(root).iter().next().map(|first| SIGNS[first].0);
    said.or_else(|| Template::of(root).system_error().and_then(of_errno))
}

#[cfg(test)]
mod tests {
    use drydock_spec::Stage;

    use super::super::root;
    use super::*;

    fn of_output(output: &str) -> Option<FailureKind> {
        root::of_output(output).and_then(|root| kind(&root.message))
    }

    #[test]
    fn what_drivers_and_systems_say_when_they_fail_is_known() {
        use FailureKind::*;
        for (output, expected) in [
            ("Error: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")", GpuOutOfMemory),
            (
                "Error: training failed: DriverError(CUDA_ERROR_NO_DEVICE, \"no CUDA-capable device is detected\")",
                GpuMissing,
            ),
            (
                "DriverError(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, \"the provided PTX was compiled\") when loading cast",
                GpuDriver,
            ),
            ("Failed to initialize NVML: Driver/library version mismatch", GpuDriver),
            ("error while loading shared libraries: libcuda.so.1: cannot open shared object file", GpuMissing),
            ("NVRM: Xid (PCI:0000:2b:00): 79, pid=77, GPU has fallen off the bus.", GpuHardware),
            ("[ 1234.567890] NVRM: Xid (PCI:0000:06:00): 31, pid=77, MMU Fault", GpuFault),
            ("NVRM: Xid (PCI:0000:06:00): 94, pid=77, Contained: SM", GpuHardware),
            ("Unable to determine the device handle for GPU0000:2B:00.0: GPU is lost", GpuHardware),
            ("memory allocation of 1099511627776 bytes failed", OutOfMemory),
            ("cp: cannot create regular file '/x': Permission denied", NotPermitted),
            ("Error: cannot write \"/in/x\": Keine Berechtigung (os error 13)", NotPermitted),
            ("Error: write: Auf dem Gerät ist kein Speicherplatz mehr verfügbar (os error 28)", DiskFull),
        ] {
            assert_eq!(of_output(&format!("step 1\n{output}\n")), Some(expected), "{output}");
        }
        let frame = "Traceback (most recent call last):\n  File \"/app/t.py\", line 3, in step\n    x()\n";
        for (error, expected) in [
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", GpuOutOfMemory),
            ("RuntimeError: CUDA error: an illegal memory access was encountered", GpuFault),
            ("RuntimeError: CUDA error: uncorrectable ECC error encountered", GpuHardware),
            ("RuntimeError: No CUDA GPUs are available", GpuMissing),
            ("RuntimeError: Found no NVIDIA driver on your system. Please check", GpuMissing),
            ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).", GpuDriver),
            ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 9 GiB", OutOfMemory),
            ("MemoryError", OutOfMemory),
            ("PermissionError: [Errno 13] Permission denied: '/in/model/x'", NotPermitted),
            ("OSError: [Errno 28] 残り容量がありません: '/out/x'", DiskFull),
            ("OSError: [Errno 12] Cannot allocate memory", OutOfMemory),
        ] {
            assert_eq!(of_output(&format!("{frame}{error}\n")), Some(expected), "{error}");
        }
    }

    fn explained(exit: i64, output: &str) -> Failure {
        let traces = Traces { exit, root: root::of_output(output), is_open: true };
        traces.explain(Failure::new(FailureKind::Unexplained, "it left").at(Stage::Load))
    }

    #[test]
    fn a_panic_is_a_crash_unless_it_tells_of_something_better_known() {
        let panics =
            |words: &str| format!("thread 'main' (7) panicked at src/rows.rs:3:1:\n{words}\nnote: run with x\n");
        assert_eq!(explained(101, &panics("index out of bounds")).kind, FailureKind::Crashed);
        assert_eq!(explained(3, &panics("index out of bounds")).kind, FailureKind::Unexplained, "it went on");
        let refused = panics("no socket: Os { code: 1, kind: PermissionDenied, message: \"Operation not permitted\" }");
        assert_eq!(explained(101, &refused).kind, FailureKind::NotPermitted);
        let exception = "Traceback (most recent call last):\n  File \"/a/t.py\", line 3, in f\nKeyError: 'x'\n";
        assert_eq!(explained(101, exception).kind, FailureKind::Unexplained);
    }

    #[test]
    fn where_scratch_files_have_no_room_more_output_is_no_advice() {
        let hint = |path: &str| explained(1, &format!("Error: cannot write {path}: No space left on device\n")).hint;
        assert!(hint("/tmp/part-7").starts_with("raise sandbox.tmp"), "{}", hint("/tmp/part-7"));
        assert!(hint("/out/tmp/x").starts_with("raise limits.disk_mib"), "{}", hint("/out/tmp/x"));
    }

    #[test]
    fn words_that_are_not_the_programs_own_are_no_sign() {
        let frame = "Traceback (most recent call last):\n  File \"/app/t.py\", line 3, in step\n";
        for output in [
            "UserWarning: CUDA out of memory may follow\n".to_owned(),
            "row 7: {\"text\": \"DriverError(CUDA_ERROR_OUT_OF_MEMORY)\"}\n".to_owned(),
            "sample: CUDA out of memory. Tried to allocate 2 GiB\n".to_owned(),
            "> CUDA error: an illegal memory access was encountered\n".to_owned(),
            format!("{frame}    raise RuntimeError(\"CUDA out of memory\")\nKeyError: 'x'\n"),
            format!("{frame}ValueError: row 7 is bad: CUDA out of memory\n"),
            format!("{frame}ValueError: cannot parse 'CUDA error: out of memory'\n"),
            format!("{frame}KeyError: '[Errno 13] Permission denied'\n"),
            "error: no such thing as CUDA_ERROR_OUT_OF_MEMORY here\n".to_owned(),
        ] {
            assert_eq!(of_output(&output), None, "{output}");
        }
    }

    #[test]
    fn no_sign_has_a_job_tried_again() {
        assert!(SIGNS.iter().all(|(kind, _)| !kind.retryable()));
        assert!((0..200).filter_map(of_errno).all(|kind| !kind.retryable()));
    }

    fn traces(exit: i64, message: Option<&str>) -> Traces {
        let root = message.map(|message| Root { message: message.into(), frame: None, at: 0..0 });
        Traces { exit, root, is_open: exit != 139 }
    }

    #[test]
    fn the_message_quotes_what_it_is_judged_by() {
        let plain = || Failure::new(FailureKind::Unexplained, "exit code 1").at(Stage::Train);
        let judged = traces(1, Some("CUDA out of memory. Tried")).explain(plain());
        assert_eq!((judged.kind, judged.stage), (FailureKind::GpuOutOfMemory, Some(Stage::Train)));
        assert_eq!(judged.message, "exit code 1; it had printed: CUDA out of memory. Tried");
        assert!(judged.hint.ends_with("(judged by what the worker printed, which may mislead)"), "{}", judged.hint);
        let unknown = traces(1, Some("KeyError: 'x'")).explain(plain());
        assert_eq!(unknown.kind, FailureKind::Unexplained);
        assert!(unknown.message.ends_with("KeyError: 'x' (what that comes from is not known)"), "{}", unknown.message);
        assert_eq!(traces(1, None).explain(plain()), plain());
    }

    #[test]
    fn a_signal_that_has_a_meaning_is_not_talked_away() {
        let crashed = Failure::new(FailureKind::Crashed, "killed by SIGSEGV");
        let judged = traces(139, Some("CUDA out of memory")).explain(crashed);
        assert_eq!(judged.kind, FailureKind::Crashed);
    }
}
