//! Images that are there for one test only.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A name for an image, which goes with this value.
pub(crate) struct Image {
    pub(crate) name: String,
}

impl Image {
    /// The probe under another name.
    pub(crate) fn tagged(number: u32) -> Self {
        Self::called(Self::named(number))
    }

    /// The probe under this name, whatever it was the name of.
    pub(crate) fn called(name: String) -> Self {
        docker(&["tag", crate::image::probe(), &name]);
        Self { name }
    }

    /// The probe's program with these rights, in an image that starts `entrypoint`.
    pub(crate) fn built(number: u32, entrypoint: &str, mode: u32) -> Self {
        let context = tempfile::tempdir().unwrap();
        let program = context.path().join("drydock-worker");
        std::fs::copy(crate::image::program(), &program).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).unwrap();
        let lines = [
            "FROM scratch",
            "COPY drydock-worker /drydock-worker",
            "USER 65532:65532",
            &format!("ENTRYPOINT [\"{entrypoint}\"]"),
        ];
        Self::of(number, &lines, context.path())
    }

    /// The probe, with a worker in it that does no harm whatever it is told.
    pub(crate) fn harmless() -> Self {
        let context = tempfile::tempdir().unwrap();
        Self::of(0, &[&format!("FROM {}", crate::image::probe()), "ENV DRYDOCK_PROBE_HARMLESS=1"], context.path())
    }

    fn of(number: u32, lines: &[&str], context: &Path) -> Self {
        let image = Self { name: Self::named(number) };
        std::fs::write(context.join("Dockerfile"), lines.join("\n")).unwrap();
        docker(&["build", "--quiet", "--tag", &image.name, context.to_str().unwrap()]);
        image
    }

    fn named(number: u32) -> String {
        format!("drydock-test-failures-{number}:{:032x}", rand::random::<u128>())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        docker(&["rmi", "--force", &self.name]);
    }
}

fn docker(arguments: &[&str]) {
    let mut docker = Command::new("docker");
    let done = docker.env("DOCKER_BUILDKIT", "0").args(arguments).output().unwrap();
    assert!(done.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}
