//! Hubs that do not give what they have promised: the model was there, and open, when the job was planned.

use drydock_spec::FailureKind::{AccessDenied, HubUnavailable, NotFound};
use drydock_spec::{FailureKind, Stage};

use crate::case::{Case, Deed, Guise};
use crate::order::Order;
use crate::small_hub::Fault;

const fn case(name: &'static str, kind: FailureKind, order: fn(Guise) -> Order) -> Case {
    let remedy = match kind {
        AccessDenied => "outside: get_access",
        NotFound => "outside: correct_name",
        _ => "try again",
    };
    Case { name, kind, stage: Some(Stage::Prepare), order, mend: None }.mended_by(Deed::MendsHub, remedy)
}

pub(crate) const CASES: &[Case] = &[
    case("hub knows nobody (401)", AccessDenied, |guise| answers(guise, Fault::Status(401, None))),
    case("hub refuses (403)", AccessDenied, |guise| answers(guise, Fault::Status(403, None))),
    case("gone from the hub (404)", NotFound, |guise| answers(guise, Fault::Status(404, None))),
    case("hub is asked too often (429)", HubUnavailable, |guise| {
        answers(guise, Fault::Status(429, guise.pick([None, Some(1)])))
    }),
    case("hub is out of order (503)", HubUnavailable, |guise| answers(guise, Fault::Status(503, None))),
    case("download cut off", HubUnavailable, |guise| answers(guise, Fault::CutAfter(0))),
    case("download is something else", HubUnavailable, |guise| answers(guise, Fault::Garbage)),
];

fn answers(guise: Guise, fault: Fault) -> Order {
    let mut order = Order::finetune(guise);
    order.hub = Some(fault);
    order
}
