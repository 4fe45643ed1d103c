//! Where the grid's jobs are planned and carried out: models that the worker has made itself, rows, and the worker.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use drydock::engine::EngineWatch;
use drydock::plan::forecast::Quantity;
use drydock::plan::lengths::Counting;
use drydock::plan::{Plan, Planner};
use drydock::sandbox::gpus::KnownGpus;
use drydock_spec::{JobArgs, LimitArgs, Preview, Report, ReportLine, preview};
use serde_json::{Value, json};

use crate::grid::{Base, Row, Rows, Shape};
use crate::house::{House, engine_with};
use crate::mib;

/// Threads of the worker.
const THREADS: u32 = 2;

pub(crate) struct Ground {
    house: House,
    planner: Planner,
    worker: PathBuf,
    /// The names of models and rows that are there already.
    models: HashMap<(&'static str, Base), String>,
    rows: HashMap<String, String>,
    attempts: u32,
}

/// What was expected of a job, and what it came to, in bytes.
pub(crate) struct Measured {
    pub(crate) estimated: u64,
    pub(crate) peak: u64,
    /// Of the disk.
    pub(crate) disk: [u64; 2],
    /// What the estimate is made of.
    pub(crate) parts: String,
    /// Most of anonymous memory and of files that was seen at a time.
    pub(crate) seen: String,
}

impl Ground {
    pub(crate) async fn new(worker: PathBuf) -> Self {
        let house = House::open().await;
        let planner = house.planner(EngineWatch::still(Ok(engine_with(THREADS, 1 << 40))), KnownGpus::none());
        Self { house, planner, worker, models: HashMap::new(), rows: HashMap::new(), attempts: 0 }
    }

    /// Plans the job and carries it out.
    pub(crate) async fn measure(&mut self, row: &Row) -> Measured {
        let (plan, inputs) = Box::pin(self.plan(row)).await;
        let (out, (peak, seen)) = self.attempt("run", &json!(plan.spec), &inputs);
        let needs = &plan.estimate.needs;
        let disk = [needs[&Quantity::Disk].expected, bytes_in(&out)];
        let parts = needs[&Quantity::Memory].parts.iter();
        let parts: Vec<_> = parts.map(|(part, bytes)| format!("{part} {:.0}", mib(*bytes))).collect();
        Measured { estimated: plan.estimate.memory_bytes, peak, disk, parts: parts.join(", "), seen }
    }

    /// Has the worker count the job's rows, as a dry run does, so that plans know them.
    pub(crate) async fn preview(&mut self, row: &Row) {
        let (plan, inputs) = Box::pin(self.plan(row)).await;
        let (out, _) = self.attempt("preview", &json!(plan.spec), &inputs);
        let preview: Preview = serde_json::from_slice(&fs::read(out.join(preview::FILE)).unwrap()).unwrap();
        assert_eq!(preview.tokenized_rows, preview.rows);
        let of = Counting::of(&plan.spec, &plan.inputs).unwrap();
        self.house.store.keep_row_lengths(&of, &preview.lengths.unwrap()).await.unwrap();
    }

    /// The job's plan, and its inputs as a worker takes them.
    async fn plan(&mut self, row: &Row) -> (Plan, Value) {
        let mut job = row.job.clone();
        let options = job.as_object_mut().and_then(|job| job.values_mut().next()).unwrap();
        let mut inputs = json!({});
        if let Some(base) = row.base {
            let name = Box::pin(self.model(row.shape, base)).await;
            inputs["model"] = json!({"path": self.house.data(&name), "name": name});
            options["model"] = json!(self.name_of(&name));
        }
        if let Some(rows) = row.rows {
            let name = self.dataset(rows).await;
            inputs["dataset"] = json!(self.house.data(&name));
            let option = if options.get("quant_type").is_some() { "imatrix_dataset" } else { "dataset" };
            options[option] = json!(name);
        }
        let args: JobArgs = serde_json::from_value(job).unwrap();
        (Box::pin(self.planner.plan(args, &LimitArgs::default())).await.unwrap(), inputs)
    }

    /// What the store calls a folder.
    fn name_of(&self, folder: &str) -> String {
        folder.trim_end_matches(".gguf").to_owned()
    }

    /// A folder with a model of this shape, held as asked for: learnt by the worker in one step, and then put into
    /// another form by it.
    async fn model(&mut self, shape: Shape, base: Base) -> String {
        if let Some(name) = self.models.get(&(shape.name, base)) {
            return name.clone();
        }
        let name = format!("{}-{}", shape.name, base.name());
        let folder = self.house.data(&name);
        match base {
            Base::F32 => {
                let corpus = self.dataset(Rows::Corpus).await;
                let args: JobArgs = serde_json::from_value(shape.learnt_from(&corpus)).unwrap();
                let plan = Box::pin(self.planner.plan(args, &LimitArgs::default())).await.unwrap();
                let inputs = json!({"dataset": self.house.data(&corpus)});
                let (out, _) = self.attempt("run", &json!(plan.spec), &inputs);
                fs::rename(out.join("model"), &folder).unwrap();
            }
            Base::Bf16 => {
                let whole = Box::pin(self.model(shape, Base::F32)).await;
                let made = Command::new(&self.worker)
                    .args(["merge", "--dtype", "bf16", "--model"])
                    .arg(self.house.data(&whole))
                    .arg("--out")
                    .arg(&folder)
                    .status();
                assert!(made.unwrap().success());
            }
            Base::Q4KM | Base::Q8 => {
                let whole = Box::pin(self.model(shape, Base::F32)).await;
                let inputs = json!({"model": {"path": self.house.data(&whole), "name": whole}});
                let spec = json!({"quantize": {"model": whole, "quant_type": base.quant_type()}});
                let args: JobArgs = serde_json::from_value(spec).unwrap();
                let (out, _) = self.attempt("run", &json!(args.parse().unwrap()), &inputs);
                // The file alone: its tokenizer is within it.
                let file = out.join(format!("model/model-{}.gguf", base.quant_type()));
                fs::create_dir(&folder).unwrap();
                fs::rename(file, folder.join("model.gguf")).unwrap();
            }
        }
        self.house.add(&name).await.unwrap();
        self.models.insert((shape.name, base), name.clone());
        name
    }

    async fn dataset(&mut self, rows: Rows) -> String {
        let name = rows.name();
        if !self.rows.contains_key(&name) {
            let folder = self.house.data(&name);
            fs::create_dir(&folder).unwrap();
            let file = rows.file();
            fs::write(folder.join(file), rows.text()).unwrap();
            let source = Some(format!("{name}/{file}"));
            let load = drydock::api::LoadDataset { name: Some(name.clone()), source, ..Default::default() };
            self.house.datasets.load(load).await.unwrap();
            self.rows.insert(name.clone(), name.clone());
        }
        name
    }

    /// The folder of artifacts, the largest resident memory in bytes, and what was seen of it on the way.
    fn attempt(&mut self, command: &str, spec: &Value, inputs: &Value) -> (PathBuf, (u64, String)) {
        self.attempts += 1;
        let folder = self.house.data(&format!("attempt-{}", self.attempts));
        let out = folder.join("out");
        fs::create_dir_all(&out).unwrap();
        let attempt = json!({
            "contract": drydock_spec::contract::VERSION,
            "job": "01JD3Z7M8K4W5V6X7Y8Z9A0B1C",
            "attempt": 1,
            "trace_id": "0123456789abcdef0123456789abcdef",
            "spec": spec,
            "inputs": inputs,
            "output": out,
            "events": folder.join("events.jsonl"),
            "threads": THREADS,
        });
        fs::write(folder.join("spec.json"), attempt.to_string()).unwrap();
        let child = Command::new(&self.worker).arg(command).arg(folder.join("spec.json")).spawn().unwrap();
        let seen = watched(child);
        let last = last_report(&folder.join("events.jsonl"));
        let Report::Finished(finished) = last else { panic!("{spec}: {last:?}") };
        (out, (finished.peak_rss_bytes, seen))
    }
}

/// Waits for the worker, and looks at its memory on the way.
fn watched(mut child: Child) -> String {
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let [mut anonymous, mut files] = [0, 0];
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let field = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0 kB");
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
        };
        anonymous = anonymous.max(field("RssAnon:"));
        files = files.max(field("RssFile:"));
        std::thread::sleep(Duration::from_millis(3));
    }
    format!("anonymous {:.0}, files {:.0}", mib(anonymous), mib(files))
}

/// Of all files in a folder, and in those that it has.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| if entry.path().is_dir() { bytes_in(&entry.path()) } else { entry.metadata().unwrap().len() })
        .sum()
}

fn last_report(events: &Path) -> Report {
    let text = fs::read_to_string(events).unwrap();
    serde_json::from_str::<ReportLine>(text.lines().last().unwrap()).unwrap().report
}
