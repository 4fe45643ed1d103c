//! Whatever happens, in whatever order: a simulation of jobs, faults and time over the real store, the real passes and
//! the real folders, with a scripted engine and a clock that is moved by hand.
//!
//! A sequence of [`ops::Op`]s is drawn from a seed; after each of them [`rules`] are checked, and at the end all faults
//! cease and every job must end. A sequence that breaks a rule is shrunk to a short one that still does, and printed with
//! the seed that it came from. `DRYDOCK_SEED` and `DRYDOCK_SEQUENCES` choose others and more of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../harness/harness.rs"]
mod harness;
mod life;
mod ops;
mod room;
mod rules;

use ops::{Op, Weights};
use proptest::collection::vec;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestRunner};

/// Sequences of each test, where nobody asks for another number.
const SEQUENCES: u32 = 700;
/// Ops of a sequence at most.
const LENGTH: usize = 24;

fn setting(name: &str, usual: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} = {text}: a whole number is expected")),
        Err(_) => usual,
    }
}

fn simulate(weights: Weights) {
    life::be_nobody_special();
    let seed = setting("DRYDOCK_SEED", 1);
    let config = Config {
        cases: setting("DRYDOCK_SEQUENCES", SEQUENCES.into()).try_into().unwrap(),
        rng_seed: RngSeed::Fixed(seed),
        rng_algorithm: RngAlgorithm::ChaCha,
        failure_persistence: None,
        max_shrink_iters: 400,
        ..Config::default()
    };
    let sequences = vec(ops::drawn(weights), 1..LENGTH);
    let ran = TestRunner::new(config).run(&sequences, |ops| {
        live(ops);
        Ok(())
    });
    if let Err(error) = ran {
        panic!("DRYDOCK_SEED={seed} leads to a broken rule; shrunk: {error}");
    }
}

/// A world's whole life, in which the rules hold after each thing that happens, and at the end.
fn live(ops: Vec<Op>) {
    let mut world = life::World::new();
    for op in ops {
        world.happen(op);
        rules::check(&mut world);
    }
    world.all_faults_cease();
    rules::check_the_end(&mut world);
}

#[test]
fn a_gateway_that_is_killed_keeps_a_true_account() {
    simulate(Weights { crashes: 6, engine: 1, time: 2 });
}

#[test]
fn an_engine_that_fails_leaves_a_true_account() {
    simulate(Weights { crashes: 1, engine: 6, time: 2 });
}

#[test]
fn time_that_passes_and_jumps_leaves_a_true_account() {
    simulate(Weights { crashes: 1, engine: 1, time: 8 });
}

/// What a sequence that once broke a rule looked like; each is a bug that was mended.
#[test]
fn what_once_went_wrong_goes_right() {
    life::be_nobody_special();
    ops::once_broken().into_iter().for_each(live);
}

#[test]
fn a_job_over_which_one_gateway_after_the_other_dies_is_given_up() {
    life::be_nobody_special();
    let mut world = life::World::new();
    let gpus = ops::Gpus::Own(1);
    world.happen(Op::Submit { story: ops::Story::Silent, reads: None, large: false, attempts: 1, gpus });
    world.happen(Op::Dispatch);
    for _ in 0..49 {
        world.happen(Op::Crash { polls: 0 });
    }
    assert!(world.told()[0].starts_with("Running"), "{:?}", world.told());
    world.happen(Op::Crash { polls: 0 });
    assert!(world.told()[0].contains("50 gateways in a row died"), "{:?}", world.told());
}

#[test]
fn what_runs_on_a_gpu_that_is_damaged_ends_and_its_job_goes_on_upon_another() {
    life::be_nobody_special();
    let mut world = life::World::new();
    let gpus = ops::Gpus::Own(1);
    world.happen(Op::Submit { story: ops::Story::Success, reads: None, large: false, attempts: 2, gpus });
    world.happen(Op::Dispatch);
    world.happen(Op::Damage(0));
    // News of a kill for memory may come late, and is waited for.
    for _ in 0..12 {
        world.happen(Op::Advance(1_000));
    }
    assert!(world.told()[0].starts_with("Queued"), "{:?}", world.told());
    for op in [Op::Crash { polls: 0 }, Op::Advance(300_000), Op::Dispatch] {
        world.happen(op);
        rules::check(&mut world);
    }
    assert!(world.told()[0].starts_with("Running"), "{:?}", world.told());
    world.all_faults_cease();
    rules::check_the_end(&mut world);
    assert!(world.told()[0].contains("Succeeded"), "{:?}", world.told());
}

/// The same sequence takes the same course: without that, a seed would be worth nothing.
#[test]
fn a_sequence_takes_the_same_course_again() {
    life::be_nobody_special();
    let course = || {
        let mut world = life::World::new();
        let mut course = Vec::new();
        for op in [
            Op::submit(ops::Story::Lost),
            Op::Submit {
                story: ops::Story::Success,
                reads: None,
                large: false,
                attempts: 2,
                gpus: ops::Gpus::Share(30),
            },
            Op::submit(ops::Story::Success),
            Op::Dispatch,
            Op::GoOn,
            Op::Crash { polls: 3 },
            Op::Advance(40_000),
            Op::Dispatch,
            Op::GoOn,
        ] {
            world.happen(op);
            course.push(world.told());
        }
        course
    };
    assert_eq!(course(), course());
}
