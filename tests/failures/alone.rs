//! Jobs that drydock mends by itself, and jobs that go on where the failed one had come to.

use drydock::api::JobView;
use drydock::remedy::Chooser;
use drydock::remedy::verdict::Verdict;
use drydock_spec::JobId;
use drydock_spec::remedy::Meaning;

use crate::case::{Case, Guise, MENDED};
use crate::order::Order;
use crate::place::{Place, label};
use crate::room::OF_THE_WORKER;

fn order(name: &str) -> Order {
    let case: &Case = OF_THE_WORKER.iter().find(|case| case.name == name).unwrap();
    (case.order)(Guise::of(name, MENDED))
}

const TIME: &str = "more steps than time";
const MEMORY: &str = "batch larger than memory";
const DISK: &str = "model larger than the output";

impl Place {
    /// The remedies that drydock has tried for the job, the newest first.
    async fn tried(&self, job: JobId) -> Vec<(String, Chooser, Option<Verdict>)> {
        let trials = self.house.desk.store.trials(job).await.unwrap();
        trials.into_iter().map(|trial| (trial.remedy.to_string(), trial.chosen_by, trial.verdict)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_short_is_raised_in_the_next_attempt_of_the_same_job() {
    let place = Place::of_the_worker().await;
    let mut jobs = Vec::new();
    let orders = [
        ("limits.time_limit_s", order(TIME).with("save_steps", 20)),
        ("limits.memory_mib", order(MEMORY)),
        ("limits.disk_mib", order(DISK).with("save_steps", 1)),
    ];
    for (limit, order) in orders {
        jobs.push((limit, place.accept(&limit.replace('.', "-"), order.by_itself(4)).await));
    }
    place.house.start().await.unwrap();
    for (limit, job) in jobs {
        let view = place.until(job, JobView::is_done).await;
        assert_eq!(view.state, "succeeded", "{limit}: {view:#?}");
        assert!(view.attempt > 1, "{limit} was enough: {view:#?}");
        let (remedy, by, verdict) = place.tried(job).await.swap_remove(0);
        assert!(remedy.starts_with(limit), "{limit}: {remedy}");
        assert_eq!((by, verdict), (Chooser::Auto, Some(Verdict::Worked)), "{remedy}");
        // The first step was one too much for the memory; before it there is nothing to go on from.
        let goes_on = view.resumed_from.is_some_and(|from| from.job.is_none() && from.step > 0);
        assert_eq!(goes_on, limit != "limits.memory_mib", "{limit}: {view:#?}");
    }
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_out_of_time_is_finished_by_another_job_that_goes_on_from_its_checkpoint() {
    let place = Place::of_the_worker().await;
    let job = place.accept(&label(TIME, MENDED), order(TIME).with("save_steps", 20)).await;
    place.house.start().await.unwrap();
    let failed = place.until(job, JobView::is_done).await;
    assert_eq!(failed.state, "failed", "{failed:#?}");
    let offered = place.house.desk.suggest(job).await.unwrap().remedies.swap_remove(0);
    assert_eq!((offered.remedy.to_string().as_str(), offered.meaning), ("limits.time_limit_s = fit", Meaning::Same));
    let better = place.apply(job, &offered.remedy).await;
    let view = place.until(better, JobView::is_done).await;
    assert_eq!((view.state.as_str(), view.remedy_of), ("succeeded", Some(job)), "{view:#?}");
    let from = view.resumed_from.unwrap();
    assert_eq!((from.job, Some(from.step)), (Some(job), offered.goes_on_from));
    place.close().await;
}
