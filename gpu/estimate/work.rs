//! How long a job takes, at a speed that no machine has: what an installation's own jobs took beside it says what speed
//! its machines have.
//!
//! The unit is a second of a CPU that multiplies and adds 25 GFLOP in it, reads 500 MB of weights, tokenizes 4 MB of text
//! and writes 200 MB of artifacts. That jobs of different kinds do these in different proportions is what the unit is
//! for; whether a CPU is twice as fast is not: the ratio of what was measured to this takes care of it.
//!
//! Multiplications and additions for each token, with N numbers in the matrices it meets (Kaplan et al. 2020, section
//! 2.1): 2N forward, 2N for the gradients of what went in, 2N for those of the matrices. So 6N where all is trained, 4N
//! where the matrices are frozen, and 2N more where layers are computed again. Attention adds 2 * 2 * length / 2 * queries
//! a layer forward, and 2.5 times that on the way back, where its probabilities are made again.

use drydock_spec::finetune::{FinetuneSpec, Method, Objective};
use drydock_spec::recipe::Recipe;

use super::Decoder;

/// What a job spends its time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Start,
    Load,
    Tokenize,
    Train,
    Evaluate,
    Save,
}

impl Phase {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Load => "load",
            Self::Tokenize => "tokenize",
            Self::Train => "train",
            Self::Evaluate => "evaluate",
            Self::Save => "save",
        }
    }
}

const FLOP_A_SECOND: f64 = 25e9;
const LOADED_A_SECOND: f64 = 500e6;
const TOKENIZED_A_SECOND: f64 = 4e6;
const SAVED_A_SECOND: f64 = 200e6;
const START_SECONDS: f64 = 0.5;
/// Bytes of text that a token stands for, about.
const BYTES_A_TOKEN: f64 = 3.5;

/// Work, in nominal seconds of one CPU.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Work(Vec<(Phase, f64)>);

/// What a job reads and writes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub weights: u64,
    pub text: u64,
    pub saved: u64,
}

/// Rows as far as they cost time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tokens {
    pub rows: u64,
    /// Of a row on average.
    pub length: f64,
}

impl Tokens {
    /// Rows of so many bytes of text in all, each cut to `longest` tokens.
    #[must_use]
    pub fn of(rows: u64, text_bytes: u64, longest: u32) -> Self {
        let mean = text_bytes as f64 / BYTES_A_TOKEN / rows.max(1) as f64;
        Self { rows, length: mean.min(f64::from(longest)).max(1.0) }
    }

    /// The same tokens in rows of just so many.
    #[must_use]
    pub fn packed(self, length: u32) -> Self {
        let all = self.rows as f64 * self.length;
        Self { rows: (all / f64::from(length.max(1))).ceil() as u64, length: f64::from(length) }
    }
}

impl Work {
    /// What every job does, and so many multiplications and additions of training and of evaluation.
    #[must_use]
    pub fn new(traffic: Traffic, train: f64, evaluate: f64) -> Self {
        let parts = [
            (Phase::Start, START_SECONDS),
            (Phase::Load, traffic.weights as f64 / LOADED_A_SECOND),
            (Phase::Tokenize, traffic.text as f64 / TOKENIZED_A_SECOND),
            (Phase::Train, train / FLOP_A_SECOND),
            (Phase::Evaluate, evaluate / FLOP_A_SECOND),
            (Phase::Save, traffic.saved as f64 / SAVED_A_SECOND),
        ];
        Self(parts.into_iter().filter(|(_, seconds)| *seconds > 0.0).collect())
    }

    /// Of a finetune on `rows`, of which `held_out` are measured before and after.
    #[must_use]
    pub fn finetune(model: &Decoder, spec: &FinetuneSpec, rows: Tokens, held_out: f64, traffic: Traffic) -> Self {
        let per_token = Pass { model, length: rows.length };
        let sides = match spec.objective {
            Objective::Sft => 1.0,
            Objective::Dpo | Objective::Orpo | Objective::Kto => 2.0,
        };
        let learning = per_token.learning(spec.method == Method::Full, spec.recipe.gradient_checkpointing);
        let train = sides * learning * trained_tokens(&spec.recipe, rows);
        let scored = 2.0 * held_out * rows.rows as f64 * rows.length;
        // The model is asked before anything is trained how likely it finds each answer.
        let referred = match spec.objective {
            Objective::Dpo | Objective::Kto => rows.rows as f64 * rows.length,
            Objective::Sft | Objective::Orpo => 0.0,
        };
        Self::new(traffic, train, sides * per_token.forward() * (scored + referred))
    }

    /// Of a training from nothing.
    #[must_use]
    pub fn from_nothing(model: &Decoder, recipe: &Recipe, rows: Tokens, held_out: f64, traffic: Traffic) -> Self {
        let per_token = Pass { model, length: rows.length };
        let train = per_token.learning(true, recipe.gradient_checkpointing) * trained_tokens(recipe, rows);
        Self::new(traffic, train, per_token.forward() * 2.0 * held_out * rows.rows as f64 * rows.length)
    }

    /// Of so many tokens through a model, forward only.
    #[must_use]
    pub fn forward(model: &Decoder, rows: Tokens, traffic: Traffic) -> Self {
        let flop = Pass { model, length: rows.length }.forward() * rows.rows as f64 * rows.length;
        Self::new(traffic, 0.0, flop)
    }

    /// Nominal milliseconds of each phase on so many CPUs; 1 at least in all.
    #[must_use]
    pub fn milliseconds(&self, cpus: f64) -> Vec<(Phase, u64)> {
        let on_all = |phase: Phase| !matches!(phase, Phase::Start | Phase::Load | Phase::Save);
        let of = |(phase, seconds): &(Phase, f64)| {
            (*phase, (1e3 * seconds / if on_all(*phase) { cpus.max(0.1) } else { 1.0 }).ceil() as u64)
        };
        self.0.iter().map(of).collect()
    }
}

/// Tokens of all passes of a training.
fn trained_tokens(recipe: &Recipe, rows: Tokens) -> f64 {
    let (_, steps) = recipe.steps(rows.rows);
    let rows_at_most = recipe.num_train_epochs.max(1.0) * rows.rows as f64;
    let by_steps = steps as f64 * recipe.rows_per_step() as f64;
    by_steps.min(if recipe.max_steps.is_some() { by_steps } else { rows_at_most }) * rows.length
}

/// Multiplications and additions of a token, in rows of so many.
struct Pass<'m> {
    model: &'m Decoder,
    length: f64,
}

impl Pass<'_> {
    fn matrices(&self) -> f64 {
        2.0 * (self.model.projections() + self.model.embedding()) as f64
    }

    fn attention(&self) -> f64 {
        2.0 * self.length * f64::from(self.model.query_width()) * f64::from(self.model.layers)
    }

    fn forward(&self) -> f64 {
        self.matrices() + self.attention()
    }

    fn learning(&self, whole: bool, again: bool) -> f64 {
        let back = if whole { 2.0 } else { 1.0 } * self.matrices() + 2.5 * self.attention();
        self.forward() + back + if again { self.forward() } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use drydock_spec::FinetuneArgs;

    use super::super::SMOLLM2_135M;
    use super::*;

    fn spec(change: impl FnOnce(&mut FinetuneArgs)) -> FinetuneSpec {
        let mut args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..FinetuneArgs::default() };
        change(&mut args);
        args.parse().unwrap()
    }

    fn train_seconds(spec: &FinetuneSpec, rows: u64) -> f64 {
        let tokens = Tokens { rows, length: 100.0 };
        let work = Work::finetune(&SMOLLM2_135M, spec, tokens, 0.0, Traffic::default());
        work.0.iter().find(|(phase, _)| *phase == Phase::Train).unwrap().1
    }

    #[test]
    fn frozen_matrices_cost_four_and_trained_ones_six_for_each_number() {
        let (n, attention) = (134.479_872e6, 2.0 * 100.0 * 576.0 * 30.0);
        let flop = |spec: &FinetuneSpec| train_seconds(spec, 8) * FLOP_A_SECOND / 800.0;
        let close = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-3, "{got} of {want}");
        close(flop(&spec(|_| {})), 4.0 * n + 3.5 * attention);
        close(flop(&spec(|args| args.method = Some(Method::Full))), 6.0 * n + 3.5 * attention);
        close(flop(&spec(|args| args.gradient_checkpointing = Some(true))), 6.0 * n + 4.5 * attention);
    }

    #[test]
    fn time_follows_the_rows_or_the_steps_that_were_asked_for() {
        let all = train_seconds(&spec(|_| {}), 400);
        assert!((train_seconds(&spec(|args| args.num_train_epochs = Some(3.0)), 400) / all - 3.0).abs() < 1e-9);
        assert!((train_seconds(&spec(|args| args.max_steps = Some(10)), 400) / all - 0.1).abs() < 1e-9);
        assert!(train_seconds(&spec(|args| args.objective = Some(Objective::Dpo)), 400) > 1.9 * all);
    }

    #[test]
    fn what_is_computed_gets_faster_with_more_cpus_and_what_is_read_does_not() {
        let traffic = Traffic { weights: 1_000_000_000, text: 8_000_000, saved: 0 };
        let work = Work::new(traffic, 100e9, 0.0);
        let expected = [(Phase::Start, 500), (Phase::Load, 2000), (Phase::Tokenize, 1000), (Phase::Train, 2000)];
        assert_eq!(work.milliseconds(2.0), expected);
        let packed = Tokens { rows: 10, length: 51.2 }.packed(256);
        assert_eq!((packed.rows, packed.length), (2, 256.0));
    }
}
