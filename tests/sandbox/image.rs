//! The probe's image: built once, from the worker's own Dockerfile.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Stays on the host as a cache; `docker image rm drydock-test-sb-probe` removes it.
const NAME: &str = "drydock-test-sb-probe";

/// The image's name. Building it is what fails when there is no engine.
pub(crate) fn probe() -> &'static str {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(build);
    NAME
}

fn build() {
    let context = tempfile::tempdir().unwrap();
    std::fs::copy(compile(), context.path().join("drydock-worker")).unwrap();
    let dockerfile = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/worker.Dockerfile");
    let mut docker = Command::new("docker");
    docker.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--tag", NAME, "--file"]);
    let built = docker.arg(dockerfile).arg(context.path()).output();
    let built =
        built.expect("these tests need Docker's client: install it, for example with `apt-get install docker.io`");
    assert!(
        built.status.success(),
        "these tests need a Docker engine: start it with `systemctl start docker` or, as root, `dockerd &`\n{}",
        String::from_utf8_lossy(&built.stderr)
    );
}

/// Builds the probe as a static program, in a target folder of its own: flags for one target do not disturb others.
fn compile() -> std::path::PathBuf {
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
