//! What the sandbox does not let a worker do.

use drydock_spec::FailureKind::{NotPermitted, Unexplained};
use drydock_spec::{FailureKind, Stage};

use crate::case::{Case, Guise};
use crate::order::Order;

const fn refused(name: &'static str, kind: FailureKind, order: fn(Guise) -> Order) -> Case {
    Case { name, kind, stage: Some(Stage::Load), order }
}

pub(crate) const CASES: &[Case] = &[
    refused("forbidden system call", Unexplained, |guise| Order::probe(guise, "namespace", "load", "0")),
    refused("killed for a system call", NotPermitted, |guise| Order::probe(guise, "forbidden-call-kills", "load", "0")),
    refused("no network", Unexplained, |guise| Order::probe(guise, "network", "load", guise.pick(["443", "8080"]))),
    refused("input is read-only", Unexplained, |guise| Order::probe(guise, "input", "load", guise.pick(["a", "bc"]))),
    refused("file of another's", Unexplained, |guise| {
        Order::probe(guise, "locked", "load", guise.pick(["settings", "defaults"]))
    }),
];
