//! A whole house whose engine asks the hidden table what happens.

use std::sync::{Arc, Mutex};

use drydock::api::{AddModel, Advise, ApplyRemedy, JobView, LoadDataset, Submission};
use drydock::desk::Answer;
use drydock::sandbox::Launch;
use drydock::store::Against;
use drydock_spec::contract::{AttemptSpec, SPEC_PATH};
use drydock_spec::finetune::FinetuneArgs;
use drydock_spec::{JobArgs, JobId, JobSpec, LimitArgs, OnFailure, Owner, Priority, Remedy};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::harness::model;
use crate::harness::scripted::{Scripted, Step, finished, success};
use crate::harness::world::World;
use crate::says::started;
use crate::struck::Struck;

pub(crate) const MODELS: [&str; 2] = ["small", "other"];
pub(crate) const DATASETS: [&str; 3] = ["faq", "sums", "notes"];

/// What the engine goes by: the job that is struck, and the luck of its attempts.
#[derive(Default)]
struct Fate {
    struck: Option<Arc<Struck>>,
    attempts: u64,
    seed: u64,
}

pub(crate) struct House {
    world: World,
    fate: Arc<Mutex<Fate>>,
    _inputs: tempfile::TempDir,
}

impl House {
    /// A house that has models and rows, and no experience.
    pub(crate) async fn new() -> Self {
        let inputs = tempfile::tempdir().unwrap();
        model::write(inputs.path());
        let (engine, fate) = (Scripted::new(), Arc::new(Mutex::new(Fate::default())));
        let told = fate.clone();
        engine.answer(move |launch| decide(&mut told.lock().unwrap(), launch));
        let data_dirs = vec![inputs.path().to_owned()];
        let world = World::with_config(engine, |config| config.data_dirs = data_dirs).await;
        let desk = &world.house.desk;
        for name in MODELS {
            let source = Some(inputs.path().display().to_string());
            desk.models.add(AddModel { name: Some(name.into()), source, files: vec![] }).await.unwrap();
        }
        for name in DATASETS {
            let row = |n: u32| serde_json::Map::from_iter([("text".to_owned(), format!("{name} {n}").into())]);
            let rows = (0..20).map(row).collect();
            desk.load_dataset(LoadDataset { name: Some(name.into()), rows, ..LoadDataset::default() }).await.unwrap();
        }
        Self { world, fate, _inputs: inputs }
    }

    /// From now on this is what happens to containers.
    pub(crate) fn strike(&self, struck: Arc<Struck>, seed: u64) {
        *self.fate.lock().unwrap() = Fate { struck: Some(struck), attempts: 0, seed };
    }

    /// Submits a job and sees it end.
    pub(crate) async fn submit(&self, args: FinetuneArgs, limits: LimitArgs) -> JobView {
        let submission = Submission {
            job: JobArgs::Finetune(args),
            priority: Priority::default(),
            limits,
            idempotency_key: None,
            dry_run: false,
            on_failure: Some(OnFailure::Ask),
        };
        let answer = self.world.house.desk.submit(Owner::local(), submission).await.unwrap();
        self.ended(answer).await
    }

    /// What is offered first against the job's failure.
    pub(crate) async fn first_offer(&self, failed: JobId) -> Option<Remedy> {
        let list = self.world.house.desk.suggest(failed).await.unwrap();
        list.remedies.into_iter().next().map(|offered| offered.remedy)
    }

    /// Applies a remedy and sees its job end.
    pub(crate) async fn apply(&self, failed: JobId, remedy: Remedy) -> JobView {
        let asked = ApplyRemedy { remedy: Some(remedy), ..ApplyRemedy::default() };
        let answer = self.world.house.desk.apply_remedy(Owner::local(), failed, asked).await.unwrap();
        self.ended(answer).await
    }

    /// Somebody writes down what helps against the job's failure.
    pub(crate) async fn advise(&self, failed: JobId, remedy: Remedy) {
        let desk = &self.world.house.desk;
        let kept = desk.store.newest_failure(failed).await.unwrap().unwrap();
        let against = Against::Fingerprint(kept.fingerprint);
        let advise = Advise { against, remedy, note: "as before".into(), by_whom: None };
        desk.advise(&Owner::local(), advise).await.unwrap();
    }

    async fn ended(&self, answer: Answer) -> JobView {
        match answer {
            Answer::Submitted(submitted) => self.world.until_done(submitted.job.id).await,
            Answer::Planned(plan) => panic!("{plan:?}"),
        }
    }
}

/// What a container does.
fn decide(fate: &mut Fate, launch: &Launch) -> Vec<Step> {
    let mount = launch.mounts.iter().find(|mount| mount.target == SPEC_PATH).unwrap();
    let attempt: AttemptSpec = serde_json::from_slice(&std::fs::read(&mount.source).unwrap()).unwrap();
    let (Some(struck), JobSpec::Finetune(spec)) = (&fate.struck, &attempt.spec) else { return success() };
    let seed = fate.seed.wrapping_mul(1_000_003).wrapping_add(fate.attempts);
    let luck = (fate.attempts > 0).then_some(seed);
    fate.attempts += 1;
    let mut steps = vec![started(struck.device)];
    if struck.fails(spec, &launch.limits, luck) {
        let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
        // A worker says something on its way now and then.
        if random.random_bool(0.3) {
            let warning = drydock_spec::Report::Warning { code: "slow".into(), message: "the disk is slow".into() };
            steps.push(Step::Say(warning));
        }
        steps.extend(struck.cause.says.end(struck.cause.stage, &mut random));
    } else {
        steps.extend([Step::Say(finished()), Step::Exit { code: 0, oom_killed: false }]);
    }
    steps
}
