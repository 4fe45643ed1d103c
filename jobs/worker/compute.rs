//! Where an attempt computes.

use drydock_spec::{AttemptSpec, Failure, FailureKind, Recipe};

use crate::ending::Result;
use crate::model::decoder::Decoder;
use crate::model::parameter::Trainable;
use crate::training::engine::{Cpu, Engine};

/// What an attempt computes with.
#[derive(Debug)]
pub enum Compute {
    Cpu,
}

impl Compute {
    /// What the attempt has been given; a GPU that it was promised and cannot use is an error, never the CPU instead.
    pub fn of(attempt: &AttemptSpec) -> Result<Self> {
        match attempt.gpus {
            0 => Ok(Self::Cpu),
            asked => Self::gpus(asked),
        }
    }

    fn gpus(asked: u32) -> Result<Self> {
        let message = format!(
            "the attempt has {asked} GPU(s), and this worker is built without CUDA: use a worker built by \
             `make worker-cuda`, or the job without GPUs"
        );
        Err(Failure::new(FailureKind::GpuMissing, message).into())
    }

    /// As it stands in the first report.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu => "cpu".to_owned(),
        }
    }

    /// Who trains a model.
    pub fn engine<'a>(
        &'a self,
        decoder: &'a Decoder,
        recipe: &Recipe,
        trainables: &'a [Trainable],
    ) -> Result<Box<dyn Engine + 'a>> {
        match self {
            Self::Cpu => Ok(Box::new(Cpu::new(decoder, recipe, trainables))),
        }
    }
}
