//! Limits that a job runs into: memory, disk, time, silence, processes.

use drydock_spec::FailureKind::{DiskFull, OutOfMemory, Silent, TimeLimit, Unexplained};
use drydock_spec::{FailureKind, Stage};

use crate::case::{Case, Guise};
use crate::damage::Damage;
use crate::harness::model::{self, Size};
use crate::order::{Order, chats};

pub(crate) const OF_THE_WORKER: &[Case] = &[
    Case {
        name: "weights larger than memory",
        kind: OutOfMemory,
        stage: Some(Stage::Load),
        order: |guise| {
            let size = Size { hidden: guise.pick([512, 576]), layers: 3, seed: guise.seed };
            Order::finetune(guise).sized(size).with("method", "full").limit("memory_mib", guise.pick([64, 72]))
        },
    },
    Case {
        name: "batch larger than memory",
        kind: OutOfMemory,
        stage: Some(Stage::Train),
        order: |guise| {
            Order::finetune(guise)
                .rows(chats(80, &"What is the sum of these? ".repeat(guise.pick([12, 14]))))
                .with("max_seq_length", 512)
                .with("per_device_train_batch_size", guise.pick([48, 64]))
                .limit("memory_mib", guise.pick([96, 104]))
        },
    },
    Case {
        name: "more steps than time",
        kind: TimeLimit,
        stage: Some(Stage::Train),
        order: |guise| {
            Order::finetune(guise)
                .with("num_train_epochs", 10_000)
                .with("max_steps", guise.pick([900_000, 800_000]))
                .limit("time_limit_s", guise.pick([3, 4]))
        },
    },
    // The planner refuses a model that is too large for the output; another one takes its place.
    Case {
        name: "model larger than the output",
        kind: DiskFull,
        stage: Some(Stage::Save),
        order: |guise| {
            let size = Size { hidden: guise.pick([512, 576]), layers: 6, seed: guise.seed };
            let mut order = Order::finetune(guise).with("keep", "merged").limit("disk_mib", guise.pick([16, 18]));
            order.damage = Damage::other_model(model::files(size));
            order.limit("memory_mib", 1024)
        },
    },
];

const fn probe(name: &'static str, kind: FailureKind, stage: Stage, order: fn(Guise) -> Order) -> Case {
    Case { name, kind, stage: Some(stage), order }
}

pub(crate) const OF_THE_PROBE: &[Case] = &[
    probe("memory in another process", OutOfMemory, Stage::Tokenize, |guise| {
        Order::probe(guise, "child-eats", "tokenize", "0")
    }),
    probe("scratch files in memory", OutOfMemory, Stage::Evaluate, |guise| Order::probe(guise, "eat", "evaluate", "0")),
    probe("output full", DiskFull, Stage::Save, |guise| {
        Order::probe(guise, "output", "save", guise.pick(["64", "80"]))
    }),
    probe("too many files", Unexplained, Stage::Save, |guise| {
        Order::probe(guise, "files", "save", guise.pick(["200000", "300000"]))
    }),
    probe("file larger than the output", DiskFull, Stage::Save, |guise| {
        Order::probe(guise, "one-large-file", "save", guise.pick(["8", "13"]))
    }),
    probe("scratch space full", DiskFull, Stage::Tokenize, |guise| {
        Order::probe(guise, "scratch", "tokenize", guise.pick(["40", "50"]))
    }),
    probe("no sign of life", Silent, Stage::Train, |guise| {
        Order::probe(guise, "linger 3 30000 train", "", "").limit("silence_limit_s", guise.pick([1, 2]))
    }),
    probe("too many threads", Unexplained, Stage::Train, |guise| {
        Order::probe(guise, "threads", "train", guise.pick(["100", "200"]))
    }),
];
