//! Whether an evaluation can work with its models and rows, and what it needs: pure rules.

use drydock_gpu::estimate::{
    self, Answering, Batch, Part, Tokens, Traffic, Work, evaluate_beside_gpu, evaluate_gpu_memory, evaluate_memory,
};
use drydock_spec::evaluate::{EvaluateSpec, Measure};
use drydock_spec::option::Complaints;
use drydock_spec::recipe::{DEFAULT_MAX_SEQ_LENGTH, DType};
use drydock_spec::{InvalidOption, InvalidOptions};

use super::needs::{self, Needs, Terms};
use super::rows::{self, Data};
use crate::blobs::size;
use crate::models::Resolved;

/// Rows, settings and results of one model; answers are kept as text.
const RESULTS_BYTES: u64 = 1 << 20;
/// Characters that a token stands for at most, on average.
const CHARACTERS_A_TOKEN: u64 = 8;

/// Refuses options that do not go with these models and rows; all complaints come at once.
pub(super) fn check(spec: &EvaluateSpec, models: &[Resolved], data: &Data) -> Result<(), InvalidOptions> {
    let mut wrong = Complaints::default();
    let shortest = models.iter().map(|model| model.facts.max_positions).min().unwrap_or(u32::MAX);
    rows::check_length(&mut wrong, spec.max_seq_length, shortest);
    for measure in spec.measures.iter().flatten() {
        rows::check_form(&mut wrong, data, "dataset", rows::wanted_by_measure(*measure));
    }
    let any = [Measure::Perplexity, Measure::MultipleChoice];
    wrong.require(spec.measures.is_some() || any.into_iter().any(|measure| rows::suits(data, measure)), || {
        let problem = "its rows hold nothing that a model is measured on";
        InvalidOption::new(
            "dataset",
            &spec.dataset,
            problem,
            "name the columns of prompt and completion with `columns`",
        )
    });
    let rows = data.rows.manifest.rows;
    wrong.require(u64::from(spec.num_fewshot) < rows, || {
        let problem = format!("the dataset has {rows} rows, and solved ones are not measured");
        InvalidOption::new("num_fewshot", spec.num_fewshot, problem, "choose fewer, or load more rows")
    });
    wrong.into_result(())
}

/// What the job needs in memory, on the disk and from the hub: one model after the other is in memory, so that the
/// largest decides.
pub(super) fn needs(spec: &EvaluateSpec, models: &[Resolved], data: &Data, terms: Terms) -> Needs {
    let (held, in_integers) = (data.rows(), spec.dtype == DType::F32);
    let is_made = |measure: Measure| match &spec.measures {
        Some(measures) => measures.contains(&measure),
        None => rows::suits(data, measure),
    };
    let answers = [Measure::ExactMatch, Measure::NumericMatch].into_iter().any(is_made);
    let new_tokens = if answers { spec.max_new_tokens } else { 0 };
    let (chooses, solved) = (is_made(Measure::MultipleChoice), spec.num_fewshot);
    // A question is put behind the solved ones.
    let longest = data.longest().saturating_mul(spec.num_fewshot.saturating_add(1));
    let cut = spec.max_seq_length.unwrap_or(DEFAULT_MAX_SEQ_LENGTH);
    let answering = move |model: &Resolved, rows: u32| {
        let length = cut.min(model.facts.max_positions).min(longest);
        Answering { batch: Batch::new(rows, length), new_tokens, chooses, solved, in_integers }
    };
    let of = {
        let models = models.to_vec();
        move |rows: u32| {
            let one = |model: &Resolved| {
                let (decoder, base, threads) = (&model.facts.decoder, needs::base(model), terms.threads());
                let memory = match terms.gpus {
                    0 => evaluate_memory(decoder, base, answering(model, rows), threads),
                    _ => evaluate_beside_gpu(decoder, base, threads),
                };
                held.then(memory, decoder, threads)
            };
            estimate::Needs::largest(models.iter().map(one))
        }
    };
    let on_gpu = {
        let (models, dtype) = (models.to_vec(), spec.dtype);
        move |rows: u32| {
            let one = |model: &Resolved| {
                let (decoder, answering) = (&model.facts.decoder, answering(model, rows));
                let all = held.count.saturating_mul(answering.batch.length.into());
                evaluate_gpu_memory(decoder, needs::base(model), answering, dtype, all)
            };
            estimate::Needs::largest(models.iter().map(one))
        }
    };
    let kept = u64::from(spec.log_samples) * (u64::from(longest) + u64::from(new_tokens)) * CHARACTERS_A_TOKEN;
    let (memory, rows) = (of(spec.batch_size), spec.batch_size);
    let results = kept.saturating_add(RESULTS_BYTES).saturating_mul(models.len() as u64);
    let disk = estimate::Needs::default().with(Part::Artifacts, results);
    let model_bytes = models.iter().map(|model| 4 * model.facts.decoder.parameters()).max().unwrap_or(0);
    let read = data.rows();
    let tokens = Tokens::of(read.count.min(spec.limit.map_or(u64::MAX, u64::from)), read.text_bytes, longest);
    let traffic = Traffic { weights: model_bytes, text: read.text_bytes, saved: 0 };
    let work = models.first().map(|model| Work::forward(&model.facts.decoder, tokens, traffic)).unwrap_or_default();
    let needs = Needs::new(
        [memory, disk],
        &work,
        terms,
        [results, models.iter().map(|model| model.download_bytes).sum(), 0],
        move |budget, needed| {
            let problem = format!("the job needs about {}, jobs may use {} on this host", size(needed), size(budget));
            let next = match fewer(rows, |rows| terms.margin.limit(of(rows).total()) <= budget) {
                Some(fewer) => format!("lower batch_size to {fewer}"),
                None => "choose a smaller or quantized model, or raise capacity.memory".to_owned(),
            };
            InvalidOption::new("batch_size", rows, problem, next)
        },
    )
    .reading(model_bytes);
    match terms.gpus {
        0 => needs,
        _ => needs.on_gpu(&on_gpu(rows), terms.gpu, move |has, needed| refusal_on_gpu(rows, &on_gpu, has, needed)),
    }
}

/// The refusal of a job that needs `needed` bytes of a GPU that has `has`, with what would be accepted. The CPU always
/// is.
fn refusal_on_gpu(rows: u32, on_gpu: &impl Fn(u32) -> estimate::Needs, has: u64, needed: u64) -> InvalidOption {
    const CPU: &str = "set limits.gpus to 0 to compute on the CPU";
    let problem = format!("the job needs about {} of a GPU's memory and can have {}", size(needed), size(has));
    let next = match fewer(rows, |rows| on_gpu(rows).total() <= has) {
        Some(fewer) => format!("lower batch_size to {fewer}, or {CPU}"),
        None => format!("choose a smaller or quantized model, or {CPU}"),
    };
    InvalidOption::new("batch_size", rows, problem, next)
}

/// The most rows, halved as often as need be, with which it fits.
fn fewer(rows: u32, fits: impl Fn(u32) -> bool) -> Option<u32> {
    std::iter::successors(Some(rows), |rows| (*rows > 1).then_some(rows / 2)).find(|rows| fits(*rows))
}

/// What somebody should know who submits this.
pub(super) fn warnings(spec: &EvaluateSpec, models: &[Resolved], data: &Data) -> Vec<String> {
    let mut warnings = data.warnings();
    let chats = spec.apply_chat_template.unwrap_or(true);
    warnings.extend(models.iter().find_map(|model| data.with_tokens_beyond(&model.facts)));
    warnings.extend(models.iter().filter(|_| chats).find_map(|model| data.without_template(&model.facts)));
    warnings
}

#[cfg(test)]
mod tests {
    use drydock_gpu::estimate::Part;

    use super::*;

    #[test]
    fn what_a_gpu_has_no_room_for_is_refused_with_the_rows_that_it_has_room_for() {
        let on_gpu = |rows: u32| estimate::Needs::default().with(Part::Cache, (4 + u64::from(rows)) << 20);
        let next = |has: u64| refusal_on_gpu(64, &on_gpu, has << 20, 68 << 20).next;
        assert_eq!(next(21), "lower batch_size to 16, or set limits.gpus to 0 to compute on the CPU");
        assert_eq!(next(4), "choose a smaller or quantized model, or set limits.gpus to 0 to compute on the CPU");
    }
}
