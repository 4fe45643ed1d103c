//! Jobs that are struck.

use std::sync::atomic::{AtomicBool, Ordering};

use drydock_spec::finetune::{FinetuneArgs, FinetuneSpec, Method};
use drydock_spec::recipe::DType;
use drydock_spec::remedy::Action;
use drydock_spec::{LimitArgs, Limits};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::causes::{Cause, Cure, DEVICES, Seen};
use crate::house::{DATASETS, MODELS};

const MIB: u64 = 1 << 20;

/// A job that is struck: itself, those made of it by remedies, and what its owner makes in its place.
pub(crate) struct Struck {
    pub(crate) cause: &'static Cause,
    pub(crate) device: &'static str,
    pub(crate) args: FinetuneArgs,
    pub(crate) limits: LimitArgs,
    first_memory: u64,
    first_disk: u64,
    /// Whether somebody has done what only people can.
    mended: AtomicBool,
}

impl Struck {
    /// A job like those that people submit, made one that the cause strikes.
    pub(crate) fn draw(cause: &'static Cause, random: &mut StdRng) -> Self {
        let (args, limits) = drawn(random);
        let device = pick(random, &DEVICES);
        let mut struck = Self {
            cause,
            device,
            first_memory: limits.memory_mib.unwrap_or_default() * MIB,
            first_disk: limits.disk_mib.unwrap_or_default() * MIB,
            args,
            limits,
            mended: AtomicBool::new(false),
        };
        (cause.strike)(&mut struck.args);
        assert!(!struck.is_cured(&struck.args, &struck.limits), "{} strikes nothing", cause.name);
        struck
    }

    /// Whether an attempt fails that is made so. What chance decides follows from `luck`, which is nothing for the first
    /// attempt: that one is struck.
    pub(crate) fn fails(&self, spec: &FinetuneSpec, limits: &Limits, luck: Option<u64>) -> bool {
        !match &self.cause.cure {
            Cure::Made(made) => made(&Seen {
                spec,
                memory: limits.memory_bytes,
                disk: limits.disk_bytes,
                device: self.device,
                first_memory: self.first_memory,
                first_disk: self.first_disk,
            }),
            Cure::Chance(share) => luck.is_some_and(|luck| StdRng::seed_from_u64(luck).random_bool(*share)),
            Cure::Outside(_) => self.mended.load(Ordering::Relaxed),
        }
    }

    /// Somebody does what only people can; it helps if that is what was the matter.
    pub(crate) fn mend(&self, action: Action) {
        if matches!(&self.cause.cure, Cure::Outside(cure) if *cure == action) {
            self.mended.store(true, Ordering::Relaxed);
        }
    }

    /// What somebody submits who knows the cure: with it, and one to three changes that have nothing to do with it.
    pub(crate) fn known(&self, random: &mut StdRng) -> (FinetuneArgs, LimitArgs) {
        let (mut args, mut limits) = (self.args.clone(), self.limits.clone());
        (self.cause.knows)(&mut args, &mut limits, self.device);
        let curable = self.is_cured(&args, &limits);
        let mut wanted = random.random_range(1..=3);
        while wanted > 0 {
            let mut other = args.clone();
            change_something(&mut other, random);
            // Who knows the cure does not undo it.
            if other != args && self.is_cured(&other, &limits) == curable {
                args = other;
                wanted -= 1;
            }
        }
        (args, limits)
    }

    fn is_cured(&self, args: &FinetuneArgs, limits: &LimitArgs) -> bool {
        let Cure::Made(made) = &self.cause.cure else { return false };
        let spec = args.clone().parse().unwrap();
        made(&Seen {
            spec: &spec,
            memory: limits.memory_mib.unwrap_or_default() * MIB,
            disk: limits.disk_mib.unwrap_or_default() * MIB,
            device: self.device,
            first_memory: self.first_memory,
            first_disk: self.first_disk,
        })
    }
}

fn pick<T: Copy>(random: &mut StdRng, of: &[T]) -> T {
    of[random.random_range(0..of.len())]
}

/// A job as somebody might ask for it.
fn drawn(random: &mut StdRng) -> (FinetuneArgs, LimitArgs) {
    let args = FinetuneArgs {
        model: pick(random, &MODELS).into(),
        dataset: pick(random, &DATASETS).into(),
        method: Some(pick(random, &[Method::Lora, Method::Lora, Method::Qlora, Method::Dora])),
        lora_r: Some(pick(random, &[4, 8, 16, 32])),
        lora_dropout: Some(pick(random, &[0.0, 0.0, 0.05, 0.1])),
        learning_rate: Some(pick(random, &[5e-5, 1e-4, 2e-4, 5e-4])),
        per_device_train_batch_size: Some(pick(random, &[1, 2, 4, 8])),
        gradient_checkpointing: Some(random.random_bool(0.3)),
        dtype: Some(pick(random, &[DType::F32, DType::Bf16])),
        packing: Some(random.random_bool(0.4)),
        warmup_ratio: Some(pick(random, &[0.0, 0.03, 0.1])),
        weight_decay: Some(pick(random, &[0.0, 0.01])),
        max_seq_length: Some(pick(random, &[64, 128, 256, 512])),
        num_train_epochs: Some(pick(random, &[1.0, 2.0, 3.0])),
        test_size: Some(pick(random, &[0.1, 0.3])),
        seed: Some(random.random_range(0..1000)),
        ..FinetuneArgs::default()
    };
    let limits = LimitArgs {
        memory_mib: Some(pick(random, &[768, 1024, 1536, 2048])),
        disk_mib: Some(pick(random, &[64, 128])),
        ..LimitArgs::default()
    };
    (args, limits)
}

/// A change of the kind that people make besides.
fn change_something(args: &mut FinetuneArgs, random: &mut StdRng) {
    match random.random_range(0..10) {
        0 => args.weight_decay = Some(pick(random, &[0.0, 0.01, 0.05])),
        1 => args.num_train_epochs = Some(pick(random, &[1.0, 2.0, 4.0])),
        2 => args.lora_r = Some(pick(random, &[4, 8, 16])),
        3 => args.seed = Some(random.random_range(0..1000)),
        4 => args.learning_rate = Some(pick(random, &[1e-4, 2e-4, 3e-4])),
        5 => args.warmup_ratio = Some(pick(random, &[0.03, 0.05, 0.1])),
        6 => args.packing = Some(random.random_bool(0.5)),
        7 => args.lora_dropout = Some(pick(random, &[0.0, 0.1])),
        8 => args.per_device_train_batch_size = Some(pick(random, &[2, 4, 8])),
        _ => args.adam_beta2 = Some(pick(random, &[0.95, 0.99])),
    }
}
