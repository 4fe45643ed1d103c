//! A quantization: a model in, a GGUF file out.
//!
//! The source is brought under GGUF's names first ([`source`]), then each tensor gets the form that the mix has for it
//! ([`mix`]) and goes from one file to the other in pieces ([`encode`]). What was lost is measured on the way and stands,
//! tensor by tensor, in `quantize.json`.

pub mod convert;
pub mod encode;
pub mod importance;
pub mod mix;
mod pieces;
pub mod source;
pub mod vocabulary;

use std::collections::BTreeMap;

use drydock_spec::FailureKind::BadOption;
use drydock_spec::contract::ModelInput;
use drydock_spec::pattern::fits;
use drydock_spec::report::{Finished, Quantized};
use drydock_spec::{AttemptSpec, QuantizeSpec, Report, Stage};
use serde::Serialize;

use crate::blocks::BlockKind;
use crate::ending::{Result, failed, input, write_failed};
use crate::gguf::{GgufWriter, Planned, Value};
use crate::model::ModelFiles;
use crate::model::decoder::Decoder;
use crate::model::lora::{LoraShape, SavedAdapter};
use crate::report::{Reporter, resident_bytes};
use crate::save::Saver;
use crate::stop;
use encode::{Encoding, Loss};
use mix::{Model, choose, file_type};
use source::{Source, SourceTensor};

/// Of the way in which values lie in blocks; it has been 2 since 2023.
const QUANTIZATION_VERSION: u32 = 2;

/// The mean square of what each column of a tensor is multiplied with, by GGUF's names.
pub type Importance = BTreeMap<String, Vec<f32>>;

/// What `quantize.json` says.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    worker: &'a str,
    model: &'a str,
    options: &'a QuantizeSpec,
    #[serde(flatten)]
    sum: Quantized,
    file: &'a str,
    tensors: Vec<TensorSummary>,
}

/// What became of a tensor. Errors are against its values before, over all of them.
#[derive(Debug, Serialize)]
struct TensorSummary {
    name: String,
    shape: Vec<usize>,
    type_before: &'static str,
    type_after: &'static str,
    bytes: u64,
    rmse: f64,
    relative_error: f64,
}

/// Does the whole job; what comes back is the last report.
pub fn quantize(attempt: &AttemptSpec, spec: &QuantizeSpec, reporter: &Reporter) -> Result<Finished> {
    reporter.stage(Stage::Load);
    let model = input(&attempt.inputs.model, "model")?;
    let files = ModelFiles::open(&model.path)?;
    let mut source = Source::open(&files)?;
    let saver = Saver::new(&attempt.output, reporter);
    let decoder = decoder(model, spec, &files)?;
    if let Some((decoder, Some(adapter))) = &decoder {
        let merged = decoder.merged().into_iter();
        let changed = merged.filter(|tensor| adapter.targets(tensor.name.trim_end_matches(".weight")));
        source.replace(changed.collect(), &files);
    }
    let importance = match (&decoder, &spec.imatrix_dataset) {
        (Some((decoder, _)), Some(dataset)) => {
            let measured = importance::measure(attempt, spec, decoder, &files, reporter)?;
            measured.save(&attempt.output.join("imatrix.gguf"), &files, dataset)?;
            saver.announce("imatrix.gguf", "importance_matrix");
            measured.importance(&files)
        }
        _ => Importance::new(),
    };
    let facts = Model::of(&source.metadata, !source.has("output.weight"), !importance.is_empty())?;
    let planned = plan(spec, &facts, &source.tensors)?;
    warn_about_losses(&source.tensors, &planned, reporter);

    reporter.stage(Stage::Quantize);
    source.metadata.set("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    source.metadata.set("general.file_type", Value::U32(file_type(spec.quant_type)));
    if source.metadata.get("general.name").is_none() {
        source.metadata.set("general.name", Value::text(model.name.as_str()));
    }
    let file = format!("model/model-{}.gguf", spec.quant_type.name());
    let target = attempt.output.join(&file);
    if let Some(folder) = target.parent() {
        std::fs::create_dir_all(folder).map_err(|error| write_failed(folder, &error))?;
    }
    let mut writer = GgufWriter::create(&target, &source.metadata, &planned)?;
    let mut losses = Vec::with_capacity(planned.len());
    for (tensor, plan) in source.tensors.iter().zip(&planned) {
        stop::check()?;
        let importance = importance.get(&tensor.name).map(Vec::as_slice);
        losses.push(transfer(tensor, plan.kind, importance, &mut writer)?);
        tensor.forget()?;
        reporter.progress(losses.len() as u64, planned.len() as u64);
    }

    reporter.stage(Stage::Save);
    writer.finish()?;
    saver.announce(&file, "model");
    if model.path.join("tokenizer.json").exists() {
        saver.tokenizer("model", &files.text()?)?;
    }
    let sum = sum(spec, &source.tensors, &planned, &losses);
    reporter.report(Report::Quantized(sum.clone()));
    let tensors = summaries(&source.tensors, &planned, &losses);
    let summary =
        Summary { worker: crate::NAME_AND_VERSION, model: &model.name, options: spec, sum, file: &file, tensors };
    saver.json("quantize.json", "quantize_summary", &summary)?;
    Ok(Finished { steps: 0, train_loss: None, tokens: 0, peak_rss_bytes: resident_bytes().1 })
}

/// A decoder, if one is needed: to work an adapter in, or to see which values matter. With it comes what its adapter is
/// laid over.
fn decoder(
    model: &ModelInput,
    spec: &QuantizeSpec,
    files: &ModelFiles,
) -> Result<Option<(Decoder, Option<LoraShape>)>> {
    if model.adapter.is_none() && spec.imatrix_dataset.is_none() {
        return Ok(None);
    }
    let mut decoder = Decoder::load(&ModelFiles::open(&model.path)?, importance::positions(files), |_| Ok(()))?;
    let Some(folder) = &model.adapter else { return Ok(Some((decoder, None))) };
    let adapter = SavedAdapter::open(folder)?;
    let shape = adapter.shape.clone();
    adapter.load(&mut decoder)?;
    Ok(Some((decoder, Some(shape))))
}

/// The form of every tensor. A pattern that is about none of them is a mistake that should be seen.
fn plan(spec: &QuantizeSpec, facts: &Model, tensors: &[SourceTensor<'_>]) -> Result<Vec<Planned>> {
    for pattern in spec.tensor_types.keys() {
        if !tensors.iter().any(|tensor| fits(pattern, &tensor.name)) {
            let some: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).take(8).collect();
            let message = format!("tensor_types: no tensor fits `{pattern}`; there are {}, ...", some.join(", "));
            return failed(BadOption, message);
        }
    }
    let planned = tensors.iter().map(|tensor| {
        let kind = choose(spec, facts, &tensor.name, &tensor.shape, tensor.kind)?;
        Ok(Planned { name: tensor.name.clone(), shape: tensor.shape.clone(), kind })
    });
    planned.collect()
}

/// Says what a user would want to know before they trust the file.
fn warn_about_losses(tensors: &[SourceTensor<'_>], planned: &[Planned], reporter: &Reporter) {
    let twice = tensors
        .iter()
        .zip(planned)
        .filter(|(tensor, plan)| tensor.kind.is_quantized() && tensor.kind != plan.kind && plan.kind.is_quantized());
    let twice: Vec<BlockKind> = twice.map(|(tensor, _)| tensor.kind).collect();
    if let Some(kind) = twice.first() {
        let message = format!(
            "{} tensors are quantized already, the first as {kind}; both errors add up, so start from the original",
            twice.len()
        );
        reporter.warn("quantized_twice", message);
    }
}

/// Copies a tensor that is in its form already, encodes any other.
fn transfer(
    tensor: &SourceTensor<'_>,
    kind: BlockKind,
    importance: Option<&[f32]>,
    writer: &mut GgufWriter,
) -> Result<Loss> {
    if let Some(bytes) = tensor.bytes().filter(|_| tensor.kind == kind) {
        writer.append(bytes)?;
        return Ok(Loss { values: tensor.shape.iter().product::<usize>() as u64, ..Loss::default() });
    }
    let opened = tensor.open()?;
    let encoding = Encoding { name: &tensor.name, rows: tensor.rows(), width: tensor.width(), kind, importance };
    encoding.encode(|rows, into| opened.rows(rows, into), |bytes| writer.append(bytes))
}

fn sum(spec: &QuantizeSpec, tensors: &[SourceTensor<'_>], planned: &[Planned], losses: &[Loss]) -> Quantized {
    let mut lost = Loss::default();
    let (mut values, mut before, mut after) = (0, 0, 0);
    for ((tensor, plan), loss) in tensors.iter().zip(planned).zip(losses) {
        let was = Planned { kind: tensor.kind, ..plan.clone() };
        values += loss.values;
        before += was.bytes() as u64;
        after += plan.bytes() as u64;
        if plan.kind.is_quantized() {
            lost.add(*loss);
        }
    }
    Quantized {
        quant_type: spec.quant_type,
        tensors: planned.len() as u64,
        bytes_before: before,
        bytes_after: after,
        bits_per_weight: after as f64 * 8.0 / values.max(1) as f64,
        relative_error: lost.relative(),
    }
}

fn summaries(tensors: &[SourceTensor<'_>], planned: &[Planned], losses: &[Loss]) -> Vec<TensorSummary> {
    let all = tensors.iter().zip(planned).zip(losses);
    let summary = |((tensor, plan), loss): ((&SourceTensor<'_>, &Planned), &Loss)| TensorSummary {
        name: plan.name.clone(),
        shape: plan.shape.clone(),
        type_before: tensor.kind.name(),
        type_after: plan.kind.name(),
        bytes: plan.bytes() as u64,
        rmse: loss.rmse(),
        relative_error: loss.relative(),
    };
    all.map(summary).collect()
}
