//! Kind and fingerprint of a failure stay what they are, whatever else was printed and however it was written down.

use drydock_spec::{Failure, FailureKind, Stage};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::fingerprint::{Fingerprint, Signature, Witness};
use super::root::{self, Root};
use super::signs::Traces;

/// By what a failure is known.
type Known = (FailureKind, Fingerprint);

/// What a worker is known by that printed this and left with exit code 1.
fn known(output: &str) -> Known {
    known_by(root::of_output(output))
}

fn known_by(root: Option<Root>) -> Known {
    let traces = Traces { exit: 1, root, is_open: true };
    let failure = Failure::new(FailureKind::Unexplained, "exit code 1").at(Stage::Train);
    let failure = traces.explain(failure);
    let fingerprint = Signature::of(&failure, Witness::Traces(&traces)).fingerprint();
    (failure.kind, fingerprint)
}

/// Ends of programs, as they print them.
const ENDS: [(&str, FailureKind); 9] = [
    (
        "Traceback (most recent call last):\n  File \"/srv/app/train.py\", line 81, in <module>\n    main()\n  File \
         \"/srv/app/train.py\", line 64, in step\n    out = model(**batch)\n           ^^^^^^^^^^^^^^\n  File \
         \"/usr/lib/python3/site-packages/torch/nn/modules/module.py\", line 1751, in _wrapped_call_impl\n    return \
         self._call_impl(*args, **kwargs)\n           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 144.00 MiB. GPU 0 has a total capacity of 23.68 GiB of which 97.12 MiB is free. If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF.\n",
        FailureKind::GpuOutOfMemory,
    ),
    (
        "Traceback (most recent call last):\n  File \"/srv/app/load.py\", line 8, in read\n    open(path)\nPermissionError: \
         [Errno 13] Permission denied: '/in/model/config.json'\n",
        FailureKind::NotPermitted,
    ),
    (
        "Traceback (most recent call last):\n  File \"/srv/app/rows.py\", line 30, in split\n    a, b = row\nValueError: not \
         enough values to unpack (expected 2, got 1)\n",
        FailureKind::Unexplained,
    ),
    (
        "thread 'main' (7) panicked at /opt/x/.cargo/registry/src/index-1/candle-core-0.9.1/src/cuda.rs:77:5:\ncalled \
         `Result::unwrap()` on an `Err` value: DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was \
         encountered\")\nnote: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n",
        FailureKind::GpuFault,
    ),
    (
        "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\nAborted\n",
        FailureKind::OutOfMemory,
    ),
    (
        "Error: backend op failed: DriverError(CUDA_ERROR_NO_BINARY_FOR_GPU, \"no kernel image is available\")\n",
        FailureKind::GpuDriver,
    ),
    ("Error: cannot write /out/adapter.safetensors: No space left on device (os error 28)\n", FailureKind::DiskFull),
    ("NVRM: Xid (PCI:0000:2b:00): 79, pid=77, name=worker, GPU has fallen off the bus.\n", FailureKind::GpuHardware),
    ("worker: error: the tokenizer has no token for layer 12\n", FailureKind::Unexplained),
];

/// What programs print besides.
const NOISE: [&str; 12] = [
    "step 12, loss 0.53, 1024 tokens/s",
    "{'loss': 1.25, 'grad_norm': 0.5, 'learning_rate': 1e-05, 'epoch': 0.1}",
    "/usr/lib/python3/site-packages/x/y.py:31: UserWarning: error: `old` is deprecated",
    "  warnings.warn(",
    "Some weights were not initialized: ['score.weight']",
    "Loading checkpoint shards: 100%|##########| 2/2 [00:03<00:00,  1.51s/it]",
    "2026-11-20 13:42:37,123 INFO saved 0 errors",
    "WARNING:root:CUDA error handling is off",
    "row 7: {\"text\": \"Traceback (most recent call last): it said DriverError(CUDA_ERROR_NO_DEVICE)\"}",
    "Exception ignored in: <generator object f at 0x7f3c00aa>\nTraceback (most recent call last):\n  File \"/a/g.py\", line 3, in f\nRuntimeError: generator ignored GeneratorExit",
    "",
    "fatal-looking names such as error_rate=0.02 are printed, too",
];

/// The same with each line taken apart at this width: anywhere, or between words.
fn wrapped(text: &str, width: usize, between_words: bool) -> String {
    let wrap = |line: &str| {
        let mut left: Vec<char> = line.chars().collect();
        let mut lines = Vec::new();
        while left.len() > width {
            let space = left[..=width].iter().rposition(|c| *c == ' ').filter(|at| between_words && *at > 8);
            let rest = left.split_off(space.unwrap_or(width));
            lines.push(left.into_iter().collect::<String>());
            left = rest.into_iter().skip(usize::from(space.is_some())).collect();
        }
        lines.push(left.into_iter().collect());
        lines.join("\n")
    };
    text.lines().map(|line| wrap(line) + "\n").collect()
}

fn ends() -> impl Strategy<Value = (&'static str, FailureKind)> {
    select(ENDS.to_vec())
}

fn noise(most: usize) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::collection::vec(select(NOISE.to_vec()), 0..most)
}

fn text(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_ends_are_of_the_kinds_that_they_tell_of_and_all_different() {
    let all: Vec<_> = ENDS.iter().map(|(end, _)| known(end)).collect();
    for ((end, expected), (kind, _)) in ENDS.iter().zip(&all) {
        assert_eq!(kind, expected, "{end}");
    }
    assert!(all.iter().enumerate().all(|(at, one)| all[..at].iter().all(|other| other.1 != one.1)));
}

#[test]
fn the_width_of_a_terminal_changes_nothing() {
    for (end, _) in ENDS {
        for width in [80, 100, 120] {
            for between_words in [false, true] {
                let noisy = format!("{}{end}{}", text(&NOISE), text(&NOISE[..4]));
                let shown = wrapped(&noisy, width, between_words);
                assert_eq!(known(&shown), known(end), "at {width}, between words: {between_words}:\n{shown}");
            }
        }
    }
}

#[test]
fn the_language_of_the_host_changes_nothing() {
    let told = |words: &str, code: u32| {
        [
            format!("Error: cannot write /out/x: {words} (os error {code})\n"),
            format!(
                "Traceback (most recent call last):\n  File \"/a/t.py\", line 3, in f\nOSError: [Errno {code}] {words}: \
                 '/out/x'\n"
            ),
            format!("cp: error writing '/out/x': {words}\n"),
        ]
        .map(|output| known(&output))
    };
    let english = told("No space left on device", 28);
    assert!(english.iter().all(|(kind, _)| *kind == FailureKind::DiskFull), "{english:?}");
    for words in [
        "Auf dem Gerät ist kein Speicherplatz mehr verfügbar",
        "Aucun espace disponible sur le périphérique",
        "デバイスに空き領域がありません",
    ] {
        assert_eq!(told(words, 28), english, "{words}");
    }
}

#[test]
fn processes_that_write_to_one_log_do_not_confuse_each_other() {
    let (end, _) = ENDS[0];
    let other = "[rank1]: Traceback (most recent call last):\n[rank1]:   File \"/x/dist.py\", line 3, in all_reduce\n[rank1]: \
                 torch.distributed.DistBackendError: NCCL error in: x.cpp:77, remote process exited\n";
    let ranked: Vec<String> = end.lines().map(|line| format!("[rank0]: {line}\n")).collect();
    let others: Vec<String> = other.lines().map(|line| format!("{line}\n")).collect();
    // Line by line in turns, and the one that only follows first.
    let mut mixed = String::new();
    for at in 0..ranked.len().max(others.len()) {
        mixed.extend(others.get(at).into_iter().chain(ranked.get(at)).map(String::as_str));
    }
    assert_eq!(known(&mixed), known(end));
    let later = format!("{}{}{other}", ranked.concat(), text(&NOISE.repeat(20)));
    assert_eq!(known(&later), known(end), "what follows much later is no root");
}

#[test]
fn what_was_caught_long_before_is_no_root() {
    for (end, _) in &ENDS[..5] {
        let caught =
            "Traceback (most recent call last):\n  File \"/a/c.py\", line 3, in probe\nImportError: no flash_attn\n";
        let output = format!("{caught}{}{end}", text(&NOISE.repeat(10)));
        assert_eq!(known(&output), known(end));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_else_is_printed_in_whatever_order_changes_nothing(
        (end, _) in ends(), before in noise(60), after in noise(25), colour: bool, drawn_over: bool, crlf: bool,
    ) {
        let mut end = end.to_owned();
        if colour {
            end = end.lines().map(|line| format!("\x1b[1;31m{line}\x1b[0m\n")).collect();
        }
        let bar = if drawn_over { "\r  3%|#    | 27/900 [00:12<06:40,  2.18it/s]\r  4%|#    | 28/900 [00:13<06:39,  2.18it/s]" } else { "" };
        let mut output = format!("{}{bar}{end}{}", text(&before), text(&after));
        if crlf {
            output = output.replace('\n', "\r\n");
        }
        prop_assert_eq!(known(&output), known(ENDS.iter().find(|(plain, _)| plain.lines().last() == strip(&end)).unwrap().0));
    }

    #[test]
    fn where_the_log_was_cut_changes_nothing((end, _) in ends(), before in noise(40), after in noise(20), at: Index, to: Index) {
        // An exception that was told to be ignored in the line that is cut off looks like any other.
        let before: Vec<_> = before.into_iter().filter(|line| !line.contains("ignored in")).collect();
        let before = format!("größe ÄÖÜ 日本語\n{}", text(&before));
        let bytes = format!("{before}{end}{}", text(&after)).into_bytes();
        // In the middle of a line or of a letter, of what stands before and behind.
        let from = 1 + at.index(before.len() - 1);
        let behind = before.len() + end.len();
        let to = behind + to.index(bytes.len() - behind + 1);
        let shown = String::from_utf8_lossy(&bytes[from..to]);
        prop_assert_eq!(known_by(root::of_tail(&shown)), known(end));
    }

    #[test]
    fn numbers_paths_and_ids_change_nothing(
        line in 1..9999u32, bytes in 1..999u32, comma: bool, folder in "[a-z]{1,12}(/[a-z0-9_.-]{1,12}){0,3}", pid in 1..99999u32,
    ) {
        let point = if comma { ',' } else { '.' };
        let told = |line: u32, bytes: u32, point: char, folder: &str, pid: u32| {
            let torch = format!(
                "Traceback (most recent call last):\n  File \"/{folder}/train.py\", line {line}, in step\n\
                 torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {bytes}{point}25 GiB.\n");
            let driver = format!(
                "Error: cannot map /{folder}/x.safetensors of job 0{pid:025}: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out\")\n");
            let kernel = format!("NVRM: Xid (PCI:0000:{:02x}:00): 31, pid={pid}, MMU Fault at 0x{bytes:x}\n", pid % 256);
            [torch, driver, kernel].map(|output| known(&output))
        };
        prop_assert_eq!(told(line, bytes, point, &folder, pid), told(3, 144, '.', "srv/app", 77));
    }

    #[test]
    fn no_output_has_a_job_tried_again_or_panics(output in "(?s).{0,400}", end in ends()) {
        for output in [output.clone(), format!("{output}{}", end.0), format!("{}{output}", end.0)] {
            prop_assert!(!known(&output).0.retryable());
        }
    }
}

/// The last line without its colours.
fn strip(end: &str) -> Option<&str> {
    end.lines().last().map(|line| line.trim_start_matches("\x1b[1;31m").trim_end_matches("\x1b[0m"))
}
