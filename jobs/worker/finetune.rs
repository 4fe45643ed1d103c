//! A finetune from the model's files to what is left of it: an adapter, a whole model, or both.

use drydock_spec::finetune::Objective;
use drydock_spec::report::{Finished, ModelReport, Phase};
use drydock_spec::{AttemptSpec, FailureKind, FinetuneSpec, ModelInput, Report, Stage};
use serde_json::Value;

use crate::compute::Compute;
use crate::data::lesson::digest;
use crate::data::{self, Prepared};
use crate::ending::{Ending, OrFail, Result, input};
use crate::forget;
use crate::generate::{Prompts, Question, questions};
use crate::model::ModelFiles;
use crate::model::decoder::Decoder;
use crate::model::lora::LoraShape;
use crate::model::method::{Chosen, choose};
use crate::model::parameter::Trainable;
use crate::model::tape::Pass;
use crate::model::tokenizer::Text;
use crate::report::Reporter;
use crate::save::model::WholeModel;
use crate::save::shards::SavedAs;
use crate::save::{Saver, Summary};
use crate::stop;
use crate::training::checkpoint::Origin;
use crate::training::objective::Aim;
use crate::training::{Course, Trained, Trainer};

/// Does the whole job; what comes back is the last report.
pub fn finetune(
    attempt: &AttemptSpec,
    spec: &FinetuneSpec,
    compute: &Compute,
    reporter: &Reporter,
) -> Result<Finished> {
    reporter.stage(Stage::Load);
    let model = input(&attempt.inputs.model, "model")?;
    let files = ModelFiles::open(&model.path)?;
    let mut text = files.text()?;
    let prepared = data::prepare(spec, &attempt.inputs, &files.config, &mut text, usize::MAX, reporter)?;
    reporter.report(Report::Dataset(prepared.split.report.clone()));
    let asked = Prompts {
        prompts: &spec.sample_prompts,
        max_new_tokens: spec.max_new_tokens as usize,
        limit: files.config.max_positions,
    };
    // As the rows are put: as chats where those are chats, else as they stand.
    let questions = questions(&asked, &text, |prompt| prepared.renderer.question(prompt, prepared.chat), reporter)?;

    reporter.stage(Stage::Load);
    forget::free_heap();
    let mut decoder = load(&files, spec, &prepared, &questions, reporter)?;
    let Chosen { trainables, adapter } = choose(&mut decoder, spec, model.adapter.as_deref())?;
    reporter.report(Report::Model(model_report(&decoder, &trainables)));
    let course = Course {
        decoder: &decoder,
        compute,
        trainables: &trainables,
        recipe: &spec.recipe,
        aim: Aim { objective: spec.objective, beta: spec.beta },
        train: &prepared.split.train,
        held_out: &prepared.split.held_out,
        max_length: prepared.max_length,
        output: &attempt.output,
        origin: origin(spec, model, &prepared)?,
    };
    let mut trainer = Trainer::new(course, reporter)?;
    match &attempt.inputs.checkpoint {
        Some(folder) => trainer.go_on_from(folder)?,
        None => {
            reporter.stage(Stage::Evaluate);
            trainer.refer()?;
            trainer.evaluate(Phase::Before)?;
            trainer.answer(&text, &questions, Phase::Before)?;
        }
    }

    reporter.stage(Stage::Train);
    forget::free_heap();
    let trained = trainer.train()?;
    let left = Left { attempt, spec, model, files: &files, text: &text, prepared: &prepared, questions: &questions };
    let finished = left.behind(&decoder, &trainables, adapter.as_ref(), &trained, &mut trainer, reporter);
    if matches!(finished, Err(Ending::Stopped)) {
        trainer.keep()?;
    }
    finished
}

/// What a checkpoint of this finetune is of.
fn origin(spec: &FinetuneSpec, model: &ModelInput, prepared: &Prepared) -> Result<Origin> {
    let Value::Object(options) = serde_json::to_value(spec).or_fail(FailureKind::Crashed, "the options")? else {
        unreachable!("options are an object")
    };
    Ok(Origin {
        model: model.name.clone(),
        rows: digest(&prepared.split.train),
        held_out_rows: digest(&prepared.split.held_out),
        options,
    })
}

/// What a finetune ends with.
struct Left<'a> {
    attempt: &'a AttemptSpec,
    spec: &'a FinetuneSpec,
    model: &'a ModelInput,
    files: &'a ModelFiles,
    text: &'a Text,
    prepared: &'a Prepared,
    questions: &'a [Question],
}

impl Left<'_> {
    /// Saves what was trained, measures it once more, and says what was done.
    fn behind(
        &self,
        decoder: &Decoder,
        trainables: &[Trainable],
        adapter: Option<&LoraShape>,
        trained: &Trained,
        trainer: &mut Trainer<'_>,
        reporter: &Reporter,
    ) -> Result<Finished> {
        let Self { attempt, spec, model, files, text, prepared, questions } = *self;
        reporter.stage(Stage::Save);
        forget::free_heap();
        let saver = Saver::new(&attempt.output, reporter);
        if let Some(shape) = adapter.filter(|_| spec.keep.adapter()) {
            saver.adapter(shape, &model.name, trainables)?;
            saver.tokenizer("adapter", text)?;
        }
        if spec.keep.merged() {
            let description = files.description(text)?;
            let dtype = description.dtype().unwrap_or(SavedAs::F16);
            saver.model("model", WholeModel { decoder, description: &description, text }, dtype)?;
        }

        reporter.stage(Stage::Evaluate);
        trainer.evaluate(Phase::After)?;
        trainer.answer(text, questions, Phase::After)?;

        reporter.stage(Stage::Save);
        saver.summary(&Summary {
            worker: crate::NAME_AND_VERSION,
            model: &model.name,
            options: spec,
            max_seq_length: prepared.max_length,
            dataset: &prepared.split.report,
            evaluations: &trainer.state.evaluations,
            samples: &trainer.state.samples,
            training: trained,
        })?;
        trainer.clear_checkpoints()?;
        Ok(trained.finished())
    }
}

/// The decoder, for rows and answers of the lengths that will come.
fn load(
    files: &ModelFiles,
    spec: &FinetuneSpec,
    prepared: &Prepared,
    questions: &[Question],
    reporter: &Reporter,
) -> Result<Decoder> {
    // KTO puts prompts together with the answers of other rows; those are as long as they may be.
    let longest_row = match spec.objective {
        Objective::Kto => prepared.max_length,
        Objective::Sft | Objective::Dpo | Objective::Orpo => prepared.split.report.longest_row as usize,
    };
    let positions = questions.iter().map(Question::positions).fold(longest_row, usize::max);
    let layers = files.config.layers as u64;
    let mut decoder = Decoder::load(files, positions, |done| {
        reporter.progress(done as u64, layers);
        stop::check()
    })?;
    if spec.objective != Objective::Sft {
        // What is compared must be computed alike.
        decoder.scoring = Pass::new(&spec.recipe, 0).precision;
    }
    Ok(decoder)
}

fn model_report(decoder: &Decoder, trainables: &[Trainable]) -> ModelReport {
    ModelReport {
        architecture: decoder.config.architecture.clone(),
        parameters: decoder.parameters(),
        trainable_parameters: trainables.iter().map(|trainable| trainable.var.elem_count() as u64).sum(),
    }
}
