//! A training computed on several GPUs: data parallelism.
//!
//! Each GPU is a rank, which holds the whole model and computes some of a step's rows ([`super::deal`]). Between the
//! backward passes and the norm the gradients are summed over all ranks ([`super::exchange`]); from there on all of them
//! do the same to the same values, which therefore stay the same, to the last bit. (As in Li et al. 2020, PyTorch
//! Distributed, without its overlap of sums and backward passes.) The first rank is the one that is asked for values,
//! moments and losses for their own sake.
//!
//! Losses are per token, and weighed before the backward pass by what the whole step counts, so that a step comes to
//! what it comes to on one GPU, but for the order of sums.
//!
//! Ranks compute on a thread each, which ends with its part of a step: an error of one is the step's error when all have
//! ended, and as nobody waits for another rank within its part, all of them do.

use std::borrow::Cow;
use std::ops::Range;
use std::panic::resume_unwind;

use drydock_spec::recipe::DType;
use drydock_spec::{Failure, FailureKind, Recipe};
use half::bf16;

use super::deal::{Share, ranks_of, shares};
use super::device::Device;
use super::engine::{Cuda, OnGpu};
use super::exchange::{Exchange, PATIENCE};
use super::model::Computed;
use crate::data::batch::Batch;
use crate::ending::{OrFail, Result};
use crate::generate::greedy::{Answer, Prompt};
use crate::kernels::adamw::Moments;
use crate::model::decoder::Decoder;
use crate::model::parameter::Trainable;
use crate::model::tape::Pass;
use crate::model::tokenizer::Text;
use crate::training::engine::{Engine, Planned, Recorded, Sums, Weigh};

/// What trains a model on so many GPUs, of which there is one at least.
pub fn engine_on<'a>(
    devices: &[Device],
    decoder: &'a Decoder,
    recipe: &Recipe,
    trainables: &'a [Trainable],
) -> Result<Box<dyn Engine + 'a>> {
    let (gpus, rows) = (devices.len() as u64, recipe.rows_per_step());
    if rows < gpus {
        let message = format!("{gpus} GPUs need as many rows in a step, and it has {rows}");
        let hint = format!("set limits.gpus to {rows}, or raise gradient_accumulation_steps until a step has {gpus}");
        return Err(Failure::new(FailureKind::BadOption, message).with_hint(hint).into());
    }
    Ok(match (devices, recipe.dtype) {
        ([device], DType::F32) => Box::new(Cuda::<f32>::new(device, decoder, recipe, trainables)?),
        ([device], DType::Bf16) => Box::new(Cuda::<bf16>::new(device, decoder, recipe, trainables)?),
        (several, DType::F32) => Box::new(Ranks::<f32>::new(several, decoder, recipe, trainables)?),
        (several, DType::Bf16) => Box::new(Ranks::<bf16>::new(several, decoder, recipe, trainables)?),
    })
}

pub struct Ranks<'a, T: Computed> {
    ranks: Vec<Rank<'a, T>>,
    exchange: Exchange,
    /// Passes that have been planned in this step.
    passes: usize,
}

struct Rank<'a, T: Computed> {
    engine: Cuda<'a, T>,
    /// What its backward passes were about, in their order.
    done: Vec<Dealt>,
}

/// Some of a pass's targets.
#[derive(Debug, Clone)]
struct Dealt {
    pass: usize,
    targets: Range<usize>,
}

impl<'a, T: Computed> Ranks<'a, T> {
    /// Ready for the first step: the model is brought to every GPU, to one after the other, as it is widened or rounded on
    /// the host on the way.
    pub fn new(devices: &[Device], decoder: &'a Decoder, recipe: &Recipe, trainables: &'a [Trainable]) -> Result<Self> {
        let exchange = Exchange::open(devices, PATIENCE)?;
        let rank = |device| Ok(Rank { engine: Cuda::new(device, decoder, recipe, trainables)?, done: Vec::new() });
        Ok(Self { ranks: devices.iter().map(rank).collect::<Result<_>>()?, exchange, passes: 0 })
    }

    fn first(&self) -> &Cuda<'a, T> {
        &self.ranks[0].engine
    }

    /// The gradients and trained values of every rank, in this order: all of them are the same after a step.
    pub fn held(&mut self) -> Result<Vec<Vec<Vec<f32>>>> {
        self.ranks
            .iter()
            .map(|rank| Ok([rank.engine.gradients()?.into_owned(), rank.engine.values()?].concat()))
            .collect()
    }
}

impl<T: Computed> Engine for Ranks<'_, T> {
    fn record<'e>(&'e mut self, batch: &'e Batch, pass: Pass) -> Result<Box<dyn Recorded + 'e>> {
        self.passes += 1;
        Ok(Box::new(Together::record(&mut self.ranks, self.passes - 1, Planned { batch, pass })?))
    }

    fn learn(
        &mut self,
        passes: &[Planned<'_>],
        weigh: &Weigh<'_>,
        before_each: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let numbers: Vec<usize> = (0..passes.len()).collect();
        for round in numbers.chunks(self.ranks.len()) {
            before_each()?;
            let mut rest = &mut self.ranks[..];
            let mut work = Vec::with_capacity(round.len());
            for (&number, ranks) in round.iter().zip(ranks_of(round.len(), rest.len())) {
                let (mine, others) = rest.split_at_mut(ranks.len());
                rest = others;
                work.push((number, mine));
            }
            at_once(work, |(number, ranks)| {
                let mut recorded = Together::record(ranks, number, passes[number])?;
                let scales = weigh(number, &mut recorded)?;
                Box::new(recorded).backward(&scales)
            })?;
        }
        self.passes = passes.len();
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        self.passes = 0;
        self.ranks.iter_mut().try_for_each(|rank| {
            rank.done.clear();
            rank.engine.clear()
        })
    }

    fn sums(&mut self) -> Result<Sums> {
        // Whatever went wrong on a GPU is told here, before any other waits for it.
        let of_ranks = at_once(&mut self.ranks, |rank| rank.engine.take_losses())?;
        self.exchange.sum(&mut self.ranks.iter_mut().map(|rank| rank.engine.gradients_mut()).collect::<Vec<_>>())?;
        let mut losses: Vec<Vec<f64>> = vec![Vec::new(); self.passes];
        // A pass's shares are its ranks' in their order.
        for (rank, found) in self.ranks.iter().zip(of_ranks) {
            for (Dealt { pass, targets }, found) in rank.done.iter().zip(found) {
                assert_eq!(
                    (losses[*pass].len(), found.len()),
                    (targets.start, targets.len()),
                    "every loss has its place"
                );
                losses[*pass].extend(found);
            }
        }
        Ok(Sums { losses, grad_norm: self.first().grad_norm()? })
    }

    fn answers(
        &self,
        text: &Text,
        prompts: &[Prompt],
        before_pass: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Answer>> {
        self.first().answers(text, prompts, before_pass)
    }

    fn step(&mut self, learning_rate: f64, gradient_scale: f64) -> Result<()> {
        at_once(&mut self.ranks, |rank| rank.engine.step(learning_rate, gradient_scale)).map(drop)
    }

    fn gradients(&self) -> Result<Cow<'_, [Vec<f32>]>> {
        self.first().gradients()
    }

    fn moments(&self) -> Result<Cow<'_, [Moments]>> {
        self.first().moments()
    }

    fn go_on(&mut self, moments: Vec<Moments>, steps: i32) -> Result<()> {
        self.ranks.iter_mut().try_for_each(|rank| rank.engine.go_on(moments.clone(), steps))
    }

    fn target_losses(&mut self, batch: &Batch) -> Result<Vec<f64>> {
        self.ranks[0].engine.target_losses(batch)
    }

    fn take_values(&mut self) -> Result<()> {
        self.ranks.iter_mut().try_for_each(|rank| rank.engine.take_values())
    }

    fn give_values(&self) -> Result<()> {
        self.first().give_values()
    }
}

/// A forward pass whose rows lie on one rank or several.
struct Together<'e, T: Computed>(Vec<Part<'e, T>>);

struct Part<'e, T: Computed> {
    recorded: OnGpu<'e, T>,
    about: Dealt,
    done: &'e mut Vec<Dealt>,
}

impl<'e, T: Computed> Together<'e, T> {
    fn record(ranks: &'e mut [Rank<'_, T>], number: usize, Planned { batch, pass }: Planned<'_>) -> Result<Self> {
        let shares = shares(batch, ranks.len());
        let parts = at_once(ranks.iter_mut().zip(shares), |(rank, share)| {
            let Share { batch, first_token, targets } = share;
            let Rank { engine, done } = rank;
            let recorded = engine.forward(&batch, first_token, pass)?;
            Ok(Part { recorded, about: Dealt { pass: number, targets }, done })
        })?;
        Ok(Self(parts))
    }
}

impl<T: Computed> Recorded for Together<'_, T> {
    fn losses(&mut self) -> Result<Vec<f64>> {
        Ok(at_once(&mut self.0, |part| part.recorded.losses())?.concat())
    }

    fn target_losses(&mut self, batch: &Batch) -> Result<Vec<f64>> {
        self.0[0].recorded.target_losses(batch)
    }

    fn backward(self: Box<Self>, scales: &[f32]) -> Result<()> {
        at_once(self.0, |Part { recorded, about, done }| {
            Box::new(recorded).backward(&scales[about.targets.clone()])?;
            done.push(about);
            Ok(())
        })
        .map(drop)
    }
}

/// Does the same with each, at once, and waits for all of them. Of several errors the first one's is told.
fn at_once<I: Send, O: Send>(
    each: impl IntoIterator<Item = I>,
    work: impl Fn(I) -> Result<O> + Sync,
) -> Result<Vec<O>> {
    let mut each: Vec<I> = each.into_iter().collect();
    if each.len() == 1 {
        return each.pop().map(work).into_iter().collect();
    }
    std::thread::scope(|scope| {
        let work = &work;
        let start = |one| std::thread::Builder::new().name("rank".to_owned()).spawn_scoped(scope, move || work(one));
        let started: Vec<_> = each.into_iter().map(start).collect();
        let ended = started.into_iter().map(|thread| {
            let thread = thread.or_fail(FailureKind::Crashed, "starting a thread for a GPU")?;
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        });
        ended.collect()
    })
}
