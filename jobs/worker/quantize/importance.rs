//! Which values matter: the mean square of what each column of a matrix is multiplied with, over the rows of a dataset
//! (llama.cpp's "importance matrix").
//!
//! An error in a weight goes into the output times the input of its column; so the expected square of the output's error
//! is the sum of the squared errors, weighted by these.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use drydock_spec::finetune::{Objective, TargetModule};
use drydock_spec::{AttemptSpec, FailureKind, QuantizeSpec, Stage};

use super::Importance;
use crate::blocks::BlockKind;
use crate::data::lesson::Lesson;
use crate::data::read::read;
use crate::data::render::{Renderer, template};
use crate::data::rows::{Row, Tokenizing};
use crate::ending::{Result, failed, input};
use crate::gguf::{GgufWriter, Metadata, Planned, Value};
use crate::model::ModelFiles;
use crate::model::decoder::Decoder;
use crate::model::fused;
use crate::model::gguf::names::gguf_name;
use crate::model::names::projection_name;
use crate::report::Reporter;
use crate::stop;

/// Rows are cut to this many tokens.
const ROW_TOKENS: usize = 512;

/// A column that saw nothing counts this much of the mean, so that no value is given up wholly.
const LEAST: f64 = 1e-4;

/// Sums over all tokens that were seen.
pub struct Measured {
    tokens: u64,
    rows: u64,
    /// Of squares, for each projection of each layer.
    squares: BTreeMap<(usize, TargetModule), Vec<f64>>,
}

/// Puts a dataset's rows through the decoder.
pub fn measure(
    attempt: &AttemptSpec,
    spec: &QuantizeSpec,
    decoder: &Decoder,
    files: &ModelFiles,
    reporter: &Reporter,
) -> Result<Measured> {
    let rows = rows(attempt, spec, files, reporter)?;
    reporter.stage(Stage::Evaluate);
    let squares = RefCell::new(BTreeMap::new());
    let hear = |layer: usize, module: TargetModule, input: &[f32]| {
        let width = files.config.shape(module)[1];
        let mut squares = squares.borrow_mut();
        let sums = squares.entry((layer, module)).or_insert_with(|| vec![0.0; width]);
        for token in input.chunks_exact(width) {
            sums.iter_mut().zip(token).for_each(|(sum, x)| *sum += f64::from(x * x));
        }
    };
    let (mut tokens, mut done) = (0, 0);
    let wanted = u64::from(spec.imatrix_tokens);
    for row in &rows {
        if tokens >= wanted {
            break;
        }
        stop::check()?;
        decoder.inputs(&row.ids, &hear)?;
        tokens += row.ids.len() as u64;
        done += 1;
        reporter.progress(tokens.min(wanted), wanted);
    }
    if tokens == 0 {
        return failed(FailureKind::BadDataset, "the importance matrix's dataset has no row with a token");
    }
    Ok(Measured { tokens, rows: done, squares: squares.into_inner() })
}

fn rows(attempt: &AttemptSpec, spec: &QuantizeSpec, files: &ModelFiles, reporter: &Reporter) -> Result<Vec<Row>> {
    reporter.stage(Stage::Tokenize);
    let mut text = files.text()?;
    if text.chat_template.is_none() {
        text.set_chat_template(template::FALLBACK);
    }
    let columns = spec.columns.clone().unwrap_or_default();
    let examples = read(input(&attempt.inputs.dataset, "dataset")?, &columns)?.examples;
    let renderer = Renderer::new(&text, false)?;
    let max_length = ROW_TOKENS.min(files.config.max_positions);
    let (objective, vocabulary) = (Objective::Sft, files.config.vocabulary);
    let tokenizing = Tokenizing { renderer: &renderer, text: &text, objective, max_length, vocabulary };
    // A row has a token at least; there is no need to read on beyond those that are wanted.
    let most = examples.len().min(spec.imatrix_tokens as usize);
    let lessons = tokenizing.lessons(&examples[..most], |_| stop::check())?.lessons;
    Ok(lessons.iter().flat_map(Lesson::rows).cloned().collect())
}

/// Positions that a decoder must be loaded for.
pub fn positions(files: &ModelFiles) -> usize {
    ROW_TOKENS.min(files.config.max_positions)
}

impl Measured {
    /// By GGUF's names. What is one matrix in the files sees what its parts see.
    pub fn importance(&self, files: &ModelFiles) -> Importance {
        let named = self.named(files).map(|(name, squares)| {
            let mean = squares.iter().sum::<f64>() / squares.len() as f64;
            let importance = squares.iter().map(|sum| ((sum + LEAST * mean) / self.tokens as f64) as f32);
            (name, importance.collect())
        });
        named.collect()
    }

    fn named(&self, files: &ModelFiles) -> impl Iterator<Item = (String, &Vec<f64>)> {
        let config = files.config.clone();
        self.squares.iter().filter_map(move |((layer, module), squares)| {
            let name = format!("{}.weight", projection_name(*layer, *module));
            let name = fused::part(&name, &config).map_or(name, |part| part.whole);
            Some((gguf_name(&name, &config.features)?, squares))
        })
    }

    /// Writes the sums as llama.cpp's own tools do, which can go on with them.
    pub fn save(&self, target: &Path, files: &ModelFiles, dataset: &str) -> Result<()> {
        let mut metadata = Metadata::default();
        metadata.set("general.type", Value::text("imatrix"));
        metadata.set("imatrix.datasets", Value::texts([dataset.to_owned()]));
        metadata.set("imatrix.chunk_count", Value::U32(u32::try_from(self.rows).unwrap_or(u32::MAX)));
        metadata.set("imatrix.chunk_size", Value::U32(ROW_TOKENS as u32));
        // Two parts of one matrix have one name, and have seen the same.
        let named: BTreeMap<String, &Vec<f64>> = self.named(files).collect();
        let planned = named.iter().flat_map(|(name, squares)| {
            let plan = |what: &str, width: usize| Planned {
                name: format!("{name}.{what}"),
                shape: vec![1, width],
                kind: BlockKind::F32,
            };
            [plan("in_sum2", squares.len()), plan("counts", 1)]
        });
        let mut writer = GgufWriter::create(target, &metadata, &planned.collect::<Vec<_>>())?;
        for squares in named.values() {
            let bytes: Vec<u8> = squares.iter().flat_map(|sum| (*sum as f32).to_le_bytes()).collect();
            writer.append(&bytes)?;
            writer.append(&(self.tokens as f32).to_le_bytes())?;
        }
        writer.finish()
    }
}
