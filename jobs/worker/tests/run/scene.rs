//! An attempt on disk, and its worker as a process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use drydock_spec::contract::EXIT_FAILED;
use drydock_spec::{Failure, Report, ReportLine};
use serde_json::{Value, json};

use crate::tiny::{CHATML, tokenizer};

pub(crate) const WORKER: &str = env!("CARGO_BIN_EXE_drydock-worker");

/// An attempt on disk: a tiny model with a tokenizer of bytes, a dataset, and room for what comes out.
pub(crate) struct Scene {
    folder: tempfile::TempDir,
    pub(crate) spec: Value,
}

impl Scene {
    pub(crate) fn new(options: Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["model", "dataset", "out"] {
            fs::create_dir(path(name)).unwrap();
        }
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/llama_lora/tied");
        for name in ["config.json", "model.safetensors"] {
            fs::copy(fixture.join(name), path("model").join(name)).unwrap();
        }
        fs::write(path("model/tokenizer.json"), tokenizer().to_string()).unwrap();
        let config = json!({"eos_token": "<|im_end|>", "chat_template": CHATML});
        fs::write(path("model/tokenizer_config.json"), config.to_string()).unwrap();
        let mut finetune = json!({"model": "tiny", "dataset": "greetings"});
        finetune.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let spec = json!({
            "contract": 1,
            "job": "01JD3Z7M8K4W5V6X7Y8Z9A0B1C",
            "attempt": 1,
            "trace_id": "0123456789abcdef0123456789abcdef",
            "spec": {"finetune": finetune},
            "inputs": {"model": {"path": path("model"), "name": "tiny/random-llama"}, "dataset": path("dataset")},
            "output": path("out"),
            "events": path("events.jsonl"),
            "threads": 1,
        });
        let scene = Self { folder, spec };
        scene.write_dataset(&rows(40));
        scene
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write_dataset(&self, text: &str) {
        fs::write(self.path("dataset/train.jsonl"), text).unwrap();
    }

    pub(crate) fn start(&self, command: &str) -> Child {
        fs::write(self.path("spec.json"), self.spec.to_string()).unwrap();
        Command::new(WORKER)
            .arg(command)
            .arg(self.path("spec.json"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Exit code and reports of the whole attempt.
    pub(crate) fn run(&self, command: &str) -> (i32, Vec<Report>) {
        // Each attempt has a file of its own.
        let _ = fs::remove_file(self.path("events.jsonl"));
        let output = self.start(command).wait_with_output().unwrap();
        assert!(output.stdout.is_empty(), "nothing is said on the standard output");
        (output.status.code().unwrap(), self.reports())
    }

    pub(crate) fn reports(&self) -> Vec<Report> {
        let text = fs::read_to_string(self.path("events.jsonl")).unwrap_or_default();
        // One line, one write: whoever reads while the worker writes sees whole lines only.
        let lines: Vec<ReportLine> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.is_sorted_by_key(|line| line.elapsed_ms));
        lines.into_iter().map(|line| line.report).collect()
    }

    /// Waits until the worker has said something, and kills it by a signal.
    pub(crate) fn kill_after(
        &self,
        mut child: Child,
        said: impl Fn(&Report) -> bool,
        signal: libc::c_int,
    ) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !self.reports().iter().any(&said) {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself: {:?}", self.reports());
            assert!(Instant::now() < deadline, "it never said so");
            std::thread::sleep(Duration::from_millis(2));
        }
        // SAFETY: the child has not been waited for, so the id is still its own.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
        child.wait().unwrap().code()
    }

    /// Another attempt at the same job: it goes on from the last checkpoint of this one, in a folder of its own.
    pub(crate) fn next_attempt(&self, options: Value) -> Self {
        let mut next = Self::new(options);
        next.write_dataset(&fs::read_to_string(self.path("dataset/train.jsonl")).unwrap());
        let last = self.checkpoints().pop().expect("there is a checkpoint");
        next.spec["inputs"]["checkpoint"] = json!(self.path("out/checkpoints").join(last));
        next
    }

    /// What lies in the folder of checkpoints.
    pub(crate) fn checkpoints(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("out/checkpoints")).into_iter().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        names
    }

    pub(crate) fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path("out").join(path)).unwrap()).unwrap()
    }

    /// Codes of the warnings.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let warning = |report| match report {
            Report::Warning { code, .. } => Some(code),
            _ => None,
        };
        self.reports().into_iter().filter_map(warning).collect()
    }

    pub(crate) fn failure(&self) -> Failure {
        let (code, reports) = self.run("run");
        assert_eq!(code, EXIT_FAILED, "{:?}", reports.iter().rev().take(3).collect::<Vec<_>>());
        assert!(matches!(reports[0], Report::Started(_)));
        match reports.last() {
            Some(Report::Failed(failure)) => failure.clone(),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn rows(count: usize) -> String {
    let row = |i: usize| {
        let answer = ["zero", "one", "two", "three"][i % 4];
        json!({"messages": [
            {"role": "user", "content": format!("Say {}", i % 4)},
            {"role": "assistant", "content": answer},
        ]})
        .to_string()
    };
    (0..count).map(row).collect::<Vec<_>>().join("\n")
}
