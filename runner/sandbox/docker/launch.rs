//! Creating and starting containers, with their GPUs or without any.

use bollard::query_parameters::{CreateContainerOptions, StartContainerOptions};
use tokio::time::timeout;

use super::error::{is_status, speaks_of_no_runtime, translate};
use super::found::{Given, Seen};
use super::gpus::{self, CdiDevices, GpuRequest};
use super::image::Image;
use super::{DockerSandbox, bounded_for, host_config, resolve_sources};
use crate::sandbox::gpus::Injector;
use crate::sandbox::{ContainerName, Launch, Sandbox, SandboxError, Status};

impl DockerSandbox {
    async fn gpu_request(
        &self,
        launch: &Launch,
        image: &Image,
        injector: Option<Injector>,
    ) -> Result<GpuRequest, SandboxError> {
        let Some(injector) = injector else { return Ok(GpuRequest::none()) };
        let inventory = self.settings.gpus.known.now();
        if let Some(lost) = launch.gpus.iter().find(|unit| inventory.gpu_of(unit).is_none()) {
            let message = format!("{lost} is not on this host any more");
            return Err(SandboxError::Refused { action: "give a container its GPU", message });
        }
        let system = self.system().await?;
        let host = gpus::Host {
            gpus: &inventory,
            root: &self.settings.gpus.root,
            cdi: &CdiDevices::of(&system),
            library_path: image.library_path.as_deref(),
        };
        gpus::request(injector, &launch.gpus, &host).map_err(|message| SandboxError::NoInjection { injector, message })
    }

    pub(super) async fn create_by(&self, launch: &Launch, injector: Option<Injector>) -> Result<(), SandboxError> {
        let (limit, action) = (self.settings.timeouts.change, "create a container");
        let image = self.image().await?;
        let resolved = host_config::Resolved {
            sources: resolve_sources(&launch.mounts, &self.settings.mount_roots)?,
            gpus: self.gpu_request(launch, &image, injector).await?,
            image: image.id,
            host_cpus: self.host_cpus().await?,
        };
        let body = host_config::body(launch, &self.settings, resolved);
        let options = CreateContainerOptions { name: Some(launch.name.0.clone()), ..Default::default() };
        match timeout(limit, self.client().await?.create_container(Some(options), body)).await {
            Err(_) => Err(SandboxError::TimedOut(limit, action)),
            Ok(Err(error)) if is_status(&error, 409) => Err(SandboxError::NameTaken(launch.name.clone())),
            Ok(Err(error)) => Err(match &self.settings.runtime {
                Some(runtime) if speaks_of_no_runtime(&error) => SandboxError::RuntimeMissing(runtime.clone()),
                _ if is_status(&error, 404) => SandboxError::ImageMissing(self.settings.image.clone()),
                _ => blame(translate(error, action, limit), injector),
            }),
            Ok(Ok(created)) => {
                for warning in created.warnings {
                    tracing::warn!(container = %launch.name, warning, "the engine does not hold a limit");
                }
                Ok(())
            }
        }
    }

    /// Starts a container that was created, and sees to it that it has the GPUs that it was given.
    pub(super) async fn start_once(&self, name: &ContainerName) -> Result<(), SandboxError> {
        let action = "start a container";
        let Some(seen) = self.look(name).await? else { return Err(SandboxError::NoContainer(name.clone())) };
        match seen.found.status {
            // An earlier start whose reply was lost.
            Status::Running | Status::Lifeless => {}
            Status::Exited(exit) => {
                let message = format!("`{name}` has run already and ended with code {}", exit.code);
                return Err(SandboxError::Refused { action, message });
            }
            Status::Created { .. } => {
                let limit = self.settings.timeouts.change;
                let start = self.client().await?.start_container(&name.0, None::<StartContainerOptions>);
                let started = bounded_for(name, limit, action, start).await;
                started.map_err(|error| blame(error, seen.gpus.as_ref().map(|given| given.injector)))?;
            }
        }
        match seen.gpus {
            None => Ok(()),
            Some(given) => self.require_gpus(name, given).await,
        }
    }

    /// Removes a container that has other GPUs than it was given.
    async fn require_gpus(&self, name: &ContainerName, given: Given) -> Result<(), SandboxError> {
        let Some(Seen { process, .. }) = self.look(name).await? else { return Ok(()) };
        let (inventory, root) = (self.settings.gpus.known.now(), &self.settings.gpus.root);
        match gpus::check::amiss(process.pid, &given.gpus, &inventory, root) {
            None => Ok(()),
            Some(message) => {
                self.remove(name).await?;
                Err(SandboxError::NoInjection { injector: given.injector, message })
            }
        }
    }
}

/// An error of the engine with a container that has GPUs: the injector's, if it speaks of what that was to do.
fn blame(error: SandboxError, injector: Option<Injector>) -> SandboxError {
    match (error, injector) {
        (SandboxError::Failed { message, .. } | SandboxError::Refused { message, .. }, Some(injector))
            if gpus::speaks_of_injection(&message) =>
        {
            SandboxError::NoInjection { injector, message }
        }
        (error, _) => error,
    }
}
