//! Disks that are full, and a database that somebody else holds: what is there stays true, and it goes on afterwards.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use drydock::blobs::BlobError;
use drydock_spec::{JobState, Outcome};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use sqlx::Connection as _;

use crate::life::{World, be_nobody_special};
use crate::ops::{Op, Story};
use crate::rules;

/// File systems of their own, which go when the test does.
struct Disks(Vec<PathBuf>);

impl Disks {
    /// Whether this process may mount; says so if not.
    fn may_be_made() -> bool {
        let folder = tempfile::tempdir().unwrap();
        let made = Self(Vec::new()).make(folder.path(), 1 << 20);
        if made.is_none() {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            let _ = writeln!(std::io::stderr(), "skipped: {name}: only root can make file systems of its own");
        }
        made.is_some()
    }

    fn make(mut self, folder: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        mount("tmpfs", folder, "tmpfs", MountFlags::NOSUID, options.as_c_str()).ok()?;
        self.0.push(folder.to_owned());
        Some(self)
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            let _ = unmount(folder, UnmountFlags::DETACH);
        }
    }
}

/// Takes all the room that is left; it comes back when the file is removed.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("ballast");
    let mut file = File::create(&path).unwrap();
    for size in [1 << 16, 1 << 12] {
        while let Ok(()) = file.write_all(&vec![1; size]) {}
    }
    assert_eq!(file.write_all(&[1; 4096]).unwrap_err().kind(), ErrorKind::StorageFull);
    path
}

/// A world whose state folder has six MiB, and whose attempts have a disk of their own.
fn small_world() -> (World, Disks) {
    let mut disks = None;
    let world = World::with_state(|state| {
        let made = Disks(Vec::new()).make(state, 6 << 20).unwrap();
        disks = made.make(&state.join("attempts"), 32 << 20);
    });
    (world, disks.unwrap())
}

#[test]
fn a_full_disk_under_the_database_loses_nothing_and_ends_no_job() {
    if !Disks::may_be_made() {
        return;
    }
    // At each point of a job's life.
    for filled_before in [1, 2, 3] {
        let (mut world, _disks) = small_world();
        world.happen(Op::submit(Story::Success));
        world.happen(Op::submit(Story::OutOfMemory));
        let ballast = world.state().join("ballast");
        for (at, op) in [Op::Dispatch, Op::GoOn, Op::GoOn].into_iter().enumerate() {
            if at + 1 == filled_before {
                fill(&world.state());
            }
            world.happen_or_fail(op);
            rules::check(&mut world);
        }
        assert!(world.jobs().values().all(|job| !job.state.is_done()), "{:?}", world.told());
        std::fs::remove_file(ballast).unwrap();
        world.all_faults_cease();
        rules::check_the_end(&mut world);
        assert!(world.jobs().values().any(|job| job.state == JobState::Done(Outcome::Succeeded)));
    }
}

#[test]
fn a_full_disk_under_the_model_store_refuses_in_words_and_leaves_nothing_behind() {
    if !Disks::may_be_made() {
        return;
    }
    let (world, _disks) = small_world();
    let before = world.with(async |house| house.desk.blobs.free());
    let chunk = bytes::Bytes::from(vec![7; 1 << 20]);
    let endless = futures::stream::iter((0..20).map(|_| Ok::<_, String>(chunk.clone())));
    let put = world.with(async |house| house.desk.blobs.put(&"0".repeat(64), endless, u64::MAX).await);
    let refused = put.unwrap_err();
    assert!(matches!(refused, BlobError::Full { .. }), "{refused}");
    assert!(refused.to_string().contains("free disk space"), "{refused}");
    let after = world.with(async |house| house.desk.blobs.free());
    assert!(after + (64 << 10) >= before, "{after} of {before} bytes are free again");
}

#[test]
fn a_database_that_somebody_else_holds_is_waited_for_and_ends_no_job() {
    be_nobody_special();
    let mut world = World::new();
    world.happen(Op::submit(Story::Success));
    world.happen(Op::Dispatch);
    let path = world.state().join("drydock.db");
    let (held, holds) = std::sync::mpsc::channel();
    // Longer than a statement waits for its turn.
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut connection =
                sqlx::SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
            let transaction = connection.begin_with("BEGIN EXCLUSIVE").await.unwrap();
            held.send(()).unwrap();
            tokio::time::sleep(Duration::from_secs(12)).await;
            transaction.rollback().await.unwrap();
        });
    });
    holds.recv().unwrap();
    world.happen(Op::GoOn);
    rules::check(&mut world);
    let stands = world.told();
    assert!(stands[0].starts_with("Running"), "{stands:?}");
    other.join().unwrap();
    world.all_faults_cease();
    rules::check_the_end(&mut world);
    assert!(world.told()[0].contains("Succeeded"), "{:?}", world.told());
}
