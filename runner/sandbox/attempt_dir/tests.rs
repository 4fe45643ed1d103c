//! These run as any user; what only root can do is tested where root runs them.

use drydock_spec::{FinetuneArgs, Inputs, JobArgs, TraceId, contract};

use super::*;
use crate::sandbox::users::IdMap;

const MOST: Usage = Usage { bytes: u64::MAX, files: u64::MAX, events_bytes: u64::MAX };
const DISK_BYTES: u64 = 16 << 20;

fn job(number: u128) -> JobId {
    JobId::from_parts(1, number)
}

fn spec(job: JobId, attempt: Attempt) -> AttemptSpec {
    let args = FinetuneArgs { model: "m".into(), dataset: "d".into(), ..Default::default() };
    AttemptSpec {
        contract: contract::VERSION,
        job,
        attempt,
        trace_id: TraceId::from_bits(1),
        spec: JobArgs::Finetune(args).parse().unwrap(),
        inputs: Inputs::default(),
        output: OUTPUT_PATH.into(),
        events: EVENTS_PATH.into(),
        threads: 1,
        gpus: 0,
    }
}

fn limits(disk_bytes: u64) -> Limits {
    Limits {
        memory_bytes: 1,
        cpu_millis: 1,
        pids: 1,
        disk_bytes,
        time_ms: 1,
        silence_ms: 1,
        grace_ms: 1,
        max_attempts: 1,
        gpus: 0,
        gpu_memory_bytes: None,
    }
}

/// Says so past the harness's capture of what tests print: `make test` counts these lines.
pub(crate) fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {}: {why}", std::thread::current().name().unwrap_or_default());
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn how(users: Users, output_cap: OutputCap) -> FolderSettings {
    FolderSettings { users, output_cap, append_only: true }
}

fn users() -> Users {
    match is_root() {
        true => Users::shared(65532, 65532),
        false => Users::shared(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
    }
}

fn create(root: &Path, number: u128, cap: OutputCap) -> AttemptDir {
    AttemptDir::create(root, &spec(job(number), Attempt::FIRST), &limits(DISK_BYTES), &how(users(), cap)).unwrap()
}

#[test]
fn an_attempts_folder_holds_its_spec_its_events_and_its_output() {
    let root = tempfile::tempdir().unwrap();
    let dir = create(root.path(), 1, OutputCap::Auto);
    let written: AttemptSpec = serde_json::from_slice(&std::fs::read(dir.spec_path()).unwrap()).unwrap();
    assert_eq!(written, spec(job(1), Attempt::FIRST));
    assert_eq!(dir.events_path().metadata().unwrap().len(), 0);
    assert_eq!(std::fs::read_dir(dir.output_path()).unwrap().count(), 0);
    assert_eq!(root.path().read_dir().unwrap().count(), 1);
    dir.remove().unwrap();
    assert_eq!(root.path().read_dir().unwrap().count(), 0);
}

#[test]
fn creating_again_gives_a_clean_folder() {
    let root = tempfile::tempdir().unwrap();
    for cap in [OutputCap::Auto, OutputCap::Watched, OutputCap::Auto] {
        let dir = create(root.path(), 1, cap);
        assert_eq!(std::fs::read_dir(dir.output_path()).unwrap().count(), 0, "{cap:?}");
        std::fs::write(dir.output_path().join("left"), "over").unwrap();
    }
    AttemptDir::open(root.path(), job(1), Attempt::FIRST).unwrap().unwrap().remove().unwrap();
}

#[test]
fn removing_twice_is_no_error_and_a_half_made_folder_is_not_opened() {
    let root = tempfile::tempdir().unwrap();
    let dir = create(root.path(), 1, OutputCap::Watched);
    std::fs::remove_file(dir.spec_path()).unwrap();
    assert_eq!(AttemptDir::open(root.path(), job(1), Attempt::FIRST).unwrap(), None);
    dir.clone().remove().unwrap();
    dir.remove().unwrap();
}

#[test]
fn an_opened_folder_is_the_created_one() {
    let root = tempfile::tempdir().unwrap();
    let dir = create(root.path(), 1, OutputCap::Auto);
    std::fs::write(dir.output_path().join("kept"), "x").unwrap();
    // What a restart of the host does to mounts.
    if is_root() {
        rustix::mount::unmount(dir.output_path(), rustix::mount::UnmountFlags::empty()).unwrap();
    }
    let opened = AttemptDir::open(root.path(), job(1), Attempt::FIRST).unwrap().unwrap();
    assert_eq!(opened, dir);
    assert_eq!(std::fs::read(opened.output_path().join("kept")).unwrap(), b"x");
    opened.remove().unwrap();
}

#[test]
fn a_disk_without_room_is_told_apart() {
    let root = tempfile::tempdir().unwrap();
    let asked = AttemptDir::create(
        root.path(),
        &spec(job(1), Attempt::FIRST),
        &limits(u64::MAX),
        &how(users(), OutputCap::Watched),
    );
    let error = asked.unwrap_err();
    assert!(error.is_disk_full(), "{error}");
}

#[test]
fn usage_counts_what_was_written() {
    let root = tempfile::tempdir().unwrap();
    for cap in [OutputCap::Auto, OutputCap::Watched] {
        let dir = create(root.path(), 1, cap);
        let empty = dir.usage(MOST).unwrap();
        std::fs::create_dir(dir.output_path().join("a")).unwrap();
        std::fs::write(dir.output_path().join("a/file"), vec![1; 1 << 20]).unwrap();
        OpenOptions::new().append(true).open(dir.events_path()).unwrap().write_all(b"12345").unwrap();
        File::open(dir.output_path().join("a/file")).unwrap().sync_all().unwrap();
        let used = dir.usage(MOST).unwrap();
        assert_eq!(used.files - empty.files, 2, "{cap:?}");
        assert!((1 << 20..2 << 20).contains(&(used.bytes - empty.bytes)), "{cap:?}: {empty:?} {used:?}");
        assert_eq!(used.events_bytes, 5);
        dir.remove().unwrap();
    }
}

#[test]
fn counting_stops_once_the_bound_is_passed() {
    let root = tempfile::tempdir().unwrap();
    let dir = create(root.path(), 1, OutputCap::Watched);
    for number in 0..100 {
        std::fs::write(dir.output_path().join(number.to_string()), "").unwrap();
    }
    assert_eq!(dir.usage(Usage { files: 10, ..MOST }).unwrap().files, 11);
    let mut deep = dir.output_path();
    (0..100).for_each(|_| deep.push("d"));
    std::fs::create_dir_all(deep).unwrap();
    assert_eq!(dir.usage(Usage { files: 1000, ..MOST }).unwrap().files, 1001, "too deep counts as too many");
    dir.remove().unwrap();
}

/// Runs it on a thread of a user who may do nothing in particular: root can look into everything.
fn as_nobody<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    let nobody = rustix::process::Uid::from_raw(65532);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if is_root() {
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            what()
        });
        thread.join().unwrap()
    })
}

#[test]
fn what_cannot_be_looked_into_counts_as_too_much() {
    let root = tempfile::tempdir().unwrap();
    let dir = create(root.path(), 1, OutputCap::Watched);
    let most = Usage { files: 1000, ..MOST };
    let shut = dir.output_path().join("shut");
    std::fs::create_dir_all(shut.join("full")).unwrap();
    std::fs::set_permissions(&shut, std::fs::Permissions::from_mode(0o0)).unwrap();
    for folder in [root.path(), &dir.path, &dir.output_path()] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    assert_eq!(as_nobody(|| dir.usage(most)).unwrap().files, 1001);
    std::fs::set_permissions(&shut, std::fs::Permissions::from_mode(0o700)).unwrap();

    // A path longer than the kernel takes: each folder is made in the one before.
    let mut folder = hostile::open_root(&shut).unwrap();
    let name = "n".repeat(255);
    for _ in 0..20 {
        rustix::fs::mkdirat(&folder, &name, rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        folder = rustix::fs::openat(&folder, &name, flags, rustix::fs::Mode::empty()).unwrap();
    }
    assert_eq!(dir.usage(most).unwrap().files, 1001);
    dir.remove().unwrap();
}

#[test]
fn an_attempts_files_belong_to_the_user_that_it_was_given() {
    if !is_root() {
        return skipped("only root gives files to others");
    }
    let root = tempfile::tempdir().unwrap();
    let range = "70000-70001".parse().unwrap();
    let users = Users::own(range, vec![root.path().to_owned()]).mapped(IdMap { uid: 100_000, gid: 200_000 });
    let make = |number, cap| {
        AttemptDir::create(
            root.path(),
            &spec(job(number), Attempt::FIRST),
            &limits(DISK_BYTES),
            &how(users.clone(), cap),
        )
    };
    for (number, cap, owner) in [(1, OutputCap::Watched, (170_000, 270_000)), (2, OutputCap::Auto, (170_001, 270_001))]
    {
        let dir = make(number, cap).unwrap();
        let output = dir.output_path().metadata().unwrap();
        assert_eq!((dir.owner().unwrap(), (output.uid(), output.gid())), (owner, owner), "{cap:?}");
    }
    assert!(matches!(make(3, OutputCap::Watched), Err(AttemptDirError::NoUser(NoUser::AllTaken(_)))));
    // Made anew, an attempt gives its user back first.
    assert_eq!(make(1, OutputCap::Watched).unwrap().owner().unwrap(), (170_000, 270_000));
    assert_eq!(sweep(root.path(), |_, _| false).unwrap().len(), 3, "the one without a user, too");
}

#[test]
fn a_sweep_removes_what_nobody_keeps_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let kept = create(root.path(), 1, OutputCap::Watched);
    create(root.path(), 2, OutputCap::Watched);
    std::fs::create_dir(root.path().join("somebody-elses")).unwrap();
    let removed = sweep(root.path(), |found, _| found == job(1)).unwrap();
    assert_eq!(removed, [(job(2), Attempt::FIRST)]);
    assert_eq!(root.path().read_dir().unwrap().count(), 2);
    kept.remove().unwrap();
}

#[test]
fn a_sweep_of_nothing_is_no_error() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(sweep(&root.path().join("never-made"), |_, _| false).unwrap(), []);
}

#[test]
fn an_events_file_can_only_be_appended_to_where_the_file_system_can_do_that() {
    if !is_root() {
        return skipped("only root may set the append-only flag; without it nothing is promised");
    }
    let root = tempfile::tempdir().unwrap();
    let dir = create(root.path(), 1, OutputCap::Watched);
    let flags = ioctl_getflags(File::open(dir.events_path()).unwrap());
    if flags.is_ok_and(|flags| flags.contains(IFlags::APPEND)) {
        assert!(File::create(dir.events_path()).is_err());
        assert!(std::fs::remove_file(dir.events_path()).is_err());
        assert!(std::fs::rename(dir.events_path(), root.path().join("x")).is_err());
    }
    OpenOptions::new().append(true).open(dir.events_path()).unwrap().write_all(b"{}\n").unwrap();
    dir.remove().unwrap();
}

#[test]
fn a_capped_output_is_full_at_its_cap() {
    if !is_root() {
        return skipped("only root mounts");
    }
    let root = tempfile::tempdir().unwrap();
    let dir = create(root.path(), 1, OutputCap::LoopMount);
    let mut file = File::create(dir.output_path().join("filler")).unwrap();
    let megabyte = vec![1; 1 << 20];
    let mut written: u64 = 0;
    let error = loop {
        match file.write_all(&megabyte) {
            Ok(()) => written += 1 << 20,
            Err(error) => break error,
        }
        assert!(written <= DISK_BYTES, "nothing stopped it");
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(written > DISK_BYTES / 2, "only {written} bytes fitted");
    drop(file);
    dir.remove().unwrap();
}
