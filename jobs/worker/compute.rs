//! Where an attempt computes.

use drydock_spec::{AttemptSpec, Recipe};
#[cfg(not(feature = "cuda"))]
use drydock_spec::{Failure, FailureKind};

#[cfg(feature = "cuda")]
use crate::cuda::device::Device;
#[cfg(feature = "cuda")]
use crate::cuda::ranks::engine_on;
use crate::ending::Result;
use crate::model::decoder::Decoder;
use crate::model::parameter::Trainable;
use crate::training::engine::{Cpu, Engine};

/// What an attempt computes with.
pub enum Compute {
    Cpu,
    /// On all of them, each of which holds the model; there is one at least.
    #[cfg(feature = "cuda")]
    Cuda(Vec<Device>),
}

impl Compute {
    /// What the attempt has been given; a GPU that it was promised and cannot use is an error, never the CPU instead.
    pub fn of(attempt: &AttemptSpec) -> Result<Self> {
        match attempt.gpus {
            0 => Ok(Self::Cpu),
            asked => Self::gpus(asked),
        }
    }

    /// The GPUs that the container was given, from the first on.
    #[cfg(feature = "cuda")]
    fn gpus(asked: u32) -> Result<Self> {
        Ok(Self::Cuda((0..asked).map(Device::open).collect::<crate::cuda::error::Result<_>>()?))
    }

    #[cfg(not(feature = "cuda"))]
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
            #[cfg(feature = "cuda")]
            Self::Cuda(devices) => match &devices[..] {
                [device] => format!("cuda:0 ({})", device.facts().name),
                several => format!("cuda:0-{} ({} x {})", several.len() - 1, several.len(), several[0].facts().name),
            },
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
            #[cfg(feature = "cuda")]
            Self::Cuda(devices) => engine_on(devices, decoder, recipe, trainables),
        }
    }
}
