//! The hidden table: why jobs fail, what a failing worker says, and what would cure it.
//!
//! Nothing of it is known to the house. What its containers say, and whether they succeed, is all that comes through.

use std::sync::atomic::{AtomicBool, Ordering};

use drydock_spec::finetune::{FinetuneArgs, FinetuneSpec, Method, TargetModule};
use drydock_spec::recipe::DType;
use drydock_spec::remedy::Action;
use drydock_spec::{FailureKind as Kind, LimitArgs, Limits, Stage};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::says::Says;

pub(crate) const DEVICES: [&str; 3] = ["cpu", "NVIDIA A100", "NVIDIA L4"];
const A100: &str = DEVICES[1];
const MIB: u64 = 1 << 20;

/// What an attempt is made with.
pub(crate) struct Seen<'a> {
    pub(crate) spec: &'a FinetuneSpec,
    pub(crate) memory: u64,
    pub(crate) disk: u64,
    pub(crate) device: &'a str,
    /// The limits of the job that was struck first, in bytes.
    first_memory: u64,
    first_disk: u64,
}

/// What cures a job.
pub(crate) enum Cure {
    /// Any attempt that is made so.
    Made(fn(&Seen<'_>) -> bool),
    /// Every attempt but the first passes with this probability, whatever it is made with.
    Chance(f64),
    /// Nothing of the job's: somebody has to do this.
    Outside(Action),
}

/// Why jobs fail.
pub(crate) struct Cause {
    pub(crate) name: &'static str,
    pub(crate) stage: Stage,
    /// Makes a job one that it strikes.
    strike: fn(&mut FinetuneArgs),
    pub(crate) cure: Cure,
    pub(crate) says: Says,
    /// What somebody does who knows the cure, to the job as it was submitted.
    knows: fn(&mut FinetuneArgs, &mut LimitArgs, &str),
}

/// Nothing about a job has to be so for it to be struck; or nothing of its options is the cure.
fn any(_: &mut FinetuneArgs) {}
fn nothing(_: &mut FinetuneArgs, _: &mut LimitArgs, _: &str) {}

fn memory_times(limits: &mut LimitArgs, times: u64) {
    limits.memory_mib = limits.memory_mib.map(|mib| mib * times);
}

/// The causes, the most frequent first.
pub(crate) static CAUSES: [Cause; 20] = [
    // What the rules offer first is right.
    Cause {
        name: "memory, a little short",
        stage: Stage::Train,
        strike: any,
        cure: Cure::Made(|seen| seen.memory * 10 >= seen.first_memory * 14),
        says: Says::KilledForMemory,
        knows: |_, limits, _| memory_times(limits, 2),
    },
    // The same words as of another divergence would do; the cure is another precision.
    Cause {
        name: "overflow in bf16",
        stage: Stage::Train,
        strike: |args| args.dtype = Some(DType::Bf16),
        cure: Cure::Made(|seen| seen.spec.recipe.dtype == DType::F32),
        says: Says::Report(Kind::Diverged, &["the loss is NaN at step {n} (layer {n})"]),
        knows: |args, _, _| args.dtype = Some(DType::F32),
    },
    Cause {
        name: "learning rate",
        stage: Stage::Train,
        strike: |args| {
            let rates = [5e-4, 1e-3, 2e-3, 5e-3];
            args.learning_rate = Some(rates[args.seed.unwrap_or_default() as usize % rates.len()]);
        },
        cure: Cure::Made(|seen| seen.spec.recipe.learning_rate <= 1.5e-4),
        says: Says::Report(Kind::Diverged, &["the loss is {f}, {n} times what it was at step {n}"]),
        knows: |args, _, _| args.learning_rate = Some(1e-4),
    },
    Cause {
        name: "GPU memory, by device",
        stage: Stage::Train,
        strike: |args| {
            args.gradient_checkpointing = Some(false);
            args.per_device_train_batch_size = args.per_device_train_batch_size.map(|rows| rows.max(4));
        },
        cure: Cure::Made(|seen| {
            let recipe = &seen.spec.recipe;
            if seen.device == A100 { recipe.gradient_checkpointing } else { recipe.per_device_train_batch_size <= 2 }
        }),
        says: Says::Report(Kind::OutOfMemory, &["tried to allocate {f} MiB on the device, {f} GiB of {f} GiB in use"]),
        knows: |args, _, device| match device {
            A100 => args.gradient_checkpointing = Some(true),
            _ => args.per_device_train_batch_size = Some(2),
        },
    },
    Cause {
        name: "dropout in a fused kernel",
        stage: Stage::Train,
        strike: |args| args.lora_dropout = Some(0.05),
        cure: Cure::Made(|seen| seen.spec.lora_dropout == 0.0),
        says: Says::Python("kernels.py", "backward", &["RuntimeError: fused_lora has no backward for p={f}"]),
        knows: |args, _, _| args.lora_dropout = Some(0.0),
    },
    Cause {
        name: "packing and a cold start",
        stage: Stage::Train,
        strike: |args| {
            args.packing = Some(true);
            args.warmup_ratio = Some(0.0);
        },
        cure: Cure::Made(|seen| {
            let recipe = &seen.spec.recipe;
            !recipe.packing && recipe.warmup_ratio.is_some_and(|ratio| ratio >= 0.1)
        }),
        says: Says::Report(Kind::Diverged, &["the gradient norm of layer {n} is infinite at step {n}"]),
        knows: |args, _, _| {
            args.packing = Some(false);
            args.warmup_ratio = Some(0.1);
        },
    },
    Cause {
        name: "a bus that drops out (chance)",
        stage: Stage::Load,
        strike: any,
        cure: Cure::Chance(0.6),
        says: Says::Signal(7, &["Bus error while reading {path} at offset {n}"]),
        knows: nothing,
    },
    Cause {
        name: "a leak, three times the memory",
        stage: Stage::Tokenize,
        strike: any,
        cure: Cure::Made(|seen| seen.memory >= seen.first_memory * 3),
        says: Says::KilledForMemory,
        knows: |_, limits, _| memory_times(limits, 4),
    },
    // Two wordings of the same.
    Cause {
        name: "rotary table too short",
        stage: Stage::Train,
        strike: |args| args.max_seq_length = Some(if args.seed.unwrap_or_default() % 2 == 0 { 256 } else { 512 }),
        cure: Cure::Made(|seen| seen.spec.recipe.max_seq_length.is_some_and(|length| length <= 128)),
        says: Says::Panic(
            "src/rope.rs",
            &[
                "range end index {n} out of range for rotary table of length {n}",
                "rotary table of length {n} has no row {n}",
            ],
        ),
        knows: |args, _, _| args.max_seq_length = Some(128),
    },
    Cause {
        name: "rows that are no chats",
        stage: Stage::Tokenize,
        strike: any,
        cure: Cure::Outside(Action::MendDataset),
        says: Says::Report(Kind::BadDataset, &["row {n} of {path}: no field {word}"]),
        knows: nothing,
    },
    // Reads like the dropout above, and has another cure.
    Cause {
        name: "magnitudes in a fused kernel",
        stage: Stage::Train,
        strike: |args| args.method = Some(Method::Dora),
        cure: Cure::Made(|seen| seen.spec.method != Method::Dora),
        says: Says::Python(
            "kernels.py",
            "backward",
            &["RuntimeError: fused_lora has no backward for magnitude {word}"],
        ),
        knows: |args, _, _| args.method = Some(Method::Lora),
    },
    Cause {
        name: "checkpoints fill the disk",
        stage: Stage::Train,
        strike: |args| args.save_steps = Some(1 + args.seed.unwrap_or_default() as u32 % 9),
        cure: Cure::Made(|seen| seen.spec.recipe.save_steps.is_none() || seen.disk >= 8 * seen.first_disk),
        says: Says::Report(Kind::DiskFull, &["write {path}: No space left on device (os error 28)"]),
        knows: |args, _, _| args.save_steps = None,
    },
    Cause {
        name: "recomputed twice",
        stage: Stage::Train,
        strike: |args| args.gradient_checkpointing = Some(true),
        cure: Cure::Made(|seen| !seen.spec.recipe.gradient_checkpointing),
        says: Says::Panic("src/tape.rs", &["tensor {n} was freed before layer {n} asked for it"]),
        knows: |args, _, _| args.gradient_checkpointing = Some(false),
    },
    Cause {
        name: "a connection that is reset (chance)",
        stage: Stage::Load,
        strike: any,
        cure: Cure::Chance(0.6),
        says: Says::Python("shards.py", "fetch", &["ConnectionResetError: [Errno 104] Connection reset by peer"]),
        knows: nothing,
    },
    Cause {
        name: "rank beyond the kernel",
        stage: Stage::Train,
        strike: |args| args.lora_r = Some(32),
        cure: Cure::Made(|seen| seen.spec.lora_r <= 16),
        says: Says::Signal(
            6,
            &[
                "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED in gemm of {n}x{n}",
                "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED in gemm of {n}x{n}, handle {hex}",
            ],
        ),
        knows: |args, _, _| args.lora_r = Some(16),
    },
    Cause {
        name: "everything cut away",
        stage: Stage::Tokenize,
        strike: |args| args.max_seq_length = Some(32),
        cure: Cure::Made(|seen| seen.spec.recipe.max_seq_length.is_none_or(|length| length >= 200)),
        says: Says::Report(Kind::NothingToLearn, &["no token of the {n} rows is left after cutting to {n}"]),
        knows: |args, _, _| args.max_seq_length = Some(256),
    },
    Cause {
        name: "bf16 that the device lacks",
        stage: Stage::Load,
        strike: |args| args.dtype = Some(DType::Bf16),
        cure: Cure::Made(|seen| seen.spec.recipe.dtype == DType::F32),
        says: Says::Report(Kind::BadOption, &["dtype bf16 needs compute capability {f}, the device has {f}"]),
        knows: |args, _, _| args.dtype = Some(DType::F32),
    },
    Cause {
        name: "driver too old",
        stage: Stage::Load,
        strike: any,
        cure: Cure::Outside(Action::MendDriver),
        says: Says::Signal(6, &["DriverError(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, {word}) on device {n}"]),
        knows: nothing,
    },
    Cause {
        name: "held-out rows too few",
        stage: Stage::Evaluate,
        strike: |args| args.test_size = Some(0.1),
        cure: Cure::Made(|seen| seen.spec.test_size >= 0.25),
        says: Says::Report(Kind::NothingToLearn, &["{n} held-out rows have {n} tokens to measure on"]),
        knows: |args, _, _| args.test_size = Some(0.3),
    },
    Cause {
        name: "adapters on the gate",
        stage: Stage::Save,
        strike: |args| args.target_modules = None,
        cure: Cure::Made(|seen| !seen.spec.target_modules.contains(&TargetModule::GateProj)),
        says: Says::Python("export.py", "rename", &["KeyError: {word}"]),
        knows: |args, _, _| args.target_modules = Some(vec![TargetModule::QProj, TargetModule::VProj]),
    },
];

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

    /// What happens to a container: `None` if it does its work, otherwise what is said. An attempt's luck is drawn from
    /// `luck`, which is nothing for the first one.
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
        model: pick(random, &crate::house::MODELS).into(),
        dataset: pick(random, &crate::house::DATASETS).into(),
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
