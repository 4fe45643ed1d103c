//! Training from nothing: from texts to a model that nobody has seen before.

pub mod start;
pub mod text;
pub mod tokenizer;

use drydock_spec::report::{Finished, ModelReport, Phase};
use drydock_spec::train::Shape;
use drydock_spec::{AttemptSpec, FailureKind, Report, Stage, TrainSpec};
use serde_json::{Value, json};

use crate::compute::Compute;
use crate::data::lesson::digest;
use crate::data::render::Rendered;
use crate::ending::{Ending, OrFail, Result};
use crate::forget;
use crate::generate::{Prompts, Question, questions};
use crate::model::ModelFiles;
use crate::model::config::Config;
use crate::model::decoder::Decoder;
use crate::model::parameter::Trainable;
use crate::model::tokenizer::Text;
use crate::report::Reporter;
use crate::save::model::WholeModel;
use crate::save::shards::SavedAs;
use crate::save::{Saver, Summary};
use crate::stop;
use crate::training::checkpoint::Origin;
use crate::training::objective::Aim;
use crate::training::{Course, Trained, Trainer};
use text::{Learnable, Texts};

/// What the model is called in reports; it has no name before somebody gives it one.
const MODEL: &str = "from nothing";

/// Does the whole job; what comes back is the last report.
pub fn train(attempt: &AttemptSpec, spec: &TrainSpec, compute: &Compute, reporter: &Reporter) -> Result<Finished> {
    reporter.stage(Stage::Tokenize);
    let texts = Texts::read(&attempt.inputs, spec)?;
    let mut text = tokenizer_of(attempt, spec, &texts)?;
    text.fit(text.vocabulary())?;
    let rows = texts.learnable(&text, spec, reporter)?;
    drop(texts);
    forget::free_heap();
    reporter.report(Report::Dataset(rows.report.clone()));

    reporter.stage(Stage::Load);
    let config = Config::from_hf(&config(&spec.config, &text))?;
    let questions = questions_of(spec, &text, reporter)?;
    let files = ModelFiles::start(config, spec.recipe.seed);
    let model = Model { attempt, spec, files, text, rows, questions, reporter };
    let (decoder, trainables) = model.decoder()?;
    let mut trainer = Trainer::new(model.course(&decoder, compute, &trainables)?, reporter)?;
    match &attempt.inputs.checkpoint {
        Some(folder) => trainer.go_on_from(folder)?,
        None => {
            reporter.stage(Stage::Evaluate);
            trainer.evaluate(Phase::Before)?;
            trainer.answer(&model.text, &model.questions, Phase::Before)?;
        }
    }

    reporter.stage(Stage::Train);
    forget::free_heap();
    let trained = trainer.train()?;
    let finished = model.save(&decoder, &trained, &mut trainer);
    if matches!(finished, Err(Ending::Stopped)) {
        trainer.keep()?;
    }
    finished
}

/// The tokenizer of another model where one is given, or one that is learnt from the texts.
fn tokenizer_of(attempt: &AttemptSpec, spec: &TrainSpec, texts: &Texts) -> Result<Text> {
    match &attempt.inputs.tokenizer {
        Some(folder) => ModelFiles::open(folder)?.text(),
        None => tokenizer::learn(texts.to_learn_from(), spec.vocab_size as usize, spec.config.max_position_embeddings),
    }
}

/// `config.json` of a Llama of this shape.
fn config(shape: &Shape, text: &Text) -> Value {
    json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": 1e-5,
        "vocab_size": text.vocabulary(),
        "tie_word_embeddings": shape.tie_word_embeddings,
        "eos_token_id": text.stops,
    })
}

/// The beginnings that the model is to go on with. One that leaves no room is passed over with a warning.
fn questions_of(spec: &TrainSpec, text: &Text, reporter: &Reporter) -> Result<Vec<Question>> {
    let prompts = Prompts {
        prompts: &spec.sample_prompts,
        max_new_tokens: spec.max_new_tokens as usize,
        limit: spec.config.max_position_embeddings as usize,
    };
    let as_it_stands = |prompt: &str| Ok(Rendered { text: prompt.to_owned(), learnt: Vec::new(), special: false });
    questions(&prompts, text, as_it_stands, reporter)
}

/// A model on its way, with what it learns from and what it is asked.
struct Model<'a> {
    attempt: &'a AttemptSpec,
    spec: &'a TrainSpec,
    files: ModelFiles,
    text: Text,
    rows: Learnable,
    questions: Vec<Question>,
    reporter: &'a Reporter,
}

impl Model<'_> {
    /// Every tensor at its start, and every one of them to be trained.
    fn decoder(&self) -> Result<(Decoder, Vec<Trainable>)> {
        let longest_row = self.rows.report.longest_row as usize;
        let positions = self.questions.iter().map(Question::positions).fold(longest_row, usize::max);
        let layers = self.files.config.layers as u64;
        let mut decoder = Decoder::load(&self.files, positions, |done| {
            self.reporter.progress(done as u64, layers);
            stop::check()
        })?;
        let names: Vec<String> = decoder.tensors().map(|parameter| parameter.name.clone()).collect();
        let trainables = decoder.train(&names)?;
        let parameters = decoder.parameters();
        let architecture = decoder.config.architecture.clone();
        self.reporter.report(Report::Model(ModelReport { architecture, parameters, trainable_parameters: parameters }));
        Ok((decoder, trainables))
    }

    fn course<'a>(
        &'a self,
        decoder: &'a Decoder,
        compute: &'a Compute,
        trainables: &'a [Trainable],
    ) -> Result<Course<'a>> {
        let Value::Object(options) = serde_json::to_value(self.spec).or_fail(FailureKind::Crashed, "the options")?
        else {
            unreachable!("options are an object")
        };
        let Learnable { train, held_out, .. } = &self.rows;
        let origin = Origin { model: MODEL.to_owned(), rows: digest(train), held_out_rows: digest(held_out), options };
        Ok(Course {
            decoder,
            compute,
            trainables,
            recipe: &self.spec.recipe,
            aim: Aim::TEXT,
            train,
            held_out,
            max_length: self.rows.max_length,
            output: &self.attempt.output,
            origin,
        })
    }

    /// Saves what was trained, measures it once more, and says what was done.
    fn save(&self, decoder: &Decoder, trained: &Trained, trainer: &mut Trainer<'_>) -> Result<Finished> {
        self.reporter.stage(Stage::Save);
        forget::free_heap();
        let saver = Saver::new(&self.attempt.output, self.reporter);
        let description = self.files.description(&self.text)?;
        saver.model("model", WholeModel { decoder, description: &description, text: &self.text }, SavedAs::F32)?;

        self.reporter.stage(Stage::Evaluate);
        trainer.evaluate(Phase::After)?;
        trainer.answer(&self.text, &self.questions, Phase::After)?;

        self.reporter.stage(Stage::Save);
        saver.summary(&Summary {
            worker: crate::NAME_AND_VERSION,
            model: MODEL,
            options: self.spec,
            max_seq_length: self.rows.max_length,
            dataset: &self.rows.report,
            evaluations: &trainer.state.evaluations,
            samples: &trainer.state.samples,
            training: trained,
        })?;
        trainer.clear_checkpoints()?;
        Ok(trained.finished())
    }
}
