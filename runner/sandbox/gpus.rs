//! How containers get GPUs, in words that fit every engine.
//!
//! A GPU is asked for by its UUID as NVML tells it, and nothing else: indices change when a GPU is lost. There are several
//! ways in which an engine hands one over, and which of them work on a host shows only when one is tried, so they are
//! tried: see [`Sandbox::try_injectors`](super::Sandbox::try_injectors).

use std::sync::Arc;

use drydock_gpu::inventory::Inventory;
use serde::{Deserialize, Serialize};

/// A way in which containers are given GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Injector {
    /// The engine reads what a GPU is made of from a file (Container Device Interface).
    Cdi,
    /// NVIDIA's container toolkit puts it in, by a hook at the container's start.
    Nvidia,
    /// The device files and the driver's libraries are named one by one.
    Devices,
}

impl Injector {
    /// The best first: one that needs nothing but the engine, one that runs a program of NVIDIA's as root at each start,
    /// and one that has to know by itself what a driver consists of.
    pub const ALL: [Self; 3] = [Self::Cdi, Self::Nvidia, Self::Devices];

    /// The word for it in configurations and messages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Cdi => "cdi",
            Self::Nvidia => "nvidia",
            Self::Devices => "devices",
        }
    }

    /// The injector that is called so.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|injector| injector.word() == word)
    }
}

impl std::fmt::Display for Injector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// Which injectors may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InjectorChoice {
    /// The first that works.
    #[default]
    Auto,
    Cdi,
    Nvidia,
    Devices,
    /// None: no container gets a GPU.
    Off,
}

impl InjectorChoice {
    /// The injectors to try, in this order.
    #[must_use]
    pub fn injectors(self) -> &'static [Injector] {
        match self {
            Self::Auto => &Injector::ALL,
            Self::Cdi => &[Injector::Cdi],
            Self::Nvidia => &[Injector::Nvidia],
            Self::Devices => &[Injector::Devices],
            Self::Off => &[],
        }
    }
}

/// Whether containers of an engine can have GPUs, and how they get them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuAccess {
    /// How many GPUs and slices the host has for jobs.
    pub units: usize,
    /// How many of NVIDIA's GPUs the worker image computes a job on at most, as it says by `cuda` in its label
    /// `drydock.devices`.
    pub most_gpus: u32,
    /// The injector in force, or in words why no container can have a GPU.
    pub injection: Result<Injector, String>,
    /// Whether that is being found out, which takes seconds: nobody need go without a GPU for it.
    pub trying: bool,
    /// Those that were tried and do not work here, and why.
    pub refused: Vec<RefusedInjector>,
}

/// An injector that does not work on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedInjector {
    pub injector: Injector,
    pub why: String,
}

impl GpuAccess {
    /// Why no job can compute on a GPU, if that is so.
    #[must_use]
    pub fn barrier(&self) -> Option<String> {
        match &self.injection {
            Err(_) if self.trying => None,
            Err(why) => Some(format!("no container can have a GPU: {why}")),
            Ok(_) if self.most_gpus == 0 => Some(
                "the worker image computes on the CPU only: its label `drydock.devices` does not say `cuda`".into(),
            ),
            Ok(_) => None,
        }
    }
}

impl Default for GpuAccess {
    /// An engine that has none to give.
    fn default() -> Self {
        Self {
            units: 0,
            most_gpus: 0,
            trying: false,
            injection: Err("no GPU is known on this host".to_owned()),
            refused: Vec::new(),
        }
    }
}

/// The host's GPUs as they are whenever somebody asks. Cloning shares where that is known from.
#[derive(Clone)]
pub struct KnownGpus(Arc<dyn Fn() -> Inventory + Send + Sync>);

impl KnownGpus {
    /// What this says at the time.
    #[must_use]
    pub fn asked(ask: impl Fn() -> Inventory + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// None, ever.
    #[must_use]
    pub fn none() -> Self {
        Self::asked(Inventory::default)
    }

    #[must_use]
    pub fn now(&self) -> Inventory {
        (self.0)()
    }
}

impl std::fmt::Debug for KnownGpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KnownGpus").field(&self.now()).finish()
    }
}
