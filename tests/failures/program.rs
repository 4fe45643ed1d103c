//! Workers that crash, or break the contract that every worker has with the gateway.

use drydock_spec::FailureKind::{ArtifactRejected, ContractBroken, Crashed, EngineLost, Unexplained};
use drydock_spec::{FailureKind, Stage};

use crate::case::{Case, Deed, Guise};
use crate::order::{Meanwhile, Order};

const fn dies(name: &'static str, kind: FailureKind, order: fn(Guise) -> Order) -> Case {
    let remedy = match kind {
        ContractBroken => "outside: mend_image",
        _ => "outside: mend_worker",
    };
    Case { name, kind, stage: Some(Stage::Train), order, mend: None }.mended_by(Deed::MendsWorker, remedy)
}

pub(crate) const CASES: &[Case] = &[
    dies("memory that is not its own", Crashed, |guise| Order::probe(guise, "crash", "train", "0")),
    dies("abort", Crashed, |guise| Order::probe(guise, "abort", "train", "0")),
    dies("stack used up", Crashed, |guise| Order::probe(guise, "overflow", "train", guise.pick(["1", "9"]))),
    dies("unknown instruction", Crashed, |guise| Order::probe(guise, "unknown-instruction", "train", "0")),
    dies("file cut under its map", Crashed, |guise| Order::probe(guise, "unaligned", "train", "0")),
    dies("panic", Crashed, |guise| Order::probe(guise, "outside-the-list", "train", guise.pick(["3", "11"]))),
    dies("exception of Python", Unexplained, |guise| {
        Order::probe(guise, "python", "train", guise.pick(["label", "completion"]))
    }),
    dies("left without a word", Unexplained, |guise| Order::probe(guise, "leave", "train", "0")),
    dies("no final report", ContractBroken, |guise| Order::probe(guise, "quiet", "train", "0")),
    dies("reports that are none", ContractBroken, |guise| {
        Order::probe(guise, "garbage", "train", guise.pick(["0.5", "nan"]))
    }),
    dies("report without an end", ContractBroken, |guise| {
        Order::probe(guise, "long-report", "train", guise.pick(["2000000", "3000000"]))
    }),
    dies("report after the last", ContractBroken, |guise| {
        Order::probe(guise, "afterword", "train", guise.pick(["done", "bye"]))
    }),
    dies("claim that is not its to make", ContractBroken, |guise| {
        Order::probe(guise, "claim", "train", guise.pick(["17", "4"]))
    }),
    dies("killed from outside", EngineLost, |guise| waits(guise).meanwhile(Meanwhile::Killed)).mended("try again"),
    Case {
        stage: Some(Stage::Collect),
        ..dies("link among the artifacts", ArtifactRejected, |guise| {
            Order::probe(guise, "link", "save", guise.pick(["latest", "best.safetensors"]))
        })
    },
    Case {
        stage: Some(Stage::Collect),
        ..dies("artifact with two names", ArtifactRejected, |guise| {
            Order::probe(guise, "two-names", "save", guise.pick(["latest", "best.safetensors"]))
        })
    },
    Case {
        stage: Some(Stage::Collect),
        ..dies("artifact with no name to show", ArtifactRejected, |guise| {
            Order::probe(guise, "wild-name", "save", guise.pick(["latest", "best.safetensors"]))
        })
    },
];

/// One that says something and goes on for a while.
fn waits(guise: Guise) -> Order {
    Order::probe(guise, guise.pick(["linger 160 50 train", "linger 200 40 train"]), "", "")
}
