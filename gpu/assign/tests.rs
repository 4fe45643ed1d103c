use super::*;
use crate::inventory::{Memory, Process};

const GIB: u64 = 1 << 30;

fn gpu(index: usize, name: &str, gib: u64) -> HostUnit {
    let uuid = format!("GPU-{index}");
    let unit = Unit { uuid: uuid.clone(), gpu: uuid, memory_bytes: gib * GIB };
    HostUnit { unit, name: name.into(), foreign_bytes: 0 }
}

fn slice(index: usize, of: &str, gib: u64) -> HostUnit {
    let unit = Unit { uuid: format!("MIG-{index}"), gpu: of.into(), memory_bytes: gib * GIB };
    HostUnit { unit, name: format!("slice of {gib} GiB"), foreign_bytes: 0 }
}

fn host(units: Vec<HostUnit>) -> Host {
    Host { capacity: Capacity { cpu_millis: 64_000, memory_bytes: 512 * GIB }, disk_bytes: 1 << 40, units, sharers: 4 }
}

/// A job that comes as number `n`, needs little else, and may run for a second.
fn job(n: u128, gpus: GpuNeed) -> Waiting {
    Waiting {
        job: JobId::from_parts(0, n),
        owner: Owner::local(),
        priority: Priority::default(),
        position: n as i64,
        submitted_ms: 0,
        need: Need { capacity: Capacity { cpu_millis: 1000, memory_bytes: GIB }, disk_bytes: GIB, gpus },
        longest_ms: 1000,
        expected_ms: None,
    }
}

fn own(count: u32, gib: u64) -> GpuNeed {
    GpuNeed::Own { count, least_bytes: gib * GIB }
}

fn share(gib: u64) -> GpuNeed {
    GpuNeed::Share { bytes: gib * GIB }
}

fn policy() -> Policy {
    Policy { half_life_ms: 3_600_000, patience_ms: 3_600_000 }
}

fn pass(host: &Host, running: &[Running], line: &[Waiting]) -> Plan {
    assign(host, running, line, &HashMap::new(), &policy(), 0)
}

/// Which units each job gets that starts, by its number.
fn given(plan: &Plan) -> Vec<(u128, Vec<&str>)> {
    let of = |start: &'_ Start| start.job.random();
    plan.starts.iter().map(|start| (of(start), start.units.iter().map(String::as_str).collect())).collect()
}

fn holds(plan: &Plan) -> Vec<(u128, Hold)> {
    plan.holds.iter().map(|(job, hold)| (job.random(), *hold)).collect()
}

#[test]
fn a_job_gets_the_smallest_unit_that_is_large_enough() {
    let host = host(vec![gpu(0, "large", 80), slice(1, "GPU-9", 10), slice(2, "GPU-9", 40)]);
    let line = [job(1, own(1, 8)), job(2, own(1, 30)), job(3, own(1, 8))];
    let plan = pass(&host, &[], &line);
    assert_eq!(given(&plan), [(1, vec!["MIG-1"]), (2, vec!["MIG-2"]), (3, vec!["GPU-0"])]);
}

#[test]
fn several_gpus_of_one_job_are_whole_and_of_one_name() {
    let units = vec![gpu(0, "a", 80), gpu(1, "b", 48), slice(2, "GPU-9", 40), slice(3, "GPU-9", 40), gpu(4, "a", 80)];
    assert_eq!(given(&pass(&host(units.clone()), &[], &[job(1, own(2, 8))])), [(1, vec!["GPU-0", "GPU-4"])]);
    let three = pass(&host(units), &[], &[job(1, own(3, 8))]);
    let shortage = Shortage::Gpus { needs: 3, free: 2, foreign: 0 };
    assert_eq!(holds(&three), [(1, Hold::TooLarge { shortage })]);
}

#[test]
fn jobs_that_share_fill_one_gpu_before_they_open_another() {
    let host = host(vec![gpu(0, "a", 80), gpu(1, "a", 80)]);
    let line = [job(1, share(30)), job(2, own(1, 8)), job(3, share(30)), job(4, share(30)), job(5, share(20))];
    let plan = pass(&host, &[], &line);
    let expected = [(1, vec!["GPU-0"]), (2, vec!["GPU-1"]), (3, vec!["GPU-0"]), (5, vec!["GPU-0"])];
    assert_eq!(given(&plan), expected, "the fourth waits for a GPU, and the fifth leaves it no less of one");
    let shortage = Shortage::GpuMemory { needs: 30 * GIB, free: 20 * GIB };
    assert_eq!(holds(&plan), [(4, Hold::Lacks { shortage, promised_ms: Some(1000) })]);
}

#[test]
fn no_more_jobs_share_a_gpu_than_may() {
    let host = Host { sharers: 2, ..host(vec![gpu(0, "a", 80)]) };
    let plan = pass(&host, &[], &[job(1, share(1)), job(2, share(1)), job(3, share(1))]);
    assert_eq!(plan.starts.len(), 2);
    let shortage = Shortage::GpuMemory { needs: GIB, free: 0 };
    assert_eq!(holds(&plan), [(3, Hold::Lacks { shortage, promised_ms: Some(1000) })]);
}

#[test]
fn a_gpu_that_other_programs_use_is_not_given_whole_and_has_less_to_share() {
    let taken = HostUnit { foreign_bytes: 20 * GIB, ..gpu(0, "a", 80) };
    let host = host(vec![taken, HostUnit { foreign_bytes: GIB, ..gpu(1, "a", 80) }]);
    let plan = pass(&host, &[], &[job(1, own(1, 8)), job(2, own(1, 8)), job(3, share(60))]);
    assert_eq!(given(&plan)[0], (1, vec!["GPU-1"]), "a display takes no GPU away");
    let shortage = Shortage::Gpus { needs: 1, free: 0, foreign: 1 };
    assert_eq!(holds(&plan)[0], (2, Hold::Lacks { shortage, promised_ms: Some(1000) }));
    assert_eq!(given(&plan)[1], (3, vec!["GPU-0"]), "60 of 80 GiB are free, and the head wants the other GPU");
    let two = pass(&host, &[], &[job(1, own(2, 8))]);
    let shortage = Shortage::Gpus { needs: 2, free: 1, foreign: 1 };
    assert_eq!(holds(&two), [(1, Hold::TooLarge { shortage })]);
}

#[test]
fn what_a_program_holds_that_is_no_job_is_foreign() {
    let process = |name: Option<&str>, job, gib: u64| Process {
        name: name.map(str::to_owned),
        job,
        memory_bytes: Some(gib * GIB),
        ..Process::default()
    };
    let job = JobId::from_parts(0, 1);
    let gpu = Gpu {
        uuid: "GPU-0".into(),
        name: "a".into(),
        memory: Memory { total_bytes: 80 * GIB, ..Memory::default() },
        processes: vec![
            process(Some("python3"), None, 7),
            process(Some("worker"), Some(job), 20),
            process(None, None, 3),
        ],
        ..Gpu::default()
    };
    let units = HostUnit::all(&Inventory { gpus: vec![gpu], ..Inventory::default() });
    assert_eq!((units[0].foreign_bytes, &*units[0].name), (7 * GIB, "a"));
}

#[test]
fn a_job_that_the_whole_host_is_too_small_for_stands_in_nobodys_way() {
    let plan = pass(&host(vec![gpu(0, "a", 80)]), &[], &[job(1, own(2, 8)), job(2, own(1, 8))]);
    assert_eq!(given(&plan), [(2, vec!["GPU-0"])]);
}

#[test]
fn nobody_overtakes_a_job_that_waits_for_room_on_the_disk() {
    let mut first = job(1, own(1, 8));
    first.need.disk_bytes = 1 << 50;
    let plan = pass(&host(vec![gpu(0, "a", 80)]), &[], &[first.clone(), job(2, own(1, 8))]);
    let shortage = Shortage::Disk { needs: 1 << 50, free: 1 << 40 };
    let kept = Hold::Kept { head: first.job, from_ms: None };
    assert_eq!(holds(&plan), [(1, Hold::Lacks { shortage, promised_ms: None }), (2, kept)]);
}

#[test]
fn a_later_job_passes_if_it_ends_in_time_or_takes_what_is_left() {
    let host = host(vec![gpu(0, "a", 80), gpu(1, "a", 80), gpu(2, "b", 24)]);
    let running = [job(1, own(1, 8)).started(vec!["GPU-0".into()], 0)];
    let long = |n, gpus| Waiting { longest_ms: 5000, ..job(n, gpus) };
    let line = [long(2, own(2, 60)), long(3, own(1, 60)), job(4, own(1, 60)), long(5, own(1, 8)), job(6, own(1, 8))];
    let plan = pass(&host, &running, &line);
    assert_eq!(given(&plan), [(4, vec!["GPU-1"]), (5, vec!["GPU-2"])]);
    let head = JobId::from_parts(0, 2);
    let lacks = Hold::Lacks { shortage: Shortage::Gpus { needs: 2, free: 1, foreign: 0 }, promised_ms: Some(1000) };
    assert_eq!(
        holds(&plan),
        [(2, lacks), (3, Hold::Kept { head, from_ms: Some(1000) }), (6, Hold::Behind { jobs: 2, by_share: false }),]
    );
}

#[test]
fn a_later_job_of_somebody_who_has_had_less_comes_first_and_the_other_is_told() {
    let host = host(vec![gpu(0, "a", 80)]);
    let owned = |n, owner: &str| Waiting { owner: Owner(owner.into()), ..job(n, own(1, 8)) };
    let line = [owned(1, "greedy"), owned(2, "greedy"), owned(3, "modest"), owned(4, "modest")];
    let had = Standing { mean: 0.6, ..Standing::default() };
    let owners = HashMap::from([(Owner("greedy".into()), had)]);
    let plan = assign(&host, &[], &line, &owners, &policy(), 0);
    assert_eq!(given(&plan), [(3, vec!["GPU-0"])]);
    let shortage = Shortage::Gpus { needs: 1, free: 0, foreign: 0 };
    assert_eq!(
        holds(&plan),
        [
            (1, Hold::Lacks { shortage, promised_ms: Some(1000) }),
            (4, Hold::Behind { jobs: 1, by_share: false }),
            (2, Hold::Behind { jobs: 2, by_share: true }),
        ],
        "a whole GPU is more than the 0.6 that the greedy one has had, so that the next one is its own"
    );
}

#[test]
fn what_was_had_counts_half_after_a_half_life() {
    let had = Standing::default().with(1.0, (0, 1000), 1000, 1000);
    assert!((had.mean - 0.5).abs() < 1e-9, "half of for ever was one half-life ago: {had:?}");
    assert!((had.mean_at(2000, 1000) - 0.25).abs() < 1e-9);
    assert!((had.mean_at(0, 1000) - 0.5).abs() < 1e-9, "a clock that was set back makes nothing more");
}
