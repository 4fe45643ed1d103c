//! What experience does to what is offered. The engine's workers fail by rules that nobody else knows of.

use std::sync::atomic::{AtomicUsize, Ordering};

use drydock::sandbox::Launch;
use drydock_spec::contract::{AttemptSpec, SPEC_PATH};
use drydock_spec::finetune::FinetuneSpec;
use drydock_spec::recipe::DType;
use drydock_spec::{FinetuneArgs, JobSpec};

use super::remedies::{apply, asks, finetune, names, offered, stocked};
use super::*;

/// Has every worker fail with a word of its own, unless `passes` holds for what it is told to do.
fn fails_unless(world: &World, passes: impl Fn(&FinetuneSpec) -> bool + Send + Sync + 'static) {
    let fails = AtomicUsize::new(0);
    world.engine.answer(move |launch: &Launch| {
        let mount = launch.mounts.iter().find(|mount| mount.target == SPEC_PATH).unwrap();
        let attempt: AttemptSpec = serde_json::from_slice(&std::fs::read(&mount.source).unwrap()).unwrap();
        let JobSpec::Finetune(spec) = &attempt.spec else { panic!("{:?}", attempt.spec) };
        if passes(spec) {
            return success();
        }
        let number = fails.fetch_add(1, Ordering::Relaxed);
        let printed = format!("loaded shard {number}\nfatal error: tile {number} of /data/x{number} does not fit\n");
        vec![Step::Say(started()), Step::Say(Report::Stage { stage: Stage::Train }), Step::Print(printed), exit(3)]
    });
}

/// Submits a job that fails.
async fn failing(world: &World, args: FinetuneArgs) -> JobId {
    let id = asks(world, args).await;
    assert_eq!(world.until_done(id).await.state, "failed");
    id
}

async fn succeeds(world: &World, id: JobId) -> bool {
    world.until_done(id).await.state == "succeeded"
}

/// Whether what is offered first cures the job; if not, somebody submits it with `cure`.
async fn cured_by_first(world: &World, args: FinetuneArgs, cure: FinetuneArgs) -> bool {
    let failed = failing(world, args).await;
    let better = apply(world, failed, None).await.unwrap().id;
    if succeeds(world, better).await {
        return true;
    }
    let own = asks(world, cure).await;
    assert!(succeeds(world, own).await);
    false
}

#[tokio::test]
async fn what_cured_a_job_once_cures_the_next_ones_at_once_and_what_it_does_not_need_is_left_out() {
    let (world, _folder) = stocked([]).await;
    fails_unless(&world, |spec| spec.recipe.dtype == DType::F32 && !spec.recipe.packing);
    let args = |weight_decay, lora_dropout| FinetuneArgs {
        dtype: Some(DType::Bf16),
        packing: Some(true),
        weight_decay: Some(weight_decay),
        lora_dropout: Some(lora_dropout),
        ..finetune()
    };
    // Two of four changes cure it.
    let cure = FinetuneArgs { dtype: Some(DType::F32), packing: Some(false), ..args(0.02, 0.1) };
    let mut cured = Vec::new();
    for (weight_decay, lora_dropout) in [(0.0, 0.0), (0.02, 0.0), (0.0, 0.1), (0.03, 0.2), (0.0, 0.0)].repeat(2) {
        let args = args(weight_decay, lora_dropout);
        cured.push(Box::pin(cured_by_first(&world, args, cure.clone())).await);
    }
    let of = |half: &[bool]| half.iter().filter(|cured| **cured).count();
    assert!(!cured[0] && of(&cured[5..]) == 5, "{cured:?}");
    let last = failing(&world, args(0.0, 0.0)).await;
    let names = names(&offered(&world, last).await);
    assert_eq!(names[0], "dtype = \"f32\", packing = false", "{names:?}");
}

#[tokio::test]
async fn what_passes_by_itself_is_tried_again_before_anything_is_changed() {
    let (world, _folder) = stocked([]).await;
    let attempts = AtomicUsize::new(0);
    fails_unless(&world, move |_| attempts.fetch_add(1, Ordering::Relaxed) % 2 == 1);
    // Somebody takes chance for their own merit, again and again.
    let change = || FinetuneArgs { packing: Some(true), ..finetune() };
    failing(&world, finetune()).await;
    let own = asks(&world, change()).await;
    assert!(succeeds(&world, own).await);
    let failed = failing(&world, finetune()).await;
    let again = apply(&world, failed, Some("try again")).await.unwrap().id;
    assert!(succeeds(&world, again).await);
    for _ in 0..2 {
        let failed = failing(&world, finetune()).await;
        let patched = apply(&world, failed, Some("packing = true")).await.unwrap().id;
        assert!(succeeds(&world, patched).await);
    }
    let failed = failing(&world, finetune()).await;
    let list = offered(&world, failed).await;
    assert_eq!(names(&list)[0], "try again", "{list:#?}");
    let patch = list.remedies.iter().find(|one| one.remedy.to_string() == "packing = true").unwrap();
    assert_eq!((patch.record.here.worked, patch.record.here.tried), (3, 3), "the record stays what it is");
    assert!(patch.sure < list.remedies[0].sure, "{list:#?}");
}

#[tokio::test]
async fn what_was_tried_and_taken_back_on_the_way_is_no_part_of_the_cure() {
    let (world, _folder) = stocked([]).await;
    fails_unless(&world, |spec| spec.recipe.dtype == DType::F32);
    let args = FinetuneArgs { dtype: Some(DType::Bf16), learning_rate: Some(1e-3), ..finetune() };
    let failed = failing(&world, args.clone()).await;
    let lower = apply(&world, failed, Some("learning_rate * 0.1")).await.unwrap().id;
    assert!(!succeeds(&world, lower).await);
    let own = asks(&world, FinetuneArgs { dtype: Some(DType::F32), ..args.clone() }).await;
    assert!(succeeds(&world, own).await);
    let next = failing(&world, args).await;
    let list = offered(&world, next).await;
    assert_eq!(names(&list)[0], "dtype = \"f32\"", "{list:#?}");
}
