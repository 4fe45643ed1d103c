//! What a person with a new GPU runs first: small models of every kind are trained for three steps on the GPU and on the
//! CPU, and everything that came of it is compared.
//!
//! The CPU computes in f32 what it is compared with, also where the GPU computes in bf16: there, the tolerance is what
//! eight bits of mantissa cost in two layers. Errors are relative, in the L2 norm, for a tensor as a whole.

mod cases;
mod together;

use std::io::Write;

use anyhow::{Context, bail};
use drydock_spec::Recipe;
use drydock_spec::recipe::DType;
use half::bf16;

use super::device::{Device, devices};
use super::engine::Cuda;
use super::model::Computed;
use super::speaker::Loaded;
use crate::data::batch::Batch;
use crate::ending::{Ending, Result};
use crate::kernels::cross_entropy::Target;
use crate::kernels::read;
use crate::model::conversation::Piece;
use crate::model::decoder::Decoder;
use crate::model::parameter::Trainable;
use crate::model::speaker::Speaker;
use crate::model::tape::Pass;
use crate::random::{Chance, Purpose};
use crate::training::engine::{Cpu, Engine, Planned, Recorded};
use cases::{Case, VOCABULARY, cases};

const STEPS: usize = 3;
/// Tokens of a conversation at most.
const TOLD: usize = 48;
const LEARNING_RATE: f64 = 2e-3;

/// What a training came to.
struct Outcome {
    /// Mean losses of the passes of each step, in nats.
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    /// Of the first step, group by group.
    gradients: Vec<Vec<f32>>,
    /// What three steps have changed.
    changes: Vec<Vec<f32>>,
    /// What the model finds of the first batch at last, for its own sake.
    scored: Vec<f64>,
    /// The same of conversations, piece by piece.
    told: Vec<f64>,
}

/// One line of the table.
struct Line {
    what: String,
    /// Largest difference.
    absolute: f64,
    relative: f64,
    tolerance: f64,
}

impl Line {
    fn is_right(&self) -> bool {
        self.relative <= self.tolerance
    }
}

/// Prints the GPUs that a worker would find, and says whether there is one.
pub fn list_devices(out: &mut dyn Write) -> anyhow::Result<bool> {
    let found = match devices() {
        Ok(found) => found,
        Err(error) => {
            writeln!(out, "no GPU: {error}")?;
            return Ok(false);
        }
    };
    if found.is_empty() {
        writeln!(out, "no GPU: the driver sees none")?;
    }
    for (number, facts) in found.iter().enumerate() {
        let (major, minor) = facts.capability;
        let gib = facts.memory as f64 / f64::from(1 << 30);
        let name = &facts.name;
        writeln!(out, "cuda:{number}  {name}  compute capability {major}.{minor}  {gib:.1} GiB")?;
    }
    Ok(!found.is_empty())
}

/// Compares the first GPU with the CPU, and all GPUs of its kind together with the first, prints a table, and says whether
/// all is well.
pub fn selfcheck(out: &mut dyn Write) -> anyhow::Result<bool> {
    let device = Device::open(0).map_err(Ending::from).map_err(in_words)?;
    let facts = device.facts();
    writeln!(out, "{}, compute capability {}.{}", facts.name, facts.capability.0, facts.capability.1)?;
    writeln!(out, "{:<44} {:<28} {:>9} {:>9} {:>9}", "training", "what", "max abs", "relative", "tolerance")?;
    let (mut wrong, mut seen) = (0, 0);
    for case in cases() {
        let lines = check(&device, &case).map_err(in_words).with_context(|| case.name())?;
        print(out, &case.name(), &lines)?;
        seen += lines.len();
        wrong += lines.iter().filter(|line| !line.is_right()).count();
    }
    let others = together::others(&device).map_err(in_words)?;
    for case in together::cases().filter(|_| !others.is_empty()) {
        let name = format!("{}, {} GPUs", case.name(), 1 + others.len());
        let lines = together::check(&device, &others, &case).map_err(in_words).with_context(|| name.clone())?;
        print(out, &name, &lines)?;
        seen += lines.len();
        wrong += lines.iter().filter(|line| !line.is_right()).count();
    }
    if others.is_empty() {
        writeln!(out, "several GPUs in one training were not compared with one: there is one here")?;
    }
    let peak = device.memory().peak as f64 / f64::from(1 << 20);
    writeln!(out, "{} of {seen} comparisons are right; {peak:.1} MiB of GPU memory at most", seen - wrong)?;
    if seen == 0 {
        bail!("nothing was compared");
    }
    Ok(wrong == 0)
}

fn print(out: &mut dyn Write, name: &str, lines: &[Line]) -> std::io::Result<()> {
    for line in lines {
        let verdict = if line.is_right() { "ok" } else { "WRONG" };
        let Line { what, absolute, relative, tolerance } = line;
        writeln!(out, "{name:<44} {what:<28} {absolute:>9.1e} {relative:>9.1e} {tolerance:>9.0e}  {verdict}")?;
    }
    Ok(())
}

fn in_words(ending: Ending) -> anyhow::Error {
    match ending {
        Ending::Failed(failure) => anyhow::anyhow!("{failure}; hint: {}", failure.hint),
        Ending::Stopped => anyhow::anyhow!("stopped"),
    }
}

fn check(device: &Device, case: &Case) -> Result<Vec<Line>> {
    let recipe = case.recipe();
    let (decoder, trainables) = case.model()?;
    let want = train(&mut Cpu::new(&decoder, &recipe, &trainables), case, &trainables)?;
    let want = Outcome { told: told(&decoder)?, ..want };
    let (decoder, trainables) = case.model()?;
    let got = match recipe.dtype {
        DType::F32 => on_gpu::<f32>(device, case, &recipe, (&decoder, &trainables))?,
        DType::Bf16 => on_gpu::<bf16>(device, case, &recipe, (&decoder, &trainables))?,
    };
    Ok(compared(&got, &want, &trainables, recipe.dtype))
}

fn on_gpu<T: Computed>(
    device: &Device,
    case: &Case,
    recipe: &Recipe,
    (decoder, trainables): (&Decoder, &[Trainable]),
) -> Result<Outcome> {
    let trained = train(&mut Cuda::<T>::new(device, decoder, recipe, trainables)?, case, trainables)?;
    let told = told(&Loaded::<T>::new(device, decoder)?.voice())?;
    Ok(Outcome { told, ..trained })
}

/// Two conversations that go on at once, in pieces of different lengths, one of which forgets what was said last. In each
/// piece every token but its first one counts.
fn told<S: Speaker>(speaker: &S) -> Result<Vec<f64>> {
    let mut conversations = [speaker.conversation(TOLD)?, speaker.conversation(TOLD)?];
    let mut chance = Chance::new(11, Purpose::Bootstrap);
    let mut losses = Vec::new();
    for lengths in [[13, 2], [1, 1], [1, 17], [6, 1], [1, 1]] {
        conversations[0].truncate(14);
        let said = lengths.map(|len| (0..len).map(|_| chance.below(VOCABULARY) as u32).collect::<Vec<u32>>());
        let mut targets = Vec::new();
        for (from, ids) in [0, lengths[0]].into_iter().zip(&said) {
            targets.extend((1..ids.len()).map(|at| Target { position: from + at - 1, token: ids[at] }));
            targets.push(Target { position: from + ids.len() - 1, token: 1 });
        }
        let mut pieces: Vec<_> =
            conversations.iter_mut().zip(&said).map(|(conversation, ids)| Piece { conversation, ids }).collect();
        losses.extend(speaker.piece_losses(&mut pieces, &targets)?);
    }
    Ok(losses)
}

/// Three steps of two passes each.
fn train(engine: &mut dyn Engine, case: &Case, trainables: &[Trainable]) -> Result<Outcome> {
    let batches = case.batches();
    let before = values(trainables)?;
    let targets: usize = batches.iter().map(|batch| batch.targets.len()).sum();
    let (mut losses, mut grad_norms, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..STEPS {
        engine.clear()?;
        let planned = batches.iter().enumerate().map(|(index, batch)| {
            let pass = case.pass((step * batches.len() + index) as u64);
            Planned { batch, pass }
        });
        let alike = |index: usize, _: &mut dyn Recorded| Ok(vec![1.0 / targets as f32; batches[index].targets.len()]);
        engine.learn(&planned.collect::<Vec<_>>(), &alike, &mut || Ok(()))?;
        let sums = engine.sums()?;
        losses.push(sums.losses.iter().flatten().sum::<f64>() / targets as f64);
        grad_norms.push(sums.grad_norm);
        if step == 0 {
            gradients = engine.gradients()?.into_owned();
        }
        engine.step(LEARNING_RATE, (1.0 / sums.grad_norm).min(1.0))?;
    }
    engine.give_values()?;
    let mut changes = values(trainables)?;
    for (after, before) in changes.iter_mut().flatten().zip(before.iter().flatten()) {
        *after -= before;
    }
    let scored = engine.target_losses(&batches[0])?;
    Ok(Outcome { losses, grad_norms, gradients, changes, scored, told: Vec::new() })
}

fn values(trainables: &[Trainable]) -> Result<Vec<Vec<f32>>> {
    let values = trainables.iter().map(|trainable| read(&trainable.var, |values| Ok(values.to_vec())));
    Ok(values.collect::<candle_core::Result<_>>()?)
}

/// The losses, each tensor's gradient (the worst of them is told), and what the steps have changed.
fn compared(got: &Outcome, want: &Outcome, trainables: &[Trainable], dtype: DType) -> Vec<Line> {
    // Steps divide by the roots of squared gradients: where one is nearly zero, its rounding decides.
    let (exact, gradient, stepped) = match dtype {
        DType::F32 => (1e-4, 1e-4, 1e-2),
        DType::Bf16 => (4e-2, 1.5e-1, 3e-1),
    };
    let line = |what: &str, got: &[f64], want: &[f64], tolerance| {
        let (absolute, relative) = difference(got, want);
        Line { what: what.to_owned(), absolute, relative, tolerance }
    };
    let mut lines = vec![
        line("losses", &got.losses, &want.losses, exact),
        line("gradient norms", &got.grad_norms, &want.grad_norms, exact),
        line("losses after training", &got.scored, &want.scored, exact),
        line("losses piece by piece", &got.told, &want.told, exact),
    ];
    lines.push(worst("gradient", trainables, &got.gradients, &want.gradients, gradient));
    lines.push(worst("change", trainables, &got.changes, &want.changes, stepped));
    lines
}

/// The tensor that is off the furthest. One without a gradient is off by everything.
fn worst(what: &str, trainables: &[Trainable], got: &[Vec<f32>], want: &[Vec<f32>], tolerance: f64) -> Line {
    let mut worst: Option<Line> = None;
    for (trainable, (got, want)) in trainables.iter().zip(got.iter().zip(want)) {
        for tensor in &trainable.tensors {
            let widened = |values: &[f32]| -> Vec<f64> {
                values[tensor.range.clone()].iter().map(|&value| f64::from(value)).collect()
            };
            let (absolute, relative) = difference(&widened(got), &widened(want));
            if worst.as_ref().is_none_or(|worst| relative > worst.relative) {
                let name = tensor.name.trim_end_matches(".weight");
                let name = name.rsplit("layers.").next().unwrap_or(name);
                let what = format!("{what}, {}", name.rsplit_once("model.").map_or(name, |(_, end)| end));
                worst = Some(Line { what, absolute, relative, tolerance });
            }
        }
    }
    let nothing = || Line { what: format!("{what} of nothing"), absolute: 0.0, relative: f64::INFINITY, tolerance };
    worst.unwrap_or_else(nothing)
}

/// The largest difference, and the L2 norm of all of them relative to that of `want`; infinite where that is zero, or
/// where anything is no number.
fn difference(got: &[f64], want: &[f64]) -> (f64, f64) {
    let differences = || got.iter().zip(want).map(|(got, want)| got - want);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let largest = differences().map(f64::abs).fold(0.0, f64::max);
    let size = norm(&mut want.iter().copied());
    let relative = norm(&mut differences()) / size;
    (largest, if relative.is_nan() || size == 0.0 { f64::INFINITY } else { relative })
}
