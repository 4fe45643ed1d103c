//! The hidden table: why jobs fail, what a failing worker says, and what would cure it.
//!
//! Nothing of it is known to the house. What its containers say, and whether they succeed, is all that comes through.

use drydock_spec::finetune::{FinetuneArgs, FinetuneSpec, Method, TargetModule};
use drydock_spec::recipe::DType;
use drydock_spec::remedy::Action;
use drydock_spec::{FailureKind as Kind, LimitArgs, Stage};

use crate::says::Says;

pub(crate) const DEVICES: [&str; 3] = ["cpu", "NVIDIA A100", "NVIDIA L4"];
const A100: &str = DEVICES[1];

/// What an attempt is made with.
pub(crate) struct Seen<'a> {
    pub(crate) spec: &'a FinetuneSpec,
    pub(crate) memory: u64,
    pub(crate) disk: u64,
    pub(crate) device: &'a str,
    /// The limits of the job that was struck first, in bytes.
    pub(crate) first_memory: u64,
    pub(crate) first_disk: u64,
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
    pub(crate) strike: fn(&mut FinetuneArgs),
    pub(crate) cure: Cure,
    pub(crate) says: Says,
    /// What somebody does who knows the cure, to the job as it was submitted.
    pub(crate) knows: fn(&mut FinetuneArgs, &mut LimitArgs, &str),
}

/// Strikes whatever the job is.
fn any(_: &mut FinetuneArgs) {}

/// Of the job's options none is the cure.
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
    // The rules' first remedy against every divergence is wrong, and their second does more than it takes.
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
