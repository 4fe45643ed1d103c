//! Whether jobs need as much memory as their plans say: each of a grid of small jobs is planned as the gateway plans it,
//! carried out by the real worker, and held against what the worker's memory peaked at.
//!
//! `make test` takes every seventh of the forty; all of them take some minutes: `make bench-estimate`, or
//! `DRYDOCK_GRID=full cargo test --test estimate -- --nocapture`. The worker is the newest release build;
//! `DRYDOCK_WORKER` names another.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot be set up has failed; the table is the point"
)]

mod grid;
mod ground;
#[path = "../support/house.rs"]
mod house;

use std::path::PathBuf;

use grid::Row;
use ground::{Ground, Measured};

/// How far above the measured peak an estimate may be, and how far below.
const ABOVE: f64 = 1.15;
const BELOW: f64 = 0.95;

/// The worker's program as users have it: given, or built by `make image` or `make build`. One for development is twice as
/// large, which for the smallest jobs is more than an estimate may be off.
fn worker() -> Option<PathBuf> {
    let given = std::env::var_os("DRYDOCK_WORKER").map(PathBuf::from);
    let found = given.or_else(|| {
        let tests = std::env::current_exe().ok()?;
        let target = tests.ancestors().nth(3)?;
        let folders = std::fs::read_dir(target).ok()?.flatten().map(|folder| folder.path());
        let programs = folders.map(|folder| folder.join("release/drydock-worker"));
        let newest = |program: &PathBuf| std::fs::metadata(program).and_then(|file| file.modified()).ok();
        programs.chain([target.join("release/drydock-worker")]).filter(|program| program.is_file()).max_by_key(newest)
    });
    found.filter(|program| program.is_file())
}

fn is_full() -> bool {
    std::env::var("DRYDOCK_GRID").is_ok_and(|grid| grid == "full")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_estimate_is_within_fifteen_percent_of_the_measured_peak() {
    let Some(worker) = worker() else {
        println!(
            "skipped: there is no release build of drydock-worker; `make worker`, or name one with DRYDOCK_WORKER"
        );
        return;
    };
    let asked = std::env::var("DRYDOCK_GRID_ROWS").unwrap_or_default();
    let all = is_full() || !asked.is_empty();
    let mut ground = Ground::new(worker).await;
    let (mut wrong, mut shipped) = (Vec::new(), Vec::new());
    println!("{:>9} {:>9} {:>6} {:>6}  {:<56} parts in MiB", "estimated", "measured", "ratio", "disk", "job");
    let every = if all { 1 } else { 7 };
    for row in grid::rows().iter().step_by(every).filter(|row| row.name.contains(&asked)) {
        let measured = ground.measure(row).await;
        shipped.push(measured.to_ship(row));
        wrong.extend(said(row, &measured));
    }
    println!("not in the grid, by which the formula's constants were found:");
    for row in grid::beyond().iter().filter(|row| all && row.name.contains(&asked)) {
        wrong.extend(said(row, &ground.measure(row).await));
    }
    println!("rows of mixed lengths, which a preview has seen:");
    for row in grid::mixed().iter().filter(|row| all && row.name.contains(&asked)) {
        ground.preview(row).await;
        wrong.extend(said(row, &ground.measure(row).await));
    }
    if is_full() && asked.is_empty() {
        println!("for gpu/estimate/shipped.rs:\n{}", shipped.join("\n"));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Prints how the job's estimate fared, and says what is wrong with it.
fn said(row: &Row, measured: &Measured) -> Option<String> {
    let Measured { estimated, peak, disk: [disk, written], parts, seen } = measured;
    let of = |estimated: u64, measured: u64| estimated as f64 / measured as f64;
    let (ratio, disk) = (of(*estimated, *peak), of(*disk, *written));
    let name = &row.name;
    println!("{:>9.1} {:>9.1} {ratio:>6.3} {disk:>6.2}  {name:<56} {parts} | {seen}", mib(*estimated), mib(*peak));
    (!(BELOW..=ABOVE).contains(&ratio)).then(|| format!("{name}: {ratio:.3} of what was measured"))
}

impl Measured {
    /// The job's line in what is shipped: measured by predicted, of memory and of the disk.
    fn to_ship(&self, row: &Row) -> String {
        let (kind, options) = row.job.as_object().and_then(|job| job.iter().next()).unwrap();
        let method = options.get("method").map_or("None".to_owned(), |method| format!("Some({method})"));
        let [disk, written] = self.disk.map(|bytes| bytes as f64);
        format!("    ({kind:?}, {method}, [{:.3}, {:.3}]),", self.peak as f64 / self.estimated as f64, written / disk)
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
