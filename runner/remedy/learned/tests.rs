use serde_json::json;

use super::*;

fn follower(n: u128, worked: bool, changes: &[(&str, Value, Value)]) -> Follower {
    let change = |(name, before, now): &(&str, Value, Value)| Change {
        name: (*name).into(),
        before: before.clone(),
        now: now.clone(),
    };
    let changes = changes.iter().map(change).collect();
    Follower { job: JobId::from_parts(1, n), device: "cpu".into(), changes, worked, applied: None }
}

fn remedies(followers: &[Follower]) -> Vec<String> {
    learn(followers, &[], "cpu").into_iter().map(|learned| learned.remedy.to_string()).collect()
}

#[test]
fn a_single_change_that_passed_is_a_remedy() {
    let lower = follower(1, true, &[("learning_rate", json!(0.01), json!(0.001)), ("seed", json!(1), json!(2))]);
    assert_eq!(remedies(&[lower]), ["learning_rate * 0.1"]);
}

#[test]
fn what_a_failed_job_had_as_well_was_not_enough() {
    let passed =
        follower(1, true, &[("learning_rate", json!(0.01), json!(0.001)), ("warmup_steps", Value::Null, json!(10))]);
    let failed = follower(2, false, &[("warmup_steps", Value::Null, json!(10))]);
    assert_eq!(remedies(&[passed.clone(), failed]), ["learning_rate * 0.1"]);
    let alone = remedies(&[passed]);
    assert_eq!(alone, ["learning_rate * 0.1, warmup_steps = 10"], "nobody knows which of them it was");
}

#[test]
fn what_passed_jobs_have_in_common_is_the_remedy() {
    let jobs = [
        follower(1, true, &[("dtype", json!("bf16"), json!("f32")), ("lora_r", json!(8), json!(16))]),
        follower(2, true, &[("dtype", json!("bf16"), json!("f32")), ("packing", json!(true), json!(false))]),
    ];
    let learned = learn(&jobs, &[], "cpu");
    assert_eq!(learned.len(), 1);
    assert_eq!(learned[0].remedy.to_string(), "dtype = \"f32\"");
    assert_eq!((learned[0].passed.len(), learned[0].seen.here), (2, Count { worked: 2, tried: 2 }));
}

#[test]
fn where_two_steps_are_needed_both_are_kept() {
    let (a, b) = (("lora_r", json!(8), json!(4)), ("dtype", json!("bf16"), json!("f32")));
    let jobs = [
        follower(1, true, &[a.clone(), b.clone()]),
        follower(2, false, std::slice::from_ref(&a)),
        follower(3, false, std::slice::from_ref(&b)),
    ];
    assert_eq!(remedies(&jobs), ["lora_r * 0.5, dtype = \"f32\""]);
}

#[test]
fn a_value_that_all_have_chosen_is_that_value_and_otherwise_the_proportion_counts() {
    let memory = |n, from: u64, to: u64| follower(n, true, &[("limits.memory_mib", json!(from), json!(to))]);
    assert_eq!(remedies(&[memory(1, 512, 1024), memory(2, 300, 600)]), ["limits.memory_mib * 2"]);
    let rate = |n, from: f64| follower(n, true, &[("learning_rate", json!(from), json!(1e-4))]);
    assert_eq!(remedies(&[rate(1, 1e-2), rate(2, 5e-2)]), ["learning_rate = 0.0001"]);
}

#[test]
fn another_job_altogether_teaches_nothing() {
    let many: Vec<_> = (0..9).map(|n| (format!("o{n}"), json!(1), json!(2))).collect();
    let many: Vec<_> = many.iter().map(|(name, a, b)| (name.as_str(), a.clone(), b.clone())).collect();
    assert_eq!(learn(&[follower(1, true, &many), follower(2, true, &[])], &[], "cpu"), []);
}

fn failed(options: Value) -> FailedJob {
    FailedJob { device: "cpu".into(), options }
}

#[test]
fn what_failed_jobs_had_from_the_beginning_was_not_enough_either() {
    let passed = follower(
        1,
        true,
        &[
            ("dtype", json!("bf16"), json!("f32")),
            ("lora_r", json!(8), json!(16)),
            ("packing", json!(true), json!(false)),
        ],
    );
    let jobs = [
        failed(json!({"dtype": "bf16", "lora_r": 32, "packing": true})),
        failed(json!({"dtype": "bf16", "lora_r": 8, "packing": false})),
    ];
    assert_eq!(learn([&passed], &jobs, "cpu")[0].remedy.to_string(), "dtype = \"f32\"");
}

#[test]
fn of_two_that_are_needed_each_is_refuted_alone_and_nothing_else_stays() {
    let passed = follower(
        1,
        true,
        &[
            ("packing", json!(true), json!(false)),
            ("warmup_ratio", json!(0.0), json!(0.1)),
            ("lora_r", json!(8), json!(4)),
        ],
    );
    let jobs = [
        failed(json!({"packing": false, "warmup_ratio": 0.0, "lora_r": 4})),
        failed(json!({"packing": true, "warmup_ratio": 0.1, "lora_r": 2})),
    ];
    let edits = learn([&passed], &jobs, "cpu")[0].remedy.to_string();
    assert_eq!(edits, "packing = false, warmup_ratio = 0.1");
}

#[test]
fn a_smaller_step_that_failed_does_not_refute_a_larger_one() {
    let rate = |n, worked, now: f64| follower(n, worked, &[("learning_rate", json!(0.01), json!(now))]);
    assert_eq!(remedies(&[rate(1, false, 0.005), rate(2, true, 0.001)]), ["learning_rate * 0.1"]);
}

#[test]
fn where_the_same_proportion_has_failed_the_value_counts() {
    let rate = |n, worked, from: f64, to: f64| follower(n, worked, &[("learning_rate", json!(from), json!(to))]);
    let jobs = [rate(1, true, 1e-3, 1e-4), rate(2, false, 5e-3, 5e-4)];
    assert_eq!(remedies(&jobs), ["learning_rate = 0.0001"]);
    // Of a limit each job needs its own.
    let memory = |n, worked, from: u64, to: u64| follower(n, worked, &[("limits.memory_mib", json!(from), json!(to))]);
    assert_eq!(remedies(&[memory(1, true, 100, 400), memory(2, false, 900, 1800)]), ["limits.memory_mib * 4"]);
}

#[test]
fn the_smallest_change_that_is_known_to_do_is_the_remedy() {
    let rate = |n, to: f64| follower(n, true, &[("learning_rate", json!(0.01), json!(to))]);
    assert_eq!(remedies(&[rate(1, 0.0001), rate(2, 0.001)]), ["learning_rate * 0.1"]);
}

#[test]
fn what_is_well_known_to_do_is_tried_by_halves_until_nothing_is_left_over() {
    let (a, b) = (("dtype", json!("bf16"), json!("f32")), ("lora_r", json!(8), json!(16)));
    let both = |n| follower(n, true, &[a.clone(), b.clone()]);
    let half = |jobs: &[Follower]| learn(jobs, &[], "cpu")[0].half.as_ref().map(|half| half.remedy.to_string());
    let mut jobs = vec![both(1), both(2)];
    assert_eq!(half(&jobs), None, "too little is known");
    jobs.push(both(3));
    assert_eq!(half(&jobs).as_deref(), Some("dtype = \"f32\""));
    // It does not do alone: so the other half is what is left. Or it does.
    let with = |worked| [jobs.as_slice(), &[follower(4, worked, std::slice::from_ref(&a))]].concat();
    assert_eq!(remedies(&with(false)), ["lora_r * 2"]);
    assert_eq!(remedies(&with(true)), ["dtype = \"f32\""]);
}

#[test]
fn what_was_applied_and_passed_is_learnt_as_what_it_was() {
    let mut tried = follower(1, true, &[("limits.memory_mib", json!(100), json!(150))]);
    tried.applied = Some("limits.memory_mib = fit".parse().unwrap());
    assert_eq!(remedies(std::slice::from_ref(&tried)), ["limits.memory_mib = fit"]);
    let failed = Follower { worked: false, ..tried.clone() };
    assert_eq!(remedies(&[tried, failed]), ["limits.memory_mib * 1.5"]);
}

#[test]
fn what_has_a_record_of_its_own_is_not_counted_twice() {
    let mut tried = follower(1, true, &[("dtype", json!("bf16"), json!("f32"))]);
    let unasked = Follower { job: JobId::from_parts(1, 2), ..tried.clone() };
    tried.applied = Some("dtype = \"f32\"".parse().unwrap());
    let learned = learn([&tried, &unasked], &[], "cpu");
    assert_eq!((learned.len(), learned[0].passed.as_slice()), (1, &[unasked.job][..]));
}

#[test]
fn what_was_seen_on_other_devices_is_counted_apart() {
    let on = |n, device: &str, worked| Follower {
        device: device.into(),
        ..follower(n, worked, &[("dtype", json!("bf16"), json!("f32"))])
    };
    let learned = learn(&[on(1, "cpu", true), on(2, "gpu", true), on(3, "gpu", true)], &[], "cpu");
    let Record { here, elsewhere, .. } = learned[0].seen;
    assert_eq!((here, elsewhere), (Count { worked: 1, tried: 1 }, Count { worked: 2, tried: 2 }));
}
