//! How fast the trainer computes, without a job around it: `cargo run --release --example bench -- lora --model FOLDER
//! --text FILE`. Prints one line of JSON.
//!
//! The text is cut into rows of `--length` tokens, every one of which counts; a step takes `--batch` of them. The first
//! step warms caches and allocator up and is left out of the rates, but not of `seconds_to_first_step`, which begins
//! with the process.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use drydock_spec::quantize::TensorType;
use drydock_worker::attempt::start_threads;

use drydock_worker::data::batch::Batch;
use drydock_worker::data::rows::Row;
use drydock_worker::ending::Ending;
use drydock_worker::generate::greedy::likeliest;
use drydock_worker::kernels::adamw::{AdamW, Constants};
use drydock_worker::kernels::simd::features;
use drydock_worker::kernels::weight::Precision;
use drydock_worker::model::ModelFiles;
use drydock_worker::model::conversation::{Conversation, Piece};
use drydock_worker::model::decoder::Decoder;
use drydock_worker::model::lora::{LoraShape, start_values};
use drydock_worker::model::parameter::{Gradients, Trainable};
use drydock_worker::model::tape::{Pass, Tape};
use drydock_worker::process;
use drydock_worker::quantize::mix::block_kind;
use drydock_worker::random::{Chance, Purpose};
use drydock_worker::report::resident_bytes;
use serde_json::{Value, json};

const USAGE: &str = "\
usage: bench lora|full|perplexity|generate|quantize --model FOLDER --text FILE
       [--batch ROWS] [--length TOKENS] [--steps COUNT] [--dtype f32|bf16|int8] [--threads COUNT] [--rank R]
       [--checkpointing true|false] [--type Q4_0|...]";

struct Options {
    work: String,
    model: PathBuf,
    text: PathBuf,
    batch: usize,
    length: usize,
    steps: usize,
    precision: Precision,
    threads: u32,
    rank: usize,
    checkpointing: bool,
    quant_type: TensorType,
}

/// One step, measured.
struct Measured {
    tokens: usize,
    seconds: f64,
    cpu_seconds: f64,
    /// Mean per token, in nats; nothing where nothing is scored.
    loss: Option<f64>,
}

fn main() -> anyhow::Result<()> {
    let started = Instant::now();
    process::set_up();
    let options = options(std::env::args().skip(1).collect())?;
    start_threads(options.threads)?;
    if options.work == "quantize" {
        return say(&quantize(&options)?);
    }
    let mut first_step = 0.0;
    let steps = work(&options, |count| {
        if count == 1 {
            first_step = started.elapsed().as_secs_f64();
        }
    })?;
    let warm = if steps.len() > 1 { &steps[1..] } else { &steps[..] };
    let rates = sorted(warm.iter().map(|step| step.tokens as f64 / step.seconds));
    let cpu = sorted(warm.iter().map(|step| step.cpu_seconds));
    let line = json!({
        "work": options.work,
        "dtype": format!("{:?}", options.precision).to_lowercase(),
        "batch": options.batch,
        "length": options.length,
        "tokens_per_second": spread(&rates),
        "cpu_seconds_per_step": { "median": cpu[cpu.len() / 2], "min": cpu[0] },
        "seconds_to_first_step": first_step,
        "peak_rss_bytes": resident_bytes().1,
        "losses": steps.iter().filter_map(|step| step.loss).collect::<Vec<_>>(),
        "worker": drydock_worker::NAME_AND_VERSION,
        "threads": options.threads,
        "features": features(),
    });
    say(&line)
}

fn say(line: &Value) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot write to the standard output")
}

/// Every `down_proj` of the model, four times over; the first time warms up.
fn quantize(options: &Options) -> anyhow::Result<Value> {
    let files = ModelFiles::open(&options.model).map_err(told)?;
    let kind = block_kind(options.quant_type);
    let (layers, hidden, inner) = (files.config.layers, files.config.hidden, files.config.intermediate);
    let mut values = Vec::with_capacity(layers * hidden * inner);
    for layer in 0..layers {
        let name = format!("model.layers.{layer}.mlp.down_proj.weight");
        files.parameter(&name, &[hidden, inner]).map_err(told)?.append_to(&[], &mut values);
    }
    let row = kind.row_bytes(inner).with_context(|| format!("rows of {inner} values do not fit {kind:?}"))?;
    let mut blocks = vec![0; values.len() / inner * row];
    let gigabytes = (size_of::<f32>() * values.len()) as f64 / 1e9;
    let rates = (0..4).map(|_| {
        let started = Instant::now();
        kind.encode_all(&values, inner, None, &mut blocks);
        gigabytes / started.elapsed().as_secs_f64()
    });
    let rates: Vec<f64> = rates.collect();
    let rates = sorted(rates.into_iter().skip(1));
    let mut widened = vec![0.0; values.len()];
    kind.decode_all(&blocks, &mut widened);
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
    let error = squares(&mut values.iter().zip(&widened).map(|(value, widened)| value - widened));
    Ok(json!({
        "work": options.work,
        "gigabytes_per_second": spread(&rates),
        "relative_error": (error / squares(&mut values.iter().copied())).sqrt(),
        "peak_rss_bytes": resident_bytes().1,
        "worker": drydock_worker::NAME_AND_VERSION,
        "threads": options.threads,
        "features": features(),
    }))
}

/// Of sorted values.
fn spread(values: &[f64]) -> Value {
    json!({ "median": values[values.len() / 2], "min": values[0], "max": values[values.len() - 1] })
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn options(arguments: Vec<String>) -> anyhow::Result<Options> {
    let Some((work, pairs)) = arguments.split_first() else { bail!("{USAGE}") };
    let mut options = Options {
        work: work.clone(),
        model: PathBuf::new(),
        text: PathBuf::new(),
        batch: 4,
        length: 256,
        steps: 8,
        precision: Precision::F32,
        threads: std::thread::available_parallelism().map_or(1, |threads| threads.get() as u32),
        rank: 8,
        checkpointing: false,
        quant_type: TensorType::Q4_0,
    };
    for pair in pairs.chunks(2) {
        let [name, value] = pair else { bail!("{USAGE}") };
        let number = || value.parse::<usize>().with_context(|| format!("{name} {value}: a number is expected"));
        match name.as_str() {
            "--model" => options.model = value.into(),
            "--text" => options.text = value.into(),
            "--batch" => options.batch = number()?,
            "--length" => options.length = number()?,
            "--steps" => options.steps = number()?.max(1),
            "--rank" => options.rank = number()?,
            "--threads" => options.threads = number()?.try_into()?,
            "--checkpointing" => options.checkpointing = value.parse()?,
            "--type" => options.quant_type = serde_json::from_value(value.as_str().into())?,
            "--dtype" => {
                options.precision = match value.as_str() {
                    "f32" => Precision::F32,
                    "bf16" => Precision::Bf16,
                    "int8" => Precision::Int8,
                    _ => bail!("--dtype {value}: f32, bf16 or int8 is expected"),
                }
            }
            _ => bail!("{USAGE}"),
        }
    }
    Ok(options)
}

/// Does the work, and says after each step how many are done.
fn work(options: &Options, step_done: impl FnMut(usize)) -> anyhow::Result<Vec<Measured>> {
    let files = ModelFiles::open(&options.model).map_err(told)?;
    let ids = ids(&files, &options.text)?;
    let mut decoder = Decoder::load(&files, options.length + options.steps, |_| Ok(())).map_err(told)?;
    decoder.scoring = options.precision;
    let batches = batches(&ids, options)?;
    match options.work.as_str() {
        "lora" => {
            let targets =
                ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].map(String::from).into();
            let shape =
                LoraShape { rank: options.rank, alpha: 2.0 * options.rank as f64, dropout: 0.0, dora: false, targets };
            let mut chance = Chance::new(1, Purpose::Adapter);
            let start = |_: &str, [rank, width, out]: [usize; 3]| start_values(&mut chance, rank, width, out);
            let trainables = decoder.adapt(&shape, start).map_err(told)?;
            train(&decoder, &trainables, &batches, options, step_done)
        }
        "full" => {
            let names: Vec<String> = decoder.tensors().map(|tensor| tensor.name.clone()).collect();
            let trainables = decoder.train(&names).map_err(told)?;
            train(&decoder, &trainables, &batches, options, step_done)
        }
        "perplexity" => score(&decoder, &batches, step_done),
        "generate" => generate(&decoder, &ids, options, step_done),
        other => Err(anyhow!("{other} is no work that is known here\n{USAGE}")),
    }
}

fn told(ending: Ending) -> anyhow::Error {
    match ending {
        Ending::Failed(failure) => anyhow!("{failure}"),
        Ending::Stopped => anyhow!("stopped"),
    }
}

fn ids(files: &ModelFiles, text: &Path) -> anyhow::Result<Vec<u32>> {
    let read = std::fs::read_to_string(text).with_context(|| format!("cannot read {}", text.display()))?;
    // A byte or more for each token; no step needs more than this.
    let most = read.char_indices().map(|(at, _)| at).take_while(|&at| at <= 4_000_000).last().unwrap_or(0);
    let text = files.text().map_err(told)?;
    Ok(text.encode(&read[..most], false).map_err(told)?.ids)
}

/// A batch for each step.
fn batches(ids: &[u32], options: &Options) -> anyhow::Result<Vec<Batch>> {
    let rows: Vec<Row> =
        ids.chunks_exact(options.length).map(|ids| Row { ids: ids.to_vec(), counts: vec![true; ids.len()] }).collect();
    if rows.len() < options.batch {
        let (rows, batch) = (rows.len(), options.batch);
        bail!("the text makes {rows} rows of {} tokens, not {batch}", options.length);
    }
    let batches: Vec<Batch> = rows.chunks_exact(options.batch).map(Batch::of).collect();
    Ok(batches.iter().cycle().take(options.steps).cloned().collect())
}

fn train(
    decoder: &Decoder,
    trainables: &[Trainable],
    batches: &[Batch],
    options: &Options,
    step_done: impl FnMut(usize),
) -> anyhow::Result<Vec<Measured>> {
    let variables: Vec<_> = trainables.iter().map(|trainable| trainable.var.clone()).collect();
    let constants = Constants { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    let mut optimizer = AdamW::new(constants, trainables.iter().map(Trainable::stretches).collect());
    let mut gradients = Gradients::of(trainables);
    let rate = if options.work == "full" { 1e-5 } else { 2e-4 };
    let pass = Pass { precision: options.precision, dropout_seed: 0, gradient_checkpointing: options.checkpointing };
    measured(batches.len(), step_done, |index| {
        let batch = &batches[index];
        let scale = 1.0 / batch.targets.len() as f32;
        gradients.clear();
        let losses = Tape::record(decoder, batch, pass)?.backward(&vec![scale; batch.targets.len()], &mut gradients)?;
        optimizer.step(&variables, gradients.groups(), rate, 1.0)?;
        Ok((batch.ids.len(), Some(losses.iter().sum::<f64>() * f64::from(scale))))
    })
}

fn score(decoder: &Decoder, batches: &[Batch], step_done: impl FnMut(usize)) -> anyhow::Result<Vec<Measured>> {
    measured(batches.len(), step_done, |index| {
        let batch = &batches[index];
        Ok((batch.ids.len(), Some(decoder.score(batch)? / batch.targets.len() as f64)))
    })
}

/// Takes a prompt in for each row of the batch as the first step; each later step adds the likeliest token to each row.
fn generate(
    decoder: &Decoder,
    ids: &[u32],
    options: &Options,
    step_done: impl FnMut(usize),
) -> anyhow::Result<Vec<Measured>> {
    let vocabulary = decoder.config.vocabulary;
    let mut next: Vec<Vec<u32>> = ids.chunks_exact(options.length).take(options.batch).map(<[u32]>::to_vec).collect();
    let mut conversations: Vec<Conversation> = next.iter().map(|_| decoder.conversation()).collect();
    measured(options.steps, step_done, |_| {
        let rows = conversations.iter_mut().zip(&next);
        let mut pieces: Vec<Piece<'_>> = rows.map(|(conversation, ids)| Piece { conversation, ids }).collect();
        let taken_in = pieces.iter().map(|piece| piece.ids.len()).sum();
        let logits = decoder.next_logits(&mut pieces)?;
        next = logits.chunks_exact(vocabulary).map(|logits| likeliest(logits).into_iter().collect()).collect();
        Ok((taken_in, None))
    })
}

/// Measures steps, each of which says how many tokens it took in and what its loss was.
fn measured(
    count: usize,
    mut step_done: impl FnMut(usize),
    mut step: impl FnMut(usize) -> anyhow::Result<(usize, Option<f64>), anyhow::Error>,
) -> anyhow::Result<Vec<Measured>> {
    let mut steps = Vec::with_capacity(count);
    for index in 0..count {
        let (started, cpu_before) = (Instant::now(), cpu_seconds());
        let (tokens, loss) = step(index)?;
        let (seconds, cpu_seconds) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu_before);
        steps.push(Measured { tokens, seconds, cpu_seconds, loss });
        step_done(index + 1);
    }
    Ok(steps)
}

/// What all threads together have computed so far; on a busy machine it says more than the clock.
fn cpu_seconds() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is ours to write.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}
