//! Where an attempt computes.

#[cfg(feature = "cuda")]
use drydock_spec::recipe::DType;
use drydock_spec::{AttemptSpec, Failure, FailureKind, Recipe};

#[cfg(feature = "cuda")]
use crate::cuda::device::Device;
#[cfg(feature = "cuda")]
use crate::cuda::engine::Cuda;
use crate::ending::Result;
use crate::model::decoder::Decoder;
use crate::model::parameter::Trainable;
use crate::training::engine::{Cpu, Engine};

/// What an attempt computes with.
pub enum Compute {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(Device),
}

impl Compute {
    /// What the attempt has been given; a GPU that it was promised and cannot use is an error, never the CPU instead.
    pub fn of(attempt: &AttemptSpec) -> Result<Self> {
        match attempt.gpus {
            0 => Ok(Self::Cpu),
            asked => Self::gpus(asked),
        }
    }

    /// The first of the GPUs that the container was given.
    #[cfg(feature = "cuda")]
    fn gpus(asked: u32) -> Result<Self> {
        if asked > 1 {
            let message = format!("a training computes on one GPU, and the attempt has {asked}: ask for gpus 1");
            return Err(Failure::new(FailureKind::BadOption, message).into());
        }
        Ok(Self::Cuda(Device::open(0)?))
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
            Self::Cuda(device) => format!("cuda:0 ({})", device.facts().name),
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
            Self::Cuda(device) => Ok(match recipe.dtype {
                DType::F32 => Box::new(Cuda::<f32>::new(device, decoder, recipe, trainables)?),
                DType::Bf16 => Box::new(Cuda::<half::bf16>::new(device, decoder, recipe, trainables)?),
            }),
        }
    }
}
