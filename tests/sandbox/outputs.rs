//! Outputs that are made to harm whoever takes them over, made inside a real container and taken over for real.

use drydock::artifacts::{ArtifactError, ArtifactStore, Caps, Reason, Wanted};
use drydock::sandbox::attempt_dir::OutputCap;
use drydock_spec::{JobId, Limits};

use crate::stage::{Act, Stage, limits};

struct Outputs {
    _stage: Stage,
    act: Act,
    store: ArtifactStore,
    _folder: tempfile::TempDir,
}

impl Outputs {
    async fn made(cap: OutputCap) -> Self {
        let stage = Stage::with(cap, |_| {});
        let act = stage.act_within(Limits { disk_bytes: 256 << 20, ..limits() }, &["make-outputs"]);
        assert_eq!(stage.play(&act).await.code, 0, "{:?}", act.told());
        let folder = tempfile::tempdir().unwrap();
        Self { _stage: stage, act, store: ArtifactStore::new(folder.path().join("artifacts")), _folder: folder }
    }

    /// Takes over one folder of the output as if it were all of it; how much is `Err(reason)` or the kept paths.
    fn collect(&self, case: &str) -> Result<Vec<String>, Reason> {
        let output = self.act.dir.output_path().join(case);
        let job = JobId::from_parts(0, 1);
        match self.store.collect(job, &output, Caps::of_disk(256 << 20), &Wanted::AllButCheckpoints) {
            Ok(artifacts) => Ok(artifacts.into_iter().map(|artifact| artifact.path).collect()),
            Err(ArtifactError::Rejected { path, why }) => {
                assert!(!path.contains(|c: char| c.is_control() || c == '\u{202e}'), "{case}: {path:?} is shown");
                Err(why)
            }
            Err(error) => panic!("{case}: {error}"),
        }
    }
}

#[tokio::test]
async fn nothing_that_was_made_to_harm_is_taken_over() {
    let caps = if rustix::process::geteuid().is_root() {
        vec![OutputCap::LoopMount, OutputCap::Watched]
    } else {
        vec![OutputCap::Watched]
    };
    for cap in caps {
        let outputs = Outputs::made(cap).await;
        let made = outputs.act.told();
        for (case, outcome) in [
            // What cannot even be made.
            ("fifo", "EPERM"),
            ("disk", "EPERM"),
            ("memory", "EPERM"),
            ("input-as-output", "EXDEV"),
            ("sparse", "EFBIG"),
            // What can be made.
            ("link", "ok"),
            ("linked-folder", "ok"),
            ("magic-link", "ok"),
            ("second-name", "ok"),
            ("socket", "ok"),
            ("holes", "ok"),
            ("setuid", "ok"),
            ("deep", "ok"),
            ("newline", "ok"),
            ("escape", "ok"),
            ("invalid", "ok"),
            ("turned", "ok"),
            ("long", "ok"),
            ("up", "ok"),
            ("harmless", "ok"),
        ] {
            assert_eq!(made[&format!("make {case}")], outcome, "{case}, {cap:?}");
        }
        for (case, why) in [
            ("link", Reason::NotAFile("symbolic link")),
            ("linked-folder", Reason::NotAFile("symbolic link")),
            ("magic-link", Reason::NotAFile("symbolic link")),
            ("second-name", Reason::Linked(2)),
            ("socket", Reason::NotAFile("socket")),
            ("holes", Reason::TooLarge(256 << 20)),
            ("deep", Reason::TooDeep(16)),
            ("newline", Reason::Name),
            ("escape", Reason::Name),
            ("invalid", Reason::Name),
            ("turned", Reason::Name),
        ] {
            assert_eq!(outputs.collect(case), Err(why), "{case}, {cap:?}");
        }
        assert_eq!(outputs.collect("harmless").unwrap(), ["file"]);
        assert_eq!(outputs.collect("long").unwrap(), ["n".repeat(255)]);
        assert_eq!(outputs.collect("setuid").unwrap(), ["program"], "as a file that nobody can execute");
        // What lies deeper than any path, and what its owner has shut, goes with the rest.
        outputs.act.dir.clone().remove().unwrap();
    }
}
