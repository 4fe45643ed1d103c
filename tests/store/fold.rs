//! Whatever happens to jobs, in whatever order: their events fold to their rows.

use drydock::remedy::{Chooser, Source};
use drydock::store::{Cure, Entry, Lease, ReportBatch, Store};
use drydock_spec::{Attempt, FailureKind, JobEvent, JobId, JobState, Limits, Outcome, Priority};
use proptest::prelude::*;

use crate::{House, LAST, awaiting, failed, holder, metrics_line, new_job, take_over};

/// Something that happens to one of a few jobs.
#[derive(Debug, Clone)]
enum Op {
    /// Perhaps a job that reads what another one leaves.
    Submit(Option<usize>),
    FailOrphans,
    Claim(usize),
    Record(usize, u8),
    Cancel(usize),
    Finish(usize, Outcome),
    /// It fails, and the next attempt is made with a remedy.
    Cure(usize, FailureKind),
    Advance(u16),
    /// The process dies without a word and another one opens the database.
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Succeeded),
        1 => Just(Outcome::Cancelled),
        3 => proptest::sample::select(FailureKind::ALL.to_vec()).prop_map(failed),
    ];
    prop_oneof![
        2 => proptest::option::of(0..6usize).prop_map(Op::Submit),
        1 => Just(Op::FailOrphans),
        4 => (0..6usize).prop_map(Op::Claim),
        3 => (0..6usize, 0..4u8).prop_map(|(job, lines)| Op::Record(job, lines)),
        1 => (0..6usize).prop_map(Op::Cancel),
        4 => (0..6usize, outcome).prop_map(|(job, outcome)| Op::Finish(job, outcome)),
        2 => (0..6usize, proptest::sample::select(FailureKind::ALL.to_vec())).prop_map(|(job, kind)| Op::Cure(job, kind)),
        1 => (0..40_000u16).prop_map(Op::Advance),
        1 => Just(Op::Restart),
    ]
}

/// A world of a database, the jobs in it, and the leases that somebody holds.
struct World {
    house: House,
    process: u32,
    ids: Vec<JobId>,
    leases: std::collections::HashMap<JobId, Lease>,
    reports: std::collections::HashMap<JobId, usize>,
    /// Which job's result a job reads.
    awaits: std::collections::HashMap<JobId, JobId>,
}

impl World {
    fn at(&self, index: usize) -> Option<JobId> {
        self.ids.get(index % self.ids.len().max(1)).copied()
    }

    async fn happen(&mut self, op: Op) {
        let me = holder(&self.process.to_string());
        match op {
            Op::Submit(awaited) => {
                let n = self.ids.len() as u128;
                let mut new = new_job(n);
                new.priority = Priority::new((n % 3) as i8).unwrap();
                if let Some(input) = awaited.and_then(|index| self.at(index)) {
                    new.inputs = awaiting(input);
                    self.awaits.insert(new.id, input);
                }
                self.ids.push(self.house.store.submit(new).await.unwrap().job.id);
            }
            Op::FailOrphans => {
                self.house.store.fail_orphans_once().await.unwrap();
                for (id, input) in &self.awaits {
                    let (job, input) =
                        (self.house.store.job(*id).await.unwrap(), self.house.store.job(*input).await.unwrap());
                    let lost = matches!(input.state, JobState::Done(Outcome::Failed(_) | Outcome::Cancelled));
                    assert!(!lost || job.state.is_done(), "{:?} outlives {:?}", job.state, input.state);
                }
            }
            Op::Claim(index) => {
                let Some(id) = self.at(index) else { return };
                if let Some(lease) = self.house.store.claim(id, &me).await.unwrap() {
                    self.leases.insert(id, lease);
                }
            }
            Op::Record(index, lines) => {
                let Some(id) = self.at(index) else { return };
                let Some(lease) = self.leases.get_mut(&id) else { return };
                let lines: Vec<_> = (0..lines).map(|n| metrics_line(u64::from(n))).collect();
                let end_offset = lease.row().report_offset + 10 * lines.len() as u64;
                *self.reports.entry(id).or_default() += lines.len();
                lease.record(&ReportBatch { lines, end_offset }).await.unwrap();
            }
            Op::Cancel(index) => {
                if let Some(id) = self.at(index) {
                    self.house.store.request_cancel(id).await.unwrap();
                }
            }
            Op::Finish(index, outcome) => {
                let Some(id) = self.at(index) else { return };
                let Some(mut lease) = self.leases.remove(&id) else { return };
                let asked = matches!(lease.refresh().await.unwrap().state, JobState::Stopping { .. });
                if outcome == Outcome::Cancelled && !asked {
                    // Refused: nobody asked. The attempt is still under way and its lease is not spent in vain.
                    lease.finish(outcome, &[], 0).await.unwrap_err();
                    self.house.clock.advance(me.lease_ms + 1);
                    while let Some(lease) = take_over(&self.house.store, &me).await {
                        self.leases.insert(lease.job().id, lease);
                    }
                    return;
                }
                lease.finish(outcome, &[], self.house.clock.now_ms()).await.unwrap();
            }
            Op::Cure(index, kind) => {
                let Some(id) = self.at(index) else { return };
                let Some(mut lease) = self.leases.remove(&id) else { return };
                let job = lease.job();
                let limits = Limits { memory_bytes: 2 * job.limits.memory_bytes, ..job.limits };
                lease.cure(Cure {
                    remedy: "limits.memory_mib * 2".parse().unwrap(),
                    source: Source::Asked,
                    chosen_by: Chooser::Auto,
                    changes: Vec::new(),
                    spec: job.spec.clone(),
                    limits,
                    estimate: job.estimate.clone().unwrap_or_default(),
                });
                let after = lease.finish(failed(kind), &[], self.house.clock.now_ms()).await.unwrap();
                assert!(after.state.is_done() || after.limits == limits, "{:?}", after.state);
            }
            Op::Advance(ms) => self.house.clock.advance(i64::from(ms)),
            Op::Restart => {
                self.process += 1;
                self.leases.clear();
                self.house.store.close().await;
                self.house.store = Store::open(&self.house.path, self.house.clock.clone()).await.unwrap();
                let me = holder(&self.process.to_string());
                while let Some(lease) = take_over(&self.house.store, &me).await {
                    self.leases.insert(lease.job().id, lease);
                }
            }
        }
    }

    /// What must hold after everything that can happen.
    async fn check(&self) {
        for &id in &self.ids {
            let job = self.house.store.job(id).await.unwrap();
            let trials = self.house.store.trials(id).await.unwrap();
            let open = trials.iter().filter(|trial| trial.verdict.is_none()).count();
            assert!(open <= usize::from(!job.state.is_done()), "{open} open trials of a job that is {:?}", job.state);
            let log = self.house.store.log(id, 0, 10_000).await.unwrap();
            let numbers: Vec<_> = log.iter().map(|line| line.seq).collect();
            assert_eq!(numbers, (1..=job.last_seq).collect::<Vec<_>>(), "no gap and no double in the log");
            let reports = log.iter().filter(|line| matches!(line.entry, Entry::Report { .. })).count();
            assert_eq!(reports, self.reports.get(&id).copied().unwrap_or(0), "no report lost or doubled");
            let events = log.into_iter().filter_map(|line| match line.entry {
                Entry::Event(event) => Some(event),
                Entry::Report { .. } => None,
            });
            let events: Vec<JobEvent> = events.collect();
            let folded = JobState::fold(events.clone(), Attempt(LAST)).unwrap();
            assert_eq!(folded, job.state, "folding {events:?} gives the row");
            assert_eq!(job.ended_ms.is_some(), job.state.is_done());
            if let (Some(input), true) = (self.awaits.get(&id), job.started_ms.is_some()) {
                let input = self.house.store.job(*input).await.unwrap();
                assert_eq!(input.state, JobState::Done(Outcome::Succeeded), "no job starts before its input is there");
            }
        }
        let under_way = self.house.store.attempts_under_way().await.unwrap();
        let mut running = 0;
        for &id in &self.ids {
            let state = self.house.store.job(id).await.unwrap().state;
            running += usize::from(matches!(state, JobState::Running { .. } | JobState::Stopping { .. }));
        }
        assert_eq!(under_way.len(), running, "an attempt is under way exactly while its job runs");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn the_events_of_a_job_fold_to_its_row(ops in proptest::collection::vec(op(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let house = House::new().await;
            let mut world =
                World { house, process: 0, ids: vec![], leases: Default::default(), reports: Default::default(), awaits: Default::default() };
            for op in ops {
                Box::pin(world.happen(op)).await;
                world.check().await;
            }
        });
    }
}
