//! What the sandbox does not let a worker do.

use drydock_spec::FailureKind::NotPermitted;
use drydock_spec::Stage;

use crate::case::{Case, Deed, Guise};
use crate::order::Order;

const fn refused(name: &'static str, order: fn(Guise) -> Order) -> Case {
    Case { name, kind: NotPermitted, stage: Some(Stage::Load), order, mend: None }
        .mended_by(Deed::MendsWorker, "outside: mend_worker")
}

pub(crate) const CASES: &[Case] = &[
    refused("forbidden system call", |guise| Order::probe(guise, "namespace", "load", "0")),
    refused("killed for a system call", |guise| Order::probe(guise, "forbidden-call-kills", "load", "0")),
    refused("no network", |guise| Order::probe(guise, "network", "load", guise.pick(["443", "8080"]))),
    refused("input is read-only", |guise| Order::probe(guise, "input", "load", guise.pick(["a", "bc"]))),
    refused("file of another's", |guise| Order::probe(guise, "locked", "load", guise.pick(["settings", "defaults"]))),
];
