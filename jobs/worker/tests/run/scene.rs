//! An attempt on disk, and its worker as a process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use drydock_spec::contract::EXIT_FAILED;
use drydock_spec::{Failure, Report, ReportLine};
use serde_json::{Value, json};

use crate::tiny::tokenizer;

pub(crate) const WORKER: &str = env!("CARGO_BIN_EXE_drydock-worker");

pub(crate) const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] \
    + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// An attempt on disk: a tiny model with a tokenizer of bytes, a dataset, and room for what comes out.
pub(crate) struct Scene {
    folder: tempfile::TempDir,
    pub(crate) spec: Value,
    /// What the worker has in its environment beside what there is.
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Scene {
    /// A finetune with the options.
    pub(crate) fn new(options: Value) -> Self {
        Self::of("finetune", options, &rows(40))
    }

    /// An evaluation on the rows.
    pub(crate) fn evaluating(options: Value, rows: &str) -> Self {
        Self::of("evaluate", options, rows)
    }

    fn of(kind: &str, options: Value, rows: &str) -> Self {
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
        let mut asked = json!({"model": "tiny", "dataset": "greetings"});
        asked.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let spec = json!({
            "contract": 1,
            "job": "01JD3Z7M8K4W5V6X7Y8Z9A0B1C",
            "attempt": 1,
            "trace_id": "0123456789abcdef0123456789abcdef",
            "spec": {kind: asked},
            "inputs": {"model": {"path": path("model"), "name": "tiny/random-llama"}, "dataset": path("dataset")},
            "output": path("out"),
            "events": path("events.jsonl"),
            "threads": 1,
        });
        let scene = Self { folder, spec, environment: Vec::new() };
        scene.write_dataset(rows);
        scene
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write_dataset(&self, text: &str) {
        fs::write(self.path("dataset/train.jsonl"), text).unwrap();
    }

    /// One of the model's values is no number from now on, of a norm that everything passes.
    pub(crate) fn break_a_weight(&self) {
        let path = self.path("model/model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let entries: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
        let at = header + entries["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
        fs::write(&path, bytes).unwrap();
    }

    pub(crate) fn start(&self, command: &str) -> Child {
        fs::write(self.path("spec.json"), self.spec.to_string()).unwrap();
        Command::new(WORKER)
            .arg(command)
            .arg(self.path("spec.json"))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
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
        // Of a line that is being written a part may be there already.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines: Vec<ReportLine> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
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
