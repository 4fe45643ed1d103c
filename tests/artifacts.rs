//! Artifacts are taken over from folders that are written to do harm.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere, its scaffolding too")]

use std::fs::{File, create_dir, create_dir_all, read, read_dir, write};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use drydock::artifacts::{Artifact, ArtifactError, ArtifactStore, Caps, Reason, Wanted};
use drydock_spec::JobId;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use sha2::Digest as _;

struct Case {
    dir: tempfile::TempDir,
    store: ArtifactStore,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        create_dir(dir.path().join("out")).unwrap();
        let store = ArtifactStore::new(dir.path().join("artifacts"));
        Self { dir, store }
    }

    fn out(&self, path: &str) -> PathBuf {
        self.dir.path().join("out").join(path)
    }

    fn collect_within(&self, caps: Caps) -> Result<Vec<Artifact>, ArtifactError> {
        self.store.collect(job(), &self.out(""), caps, &Wanted::AllButCheckpoints)
    }

    fn collect(&self) -> Result<Vec<Artifact>, ArtifactError> {
        self.collect_within(Caps::of_disk(1 << 20))
    }

    /// The refused path and the reason; the store must be as empty as before.
    fn refusal(&self) -> (String, Reason) {
        let error = self.collect().unwrap_err();
        assert_eq!(read_dir(self.dir.path().join("artifacts")).unwrap().count(), 0, "something was left in the store");
        match error {
            ArtifactError::Rejected { path, why } => (path, why),
            ArtifactError::Io { .. } => panic!("{error}"),
        }
    }

    fn kept(&self, path: &str) -> Option<Vec<u8>> {
        let (mut file, bytes) = self.store.open_for_reading(job(), path).unwrap()?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(bytes, content.len() as u64);
        Some(content)
    }
}

fn job() -> JobId {
    "01JD3Z7M8K4W5V6X7Y8Z9A0B1C".parse().unwrap()
}

fn artifact(path: &str, bytes: u64, sha256: &str) -> Artifact {
    Artifact { path: path.into(), role: None, bytes, sha256: sha256.into() }
}

const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const SHA256_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn plain_files_are_taken_over_with_their_digests() {
    let case = Case::new();
    create_dir_all(case.out("adapter/empty folder")).unwrap();
    write(case.out("adapter/model.safetensors"), "abc").unwrap();
    write(case.out("größe.txt"), "").unwrap();
    assert_eq!(
        case.collect().unwrap(),
        [artifact("adapter/model.safetensors", 3, SHA256_OF_ABC), artifact("größe.txt", 0, SHA256_OF_NOTHING)]
    );
    assert_eq!(case.kept("adapter/model.safetensors").unwrap(), b"abc");
    assert_eq!(case.kept("adapter"), None, "a folder is no artifact");
    assert_eq!(case.kept("missing"), None);
}

#[test]
fn an_empty_output_is_a_collection_of_nothing() {
    assert_eq!(Case::new().collect().unwrap(), []);
}

#[test]
fn collecting_twice_gives_the_same() {
    let case = Case::new();
    write(case.out("a"), "abc").unwrap();
    assert_eq!(case.collect().unwrap(), case.collect().unwrap());
    assert_eq!(case.kept("a").unwrap(), b"abc");
}

#[test]
fn a_collection_replaces_the_one_before_as_a_whole() {
    let case = Case::new();
    write(case.out("old"), "abc").unwrap();
    case.collect().unwrap();
    std::fs::rename(case.out("old"), case.out("new")).unwrap();
    case.collect().unwrap();
    assert_eq!((case.kept("old"), case.kept("new")), (None, Some(b"abc".to_vec())));
}

#[test]
fn a_refused_collection_leaves_the_one_before_as_it_was() {
    let case = Case::new();
    write(case.out("good"), "abc").unwrap();
    case.collect().unwrap();
    symlink("/etc/passwd", case.out("bad")).unwrap();
    case.collect().unwrap_err();
    assert_eq!(case.kept("good").unwrap(), b"abc");
}

#[test]
fn a_crash_in_the_middle_is_mended_by_collecting_again_and_sweeping() {
    let case = Case::new();
    write(case.out("a"), "abc").unwrap();
    let unfinished = case.dir.path().join(format!("artifacts/{}.0123456789abcdef.new", job()));
    create_dir_all(unfinished.join("a")).unwrap();
    write(unfinished.join("b"), "half").unwrap();
    assert_eq!(case.collect().unwrap(), [artifact("a", 3, SHA256_OF_ABC)]);
    assert_eq!(case.kept("b"), None);
    case.store.sweep_unfinished().unwrap();
    assert!(!unfinished.exists());
    assert_eq!(case.kept("a"), Some(b"abc".to_vec()));
}

#[test]
fn a_symbolic_link_is_refused() {
    let case = Case::new();
    symlink("/etc/passwd", case.out("link")).unwrap();
    assert_eq!(case.refusal(), ("link".into(), Reason::NotAFile("symbolic link")));
}

#[test]
fn a_folder_that_is_a_link_is_refused() {
    let case = Case::new();
    let outside = tempfile::tempdir().unwrap();
    write(outside.path().join("secret"), "abc").unwrap();
    symlink(outside.path(), case.out("folder")).unwrap();
    assert_eq!(case.refusal(), ("folder".into(), Reason::NotAFile("symbolic link")));
}

#[test]
fn an_output_folder_that_is_a_link_is_not_opened() {
    let case = Case::new();
    std::fs::remove_dir(case.out("")).unwrap();
    symlink("/etc", case.dir.path().join("out")).unwrap();
    let output = case.dir.path().join("out");
    assert!(matches!(
        case.store.collect(job(), &output, Caps::of_disk(1), &Wanted::AllButCheckpoints),
        Err(ArtifactError::Io { .. })
    ));
}

#[test]
fn a_file_with_another_name_elsewhere_is_refused() {
    let case = Case::new();
    let secret = case.dir.path().join("secret");
    write(&secret, "abc").unwrap();
    std::fs::hard_link(&secret, case.out("mine")).unwrap();
    assert_eq!(case.refusal(), ("mine".into(), Reason::Linked(2)));
}

#[test]
fn a_fifo_is_refused_without_waiting_for_a_writer() {
    let case = Case::new();
    mknodat(CWD, case.out("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    assert_eq!(case.refusal(), ("fifo".into(), Reason::NotAFile("fifo")));
}

#[test]
fn a_socket_is_refused() {
    let case = Case::new();
    let _listener = std::os::unix::net::UnixListener::bind(case.out("socket")).unwrap();
    assert_eq!(case.refusal(), ("socket".into(), Reason::NotAFile("socket")));
}

#[test]
fn a_device_is_refused() {
    let case = Case::new();
    let null = rustix::fs::makedev(1, 3);
    match mknodat(CWD, case.out("null"), FileType::CharacterDevice, Mode::RUSR, null) {
        Ok(()) => assert_eq!(case.refusal(), ("null".into(), Reason::NotAFile("device"))),
        // Only root makes devices; for others the refusal to make one is the fact.
        Err(errno) => assert_eq!(errno, rustix::io::Errno::PERM),
    }
}

#[test]
fn a_file_full_of_holes_counts_in_full() {
    let case = Case::new();
    File::create(case.out("sparse")).unwrap().set_len(8 << 40).unwrap();
    assert_eq!(case.refusal(), ("sparse".into(), Reason::TooLarge(1 << 20)));
}

/// Runs it on a thread of a user who may do nothing in particular: root can open everything.
fn as_nobody(what: impl FnOnce() + Send) {
    let nobody = rustix::process::Uid::from_raw(65532);
    let thread = || {
        if rustix::process::geteuid().is_root() {
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        what();
    };
    std::thread::scope(|scope| scope.spawn(thread).join().unwrap());
}

#[test]
fn what_a_job_has_shut_is_its_own_fault() {
    use std::os::unix::fs::PermissionsExt;
    as_nobody(|| {
        for name in ["file", "folder"] {
            let case = Case::new();
            if name == "file" {
                write(case.out(name), "abc").unwrap()
            } else {
                create_dir(case.out(name)).unwrap()
            }
            std::fs::set_permissions(case.out(name), std::fs::Permissions::from_mode(0o0)).unwrap();
            assert_eq!(case.refusal(), (name.into(), Reason::Shut(rustix::io::Errno::ACCESS)));
            std::fs::set_permissions(case.out(name), std::fs::Permissions::from_mode(0o700)).unwrap();
        }
    });
}

struct StopOnDrop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_kept_as_it_was_hashed_or_not_at_all() {
    let case = Case::new();
    let secret = case.dir.path().join("secret");
    write(&secret, "secret").unwrap();
    symlink(&secret, case.dir.path().join("link")).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut kept, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        // Also when a try has failed: the scope waits for the thread.
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            // It grows, shrinks, is replaced and becomes a link to what is not the job's.
            for length in (0..).map(|turn: usize| turn * 77_773 % 900_000) {
                let staged = case.dir.path().join("staged");
                write(&staged, vec![length as u8; length]).unwrap();
                std::fs::rename(&staged, case.out("file")).unwrap();
                let _ = File::options().append(true).open(case.out("file")).unwrap().set_len(length as u64 / 2);
                symlink(&secret, &staged).unwrap();
                std::fs::rename(&staged, case.out("file")).unwrap();
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
            }
        });
        // Usually the first few tries have met both; a busy disk takes its time for each.
        for _ in 0..300 {
            if kept > 3 && refused > 3 {
                break;
            }
            match case.collect() {
                Ok(artifacts) => {
                    kept += artifacts.len();
                    for artifact in artifacts {
                        let content = case.kept(&artifact.path).unwrap();
                        let sha256: String =
                            sha2::Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
                        assert_eq!((artifact.bytes, artifact.sha256), (content.len() as u64, sha256));
                        assert_ne!(content, b"secret");
                    }
                }
                Err(ArtifactError::Rejected {
                    why: Reason::Changed | Reason::NotAFile(_) | Reason::Shut(_), ..
                }) => {
                    refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert!(kept > 0 && refused > 0, "{kept} kept, {refused} refused: nothing was tried");
}

#[test]
fn what_looks_like_an_archive_stays_a_file() {
    // A gzip bomb's beginning, and a zip archive of `../../etc/cron.d/x`: nothing here unpacks anything.
    for (name, content) in [
        ("model.tar.gz", &b"\x1f\x8b\x08\0\0\0\0\0\x02\xff\xec\xc1\x01\x0d\0\0\0\xc2"[..]),
        ("model.zip", b"PK\x03\x04\x14\0\0\0\0\0\0\0!\0\0\0\0\0\0\0\0\0\0\0\0\0\x12\0\0\0../../etc/cron.d/x"),
        ("weights.tar", b"../../../etc/passwd"),
    ] {
        let case = Case::new();
        write(case.out(name), content).unwrap();
        let artifacts = case.collect().unwrap();
        assert_eq!(artifacts.len(), 1);
        assert_eq!((artifacts[0].path.as_str(), artifacts[0].bytes), (name, content.len() as u64));
        assert_eq!(case.kept(name).unwrap(), content);
    }
}

#[test]
fn a_tree_deeper_than_any_path_is_refused() {
    let case = Case::new();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
    let mut folder = rustix::fs::open(case.out(""), flags, Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&folder, "deep", Mode::RWXU).unwrap();
        folder = rustix::fs::openat(&folder, "deep", flags, Mode::empty()).unwrap();
    }
    assert_eq!(case.refusal().1, Reason::TooDeep(16));
}

#[test]
fn the_sum_of_all_files_is_capped() {
    let case = Case::new();
    for name in ["a", "b", "c"] {
        write(case.out(name), vec![0; 400 << 10]).unwrap();
    }
    assert_eq!(case.refusal().1, Reason::TooLarge(1 << 20));
}

#[test]
fn a_deep_tree_is_refused() {
    let case = Case::new();
    let mut deep = PathBuf::from("d");
    (0..16).for_each(|_| deep.push("d"));
    create_dir_all(case.out(deep.parent().unwrap().to_str().unwrap())).unwrap();
    case.collect().unwrap();
    case.store.remove(job()).unwrap();
    create_dir(case.out(deep.to_str().unwrap())).unwrap();
    assert_eq!(case.refusal(), (deep.to_str().unwrap().into(), Reason::TooDeep(16)));
}

#[test]
fn too_many_entries_are_refused() {
    let case = Case::new();
    (0..11).for_each(|number| write(case.out(&number.to_string()), "").unwrap());
    let refused = case.collect_within(Caps { entries: 10, ..Caps::of_disk(1) }).unwrap_err();
    assert!(matches!(refused, ArtifactError::Rejected { why: Reason::TooMany(10), .. }), "{refused}");
    case.collect_within(Caps { entries: 11, ..Caps::of_disk(1) }).unwrap();
}

#[test]
fn names_that_are_not_readable_text_are_refused_and_shown_escaped() {
    for (name, shown) in [
        (&b"line\nbreak"[..], "line\\nbreak"),
        (b"\x1b[2J", "\\u{1b}[2J"),
        (b"\xff\xfe", "\u{fffd}\u{fffd}"),
        ("adapter\u{202e}txt.exe".as_bytes(), "adapter\\u{202e}txt.exe"),
    ] {
        let case = Case::new();
        write(case.out("").join(Path::new(std::ffi::OsStr::from_bytes(name))), "").unwrap();
        assert_eq!(case.refusal(), (shown.into(), Reason::Name));
    }
}

#[test]
fn no_asked_for_path_leads_out_of_the_jobs_artifacts() {
    let case = Case::new();
    write(case.out("a"), "abc").unwrap();
    case.collect().unwrap();
    write(case.dir.path().join("artifacts/secret"), "abc").unwrap();
    // Nobody but us writes there; a link is not followed all the same.
    let folder = case.dir.path().join("artifacts").join(job().to_string());
    symlink("/etc", folder.join("etc")).unwrap();
    for path in ["../secret", "/etc/passwd", "etc/passwd", "a/../../secret", "", ".", "a\0b", &"x/".repeat(5000)] {
        assert_eq!(case.kept(path), None, "{path:?}");
    }
    assert_eq!(case.kept("./a").unwrap(), b"abc");
}

#[test]
fn kept_files_are_read_only() {
    use std::os::unix::fs::PermissionsExt;
    let case = Case::new();
    write(case.out("run.sh"), "abc").unwrap();
    std::fs::set_permissions(case.out("run.sh"), std::fs::Permissions::from_mode(0o6777)).unwrap();
    case.collect().unwrap();
    let (file, _) = case.store.open_for_reading(job(), "run.sh").unwrap().unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o444);
    assert_eq!(read(case.out("run.sh")).unwrap(), b"abc", "the output itself is left as it is");
}

#[test]
fn checkpoints_are_left_behind_and_looked_at_nevertheless() {
    let case = Case::new();
    create_dir_all(case.out("checkpoints/step-1")).unwrap();
    write(case.out("checkpoints/step-1/weights"), "w").unwrap();
    write(case.out("adapter"), "a").unwrap();
    let paths: Vec<_> = case.collect().unwrap().into_iter().map(|artifact| artifact.path).collect();
    assert_eq!(paths, ["adapter"]);

    let case = Case::new();
    create_dir_all(case.out("checkpoints")).unwrap();
    std::os::unix::fs::symlink("/", case.out("checkpoints/root")).unwrap();
    assert_eq!(case.refusal(), ("checkpoints/root".into(), Reason::NotAFile("symbolic link")));
}

#[test]
fn of_a_job_that_failed_only_what_it_announced_is_taken() {
    let case = Case::new();
    write(case.out("evidence.json"), "e").unwrap();
    write(case.out("half"), "h").unwrap();
    let wanted = Wanted::These(["evidence.json".into(), "gone".into()].into());
    let kept = case.store.collect(job(), &case.out(""), Caps::of_disk(1 << 20), &wanted).unwrap();
    assert_eq!(kept.into_iter().map(|artifact| artifact.path).collect::<Vec<_>>(), ["evidence.json"]);
}
