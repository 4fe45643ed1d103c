//! Limits that a job runs into: memory, disk, time, silence, processes.

use drydock_spec::FailureKind::{Crashed, DiskFull, OutOfMemory, Silent, TimeLimit};
use drydock_spec::{FailureKind, Stage};

use crate::case::{Case, Deed, Guise};
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
        mend: None,
    }
    .mended("limits.memory_mib = fit"),
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
        mend: None,
    }
    .mended("limits.memory_mib = fit"),
    Case {
        name: "more steps than time",
        kind: TimeLimit,
        stage: Some(Stage::Train),
        order: |guise| {
            Order::finetune(guise)
                .with("num_train_epochs", 10_000)
                .with("max_steps", guise.pick([5000, 6000]))
                .limit("time_limit_s", guise.pick([3, 4]))
        },
        mend: None,
    }
    .mended("limits.time_limit_s = fit"),
    // The planner refuses a model that is too large for the output; another one takes its place.
    Case {
        name: "model larger than the output",
        kind: DiskFull,
        stage: Some(Stage::Save),
        order: |guise| {
            let size = Size { hidden: guise.pick([512, 576]), layers: 4, seed: guise.seed };
            let mut order = Order::finetune(guise).with("keep", "merged").limit("disk_mib", guise.pick([16, 18]));
            order.damage = Damage::other_model(model::files(size));
            order.limit("memory_mib", 1024)
        },
        mend: None,
    }
    .mended("limits.disk_mib"),
];

const fn probe(name: &'static str, kind: FailureKind, stage: Stage, order: fn(Guise) -> Order) -> Case {
    Case { name, kind, stage: Some(stage), order, mend: None }
}

pub(crate) const OF_THE_PROBE: &[Case] = &[
    probe("memory in another process", OutOfMemory, Stage::Tokenize, |guise| {
        Order::probe(guise, "child-eats", "tokenize", guise.pick(["110", "150"]))
    })
    .mended("limits.memory_mib = fit"),
    probe("scratch files in memory", OutOfMemory, Stage::Evaluate, |guise| {
        Order::probe(guise, "unmapped", "evaluate", guise.pick(["110", "150"]))
    })
    .mended("limits.memory_mib = fit"),
    probe("output full", DiskFull, Stage::Save, |guise| {
        Order::probe(guise, "output", "save", guise.pick(["20", "30"]))
    })
    .mended("limits.disk_mib"),
    probe("too many files", DiskFull, Stage::Save, |guise| {
        Order::probe(guise, "files", "save", guise.pick(["1500", "2200"]))
    })
    .mended("limits.disk_mib"),
    probe("file larger than the output", DiskFull, Stage::Save, |guise| {
        Order::probe(guise, "one-large-file", "save", guise.pick(["20", "30"]))
    })
    .mended("limits.disk_mib"),
    probe("scratch space full", DiskFull, Stage::Tokenize, |guise| {
        Order::probe(guise, "scratch", "tokenize", guise.pick(["40", "50"]))
    })
    .mended_by(Deed::Configures, "outside: raise_tmp"),
    probe("no sign of life", Silent, Stage::Train, |guise| {
        let pauses = guise.pick(["linger 2 2500 train", "linger 2 4500 train"]);
        Order::probe(guise, pauses, "", "").limit("silence_limit_s", guise.pick([1, 2]))
    })
    .mended("limits.silence_limit_s * 4"),
    probe("too many threads", Crashed, Stage::Train, |guise| {
        Order::probe(guise, "threads", "train", guise.pick(["100", "200"]))
    })
    .mended_by(Deed::Configures, "outside: raise_pids"),
];
