//! The probe's image: built once, from the worker's own Dockerfile.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

/// Images stay on the host as a cache; `docker image ls drydock-test-sb-probe` shows them.
const REPOSITORY: &str = "drydock-test-sb-probe";

/// The image's name. Building it is what fails when there is no engine.
pub(crate) fn probe() -> &'static str {
    static BUILT: OnceLock<String> = OnceLock::new();
    BUILT.get_or_init(build)
}

/// The probe itself.
pub(crate) fn program() -> &'static Path {
    static COMPILED: OnceLock<PathBuf> = OnceLock::new();
    COMPILED.get_or_init(compile)
}

/// The tag depends on the content: tests of two checkouts share an engine, and neither may take the other's image.
fn build() -> String {
    let context = tempfile::tempdir().unwrap();
    let program = std::fs::read(program()).unwrap();
    let worker = context.path().join("drydock-worker");
    std::fs::write(&worker, &program).unwrap();
    std::fs::set_permissions(&worker, std::fs::Permissions::from_mode(0o755)).unwrap();
    let digest: String = Sha256::digest(&program).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let name = format!("{REPOSITORY}:{digest}");
    let dockerfile = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/worker.Dockerfile");
    let mut docker = Command::new("docker");
    docker.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--tag", &name, "--file"]);
    let built = docker.arg(dockerfile).arg(context.path()).output();
    let built =
        built.expect("these tests need Docker's client: install it, for example with `apt-get install docker.io`");
    assert!(
        built.status.success(),
        "these tests need a Docker engine: start it with `systemctl start docker` or, as root, `dockerd &`\n{}",
        String::from_utf8_lossy(&built.stderr)
    );
    name
}

/// Builds the probe as a static program, in a target folder of its own: flags for one target do not disturb others.
fn compile() -> PathBuf {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "drydock-probe", "--target", &target, "--target-dir"])
        .arg(&folder)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    folder.join(target).join("debug/drydock-probe")
}
