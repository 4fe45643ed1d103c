//! A day on a host with 64 GPUs, and the jobs that come in it: drawn from a seed, so that every rule gets the same.

use drydock_gpu::assign::{Capacity, GpuNeed, Host, HostUnit, Need, Waiting};
use drydock_gpu::inventory::Unit;
use drydock_spec::{JobId, Owner, Priority};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::yard::Coming;

pub(crate) const JOBS: usize = 10_000;
pub(crate) const HOUR: i64 = 3_600_000;
const GIB: u64 = 1 << 30;
/// Owners; the first one is greedy.
pub(crate) const OWNERS: usize = 12;
/// Of a hundred jobs, those that are the greedy one's; half of these come at once.
const GREEDY: u32 = 40;
const BURST_MS: i64 = 8 * HOUR;

/// 56 whole GPUs of 80 GiB, and eight that are divided into three slices each.
pub(crate) fn host() -> Host {
    let unit = |uuid: String, gpu: String, name: &str, gib: u64| HostUnit {
        unit: Unit { uuid, gpu, memory_bytes: gib * GIB },
        name: name.into(),
        foreign_bytes: 0,
    };
    let whole = (0..56).map(|at| unit(format!("GPU-{at}"), format!("GPU-{at}"), "80 GiB", 80));
    let slices = (0..24).map(|at| unit(format!("MIG-{at}"), format!("GPU-{}", 56 + at / 3), "2g.20gb", 20));
    Host {
        capacity: Capacity { cpu_millis: 512_000, memory_bytes: 4096 * GIB },
        disk_bytes: 1 << 50,
        units: whole.chain(slices).collect(),
        sharers: 4,
    }
}

/// The jobs of a day, in order of submission.
pub(crate) fn jobs(seed: u64) -> Vec<Coming> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut all: Vec<Coming> = (0..JOBS).map(|_| job(&mut dice)).collect();
    all.sort_by_key(|coming| coming.waiting.submitted_ms);
    for (n, coming) in all.iter_mut().enumerate() {
        (coming.waiting.job, coming.waiting.position) = (JobId::from_parts(0, n as u128), n as i64);
    }
    all
}

fn job(dice: &mut StdRng) -> Coming {
    let is_greedy = dice.random_range(0..100) < GREEDY;
    let owner = if is_greedy { 0 } else { dice.random_range(1..OWNERS) };
    let submitted_ms = match is_greedy && dice.random_bool(0.5) {
        true => BURST_MS,
        false => moment(dice),
    };
    let own = |count, gib: u64| GpuNeed::Own { count, least_bytes: gib * GIB };
    let gpus = match dice.random_range(0..100) {
        0..15 => GpuNeed::Share { bytes: dice.random_range(4..32) * GIB },
        15..35 => own(1, 16),
        35..70 => own(1, 60),
        70..84 => own(2, 60),
        84..94 => own(4, 60),
        _ => own(8, 60),
    };
    let count = if let GpuNeed::Own { count, .. } = gpus { u64::from(count) } else { 1 };
    let lasts_ms = lasting(dice);
    // People ask for more time than they need, and rarely for little more.
    let longest_ms = (lasts_ms as f64 * (1.2 + 8.8 * dice.random::<f64>().powi(2))) as i64;
    Coming {
        waiting: Waiting {
            job: JobId::from_parts(0, 0),
            owner: Owner(format!("owner {owner}")),
            priority: Priority::new(priority(dice)).unwrap(),
            position: 0,
            submitted_ms,
            need: Need {
                capacity: Capacity { cpu_millis: 4_000 * count, memory_bytes: 24 * GIB * count },
                disk_bytes: GIB,
                gpus,
            },
            longest_ms,
            expected_ms: None,
        },
        lasts_ms,
    }
}

fn priority(dice: &mut StdRng) -> i8 {
    match dice.random_range(0..100) {
        0..10 => 5,
        10..30 => -5,
        _ => 0,
    }
}

/// More come in the middle of the day than at night.
fn moment(dice: &mut StdRng) -> i64 {
    loop {
        let at = dice.random_range(0..24 * HOUR);
        let hour = at as f64 / HOUR as f64;
        let busy = 0.6 + 0.4 * ((hour - 14.0) / 12.0 * std::f64::consts::PI).cos();
        if dice.random::<f64>() < busy {
            return at;
        }
    }
}

/// Log-normal: a median of a minute and a half and a mean of four, 12 hours at most.
fn lasting(dice: &mut StdRng) -> i64 {
    // Box and Muller's way from two even numbers to a normal one.
    let (a, b): (f64, f64) = (1.0 - dice.random::<f64>(), dice.random());
    let normal = (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos();
    let minutes = 1.5 * (1.38 * normal).exp();
    ((minutes * 60_000.0) as i64).clamp(5_000, 12 * HOUR)
}
