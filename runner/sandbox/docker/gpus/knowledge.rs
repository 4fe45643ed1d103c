//! What is known of the injectors on this host. It holds for the circumstances in which they were tried, and is found out
//! anew when these change: another life of the engine, another image, driver or set of GPUs.

use std::time::Duration;

use drydock_gpu::inventory::Inventory;
use tokio::time::Instant;

use super::CdiDevices;
use crate::sandbox::gpus::{GpuAccess, Injector, InjectorChoice, RefusedInjector};

/// How long it takes until all are tried again, where none works: somebody may be mending the host.
const AGAIN: Duration = Duration::from_secs(60);

/// What the working of an injector depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Circumstances {
    pub(in super::super) choice: InjectorChoice,
    /// The engine's life.
    pub(in super::super) incarnation: String,
    /// The worker image's id, if there is one.
    pub(in super::super) image: Option<String>,
    /// Whether the image says that it computes on GPUs.
    pub(in super::super) most_gpus: u32,
    /// UUIDs of all that jobs can be given.
    pub(in super::super) units: Vec<String>,
    pub(in super::super) cdi: CdiDevices,
    pub(in super::super) driver: Option<String>,
}

impl Circumstances {
    /// The UUIDs of all that jobs can be given, in an order that does not change.
    pub(in super::super) fn units(gpus: &Inventory) -> Vec<String> {
        let mut units: Vec<_> = gpus.units().into_iter().map(|unit| unit.uuid).collect();
        units.sort();
        units
    }

    /// Why there is nothing to try.
    fn obstacle(&self) -> Option<&'static str> {
        if self.choice == InjectorChoice::Off {
            Some("sandbox.gpus is off")
        } else if self.units.is_empty() {
            Some("no GPU is known on this host that jobs could be given")
        } else if self.image.is_none() {
            Some("the worker image is missing")
        } else if self.most_gpus == 0 {
            Some(
                "the worker image computes on the CPU only, as its label `drydock.devices` says; set sandbox.image to one \
                 with `cuda` in it, which `make image-cuda` builds",
            )
        } else {
            None
        }
    }
}

/// What has been found out so far.
#[derive(Debug, Default)]
pub(in super::super) struct Knowledge {
    /// Nothing before the engine has been asked for the first time.
    circumstances: Option<Circumstances>,
    in_force: Option<Injector>,
    refused: Vec<(RefusedInjector, Instant)>,
}

impl Knowledge {
    /// Forgets what was found out in other circumstances.
    pub(in super::super) fn is_about(&mut self, now: Circumstances) {
        if self.circumstances.as_ref() != Some(&now) {
            *self = Self { circumstances: Some(now), ..Self::default() };
        }
    }

    /// The next injector to try, if one is needed and there is one.
    pub(in super::super) fn next(&mut self, now: Instant) -> Option<Injector> {
        let circumstances = self.circumstances.as_ref()?;
        if self.in_force.is_some() || circumstances.obstacle().is_some() {
            return None;
        }
        let injectors = circumstances.choice.injectors();
        let untried = |refused: &[(RefusedInjector, Instant)]| {
            injectors.iter().copied().find(|one| refused.iter().all(|(refused, _)| refused.injector != *one))
        };
        let last = self.refused.iter().map(|(_, at)| *at).max();
        if untried(&self.refused).is_none() && last.is_some_and(|last| now.duration_since(last) >= AGAIN) {
            self.refused.clear();
        }
        untried(&self.refused)
    }

    /// The injector works.
    pub(in super::super) fn works(&mut self, injector: Injector) {
        self.in_force = Some(injector);
    }

    /// The injector does not work, or does not any more.
    pub(in super::super) fn refuse(&mut self, injector: Injector, why: &str, now: Instant) {
        if self.in_force == Some(injector) {
            self.in_force = None;
        }
        self.refused.retain(|(refused, _)| refused.injector != injector);
        self.refused.push((RefusedInjector { injector, why: why.to_owned() }, now));
    }

    /// All of it, for others to see.
    pub(in super::super) fn access(&self) -> GpuAccess {
        let refused: Vec<_> = self.refused.iter().map(|(refused, _)| refused.clone()).collect();
        let Some(circumstances) = &self.circumstances else { return GpuAccess::default() };
        let all_tried = refused.len() == circumstances.choice.injectors().len();
        let trying = circumstances.obstacle().is_none() && self.in_force.is_none() && !all_tried;
        let injection = match (circumstances.obstacle(), self.in_force) {
            (Some(obstacle), _) => Err(obstacle.to_owned()),
            (None, Some(injector)) => Ok(injector),
            (None, None) if all_tried => {
                let reasons: Vec<_> = refused.iter().map(|one| format!("{}: {}", one.injector, one.why)).collect();
                Err(format!("no injector works here ({})", reasons.join("; ")))
            }
            (None, None) => Err("which injector works here is being tried".to_owned()),
        };
        GpuAccess { units: circumstances.units.len(), most_gpus: circumstances.most_gpus, injection, trying, refused }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut Circumstances);

    fn circumstances() -> Circumstances {
        Circumstances {
            choice: InjectorChoice::Auto,
            incarnation: "a".into(),
            image: Some("sha256:0".into()),
            most_gpus: 1,
            units: vec!["GPU-1".into()],
            cdi: CdiDevices::default(),
            driver: Some("580.1".into()),
        }
    }

    fn knowledge(about: Circumstances) -> Knowledge {
        let mut knowledge = Knowledge::default();
        knowledge.is_about(about);
        knowledge
    }

    #[test]
    fn injectors_are_tried_in_their_order_until_one_works() {
        let now = Instant::now();
        let mut known = knowledge(circumstances());
        assert_eq!(known.next(now), Some(Injector::Cdi));
        known.refuse(Injector::Cdi, "not spoken", now);
        assert_eq!(known.next(now), Some(Injector::Nvidia));
        assert!(known.access().injection.unwrap_err().contains("being tried"));
        assert_eq!(known.access().barrier(), None, "what is not known bars nobody");
        known.works(Injector::Nvidia);
        assert_eq!((known.next(now), known.access().injection), (None, Ok(Injector::Nvidia)));
        assert_eq!(known.access().refused[0].why, "not spoken");
    }

    #[test]
    fn one_that_stops_working_gives_way_to_the_next() {
        let now = Instant::now();
        let mut known = knowledge(circumstances());
        known.works(Injector::Cdi);
        known.refuse(Injector::Cdi, "unresolvable", now);
        assert_eq!(known.next(now), Some(Injector::Nvidia));
    }

    #[test]
    fn where_none_works_every_reason_is_said_and_all_are_tried_again_after_a_while() {
        let now = Instant::now();
        let mut known = knowledge(circumstances());
        for injector in Injector::ALL {
            known.refuse(injector, &format!("no {injector}"), now);
        }
        assert!(known.access().barrier().is_some());
        let why = known.access().injection.unwrap_err();
        assert!(
            ["cdi: no cdi", "nvidia: no nvidia", "devices: no devices"].iter().all(|one| why.contains(one)),
            "{why}"
        );
        assert_eq!(known.next(now + AGAIN / 2), None);
        assert_eq!(known.next(now + AGAIN), Some(Injector::Cdi));
    }

    #[test]
    fn other_circumstances_begin_anew() {
        let changed: [Change; 5] = [
            |c| c.incarnation = "b".into(),
            |c| c.image = Some("sha256:1".into()),
            |c| c.units.push("GPU-2".into()),
            |c| c.driver = None,
            |c| c.cdi.spoken = true,
        ];
        for change in changed {
            let mut known = knowledge(circumstances());
            known.works(Injector::Nvidia);
            known.is_about(circumstances());
            assert_eq!(known.access().injection, Ok(Injector::Nvidia), "nothing has changed");
            let mut other = circumstances();
            change(&mut other);
            known.is_about(other);
            assert_eq!(known.next(Instant::now()), Some(Injector::Cdi));
        }
    }

    #[test]
    fn nothing_is_tried_where_nothing_could_come_of_it() {
        let cases: [(Change, &str); 4] = [
            (|c| c.choice = InjectorChoice::Off, "sandbox.gpus is off"),
            (|c| c.units.clear(), "no GPU is known"),
            (|c| c.image = None, "image is missing"),
            (|c| c.most_gpus = 0, "make image-cuda"),
        ];
        for (change, words) in cases {
            let mut now = circumstances();
            change(&mut now);
            let mut known = knowledge(now);
            assert_eq!(known.next(Instant::now()), None);
            let why = known.access().injection.unwrap_err();
            assert!(why.contains(words), "{why}");
        }
    }

    #[test]
    fn what_was_chosen_is_the_only_one_to_be_tried() {
        let now = Instant::now();
        let mut known = knowledge(Circumstances { choice: InjectorChoice::Devices, ..circumstances() });
        assert_eq!(known.next(now), Some(Injector::Devices));
        known.refuse(Injector::Devices, "no driver", now);
        assert_eq!(known.next(now), None);
        assert_eq!(known.access().injection.unwrap_err(), "no injector works here (devices: no driver)");
    }
}
