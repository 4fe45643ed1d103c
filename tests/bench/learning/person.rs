//! Those who submit jobs: they try what is offered, and when that does not help, some of them know better.

use std::sync::Arc;

use drydock::api::JobView;
use drydock_spec::Remedy;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::causes::Cure;
use crate::house::House;
use crate::struck::Struck;

/// Remedies, or tries unchanged, before somebody thinks for themselves.
const PATIENCE: usize = 3;
/// How many of them know the cure then.
const KNOWS: f64 = 0.8;

/// What became of a job that was struck.
#[derive(Debug, Clone)]
pub(crate) struct Story {
    /// The place of its cause in the table.
    pub(crate) cause: usize,
    /// Whether the first thing that was tried cured it.
    pub(crate) by_first: bool,
    /// Whether it was cured in the end, also by somebody who knew how.
    pub(crate) cured: bool,
    /// Attempts, the one that failed first among them.
    pub(crate) attempts: u32,
    /// What was tried first.
    pub(crate) first: Option<String>,
}

fn succeeded(job: &JobView) -> bool {
    job.state == "succeeded"
}

/// Submits the job and tries what is offered.
pub(crate) async fn follows_advice(house: &House, struck: &Arc<Struck>, random: &mut StdRng) -> Story {
    let mut story = Story { cause: 0, by_first: false, cured: false, attempts: 0, first: None };
    let mut job = house.submit(struck.args.clone(), struck.limits.clone()).await;
    story.attempts += job.attempt;
    assert!(!succeeded(&job), "{} did not strike", struck.cause.name);
    for tried in 0..PATIENCE {
        let Some(remedy) = house.first_offer(job.id).await else { break };
        if tried == 0 {
            story.first = Some(remedy.to_string());
        }
        if let Some(action) = remedy.outside() {
            struck.mend(action);
        }
        job = house.apply(job.id, remedy).await;
        story.attempts += job.attempt;
        if succeeded(&job) {
            (story.by_first, story.cured) = (tried == 0, true);
            return story;
        }
    }
    if random.random_bool(KNOWS) {
        let (mut args, mut limits) = struck.known(random);
        if let Cure::Outside(action) = struck.cause.cure {
            // The job was not what was the matter; who has found out writes it down.
            struck.mend(action);
            house.advise(job.id, Remedy::Outside(action)).await;
            (args, limits) = (struck.args.clone(), struck.limits.clone());
        }
        job = house.submit(args, limits).await;
        story.attempts += job.attempt;
        story.cured = succeeded(&job);
    }
    story
}

/// Submits the job, and the same again and again.
pub(crate) async fn insists(house: &House, struck: &Arc<Struck>) -> Story {
    let first = Some("the same again".to_owned());
    let mut story = Story { cause: 0, by_first: false, cured: false, attempts: 0, first };
    for tried in 0..=PATIENCE {
        let job = house.submit(struck.args.clone(), struck.limits.clone()).await;
        story.attempts += job.attempt;
        if succeeded(&job) {
            (story.by_first, story.cured) = (tried == 1, true);
            break;
        }
    }
    story
}
