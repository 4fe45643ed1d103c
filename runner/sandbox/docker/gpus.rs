//! GPUs in containers: what a create request says of them, by each of the three injectors.
//!
//! Whatever the injector, a container gets exactly the GPUs that it was given, by UUID, never "all" and never by being
//! privileged; its other walls stand as they do without. And a container without GPUs says so
//! ([`HIDDEN`]), since an engine whose default runtime is NVIDIA's gives every GPU to an image that asks for them in its
//! environment.

use std::path::{Path, PathBuf};

use bollard::models::{DeviceMapping, DeviceRequest, Mount};
use drydock_gpu::inventory::Inventory;

use crate::in_hand::InHand;
use crate::sandbox::gpus::{Injector, InjectorChoice, KnownGpus};
use driver::Driver;

mod cdi;
pub(super) mod check;
mod devices;
mod driver;
mod knowledge;
mod libraries;
mod nodes;
mod trial;

pub(super) use knowledge::{Circumstances, Knowledge};
pub(crate) use nodes::shut_nodes;

/// How containers of an installation get GPUs.
#[derive(Debug, Clone)]
pub struct GpuSettings {
    pub choice: InjectorChoice,
    /// The host's GPUs.
    pub known: KnownGpus,
    /// Where the host's `/dev`, `/proc` and libraries lie: `/`, but for tests.
    pub root: PathBuf,
    /// The user and group that a trial runs as, inside.
    pub user: (u32, u32),
    /// Where trials are noted for as long as they last, so that nobody sweeps their containers away.
    pub trials: InHand,
}

impl Default for GpuSettings {
    fn default() -> Self {
        Self {
            choice: InjectorChoice::Auto,
            known: KnownGpus::none(),
            root: "/".into(),
            user: (65532, 65532),
            trials: InHand::default(),
        }
    }
}

/// Tells NVIDIA's runtime, where it is the engine's default, to be an ordinary one. The image may have said otherwise.
const HIDDEN: &str = "NVIDIA_VISIBLE_DEVICES=void";

/// The part of a create request that gives a container its GPUs, or sees to it that it has none.
#[derive(Debug, Default, PartialEq)]
pub(super) struct GpuRequest {
    pub(super) env: Vec<String>,
    pub(super) devices: Vec<DeviceMapping>,
    pub(super) device_requests: Vec<DeviceRequest>,
    pub(super) mounts: Vec<Mount>,
    /// How they are given; `None` to a container without.
    pub(super) injector: Option<Injector>,
}

impl GpuRequest {
    /// For a container that computes on the CPU.
    pub(super) fn none() -> Self {
        Self { env: vec![HIDDEN.to_owned()], ..Self::default() }
    }
}

/// What is looked at to give GPUs.
pub(super) struct Host<'a> {
    pub(super) gpus: &'a Inventory,
    pub(super) root: &'a Path,
    /// CDI devices by name, such as `nvidia.com/gpu=0`, as the engine lists them.
    pub(super) cdi: &'a CdiDevices,
    /// What the image itself has in `LD_LIBRARY_PATH`.
    pub(super) library_path: Option<&'a str>,
}

/// What an engine knows of CDI.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CdiDevices {
    /// It looks for specifications somewhere.
    pub(super) spoken: bool,
    /// It lists what it found, from Docker 28.2 on.
    pub(super) listed: Vec<String>,
}

impl CdiDevices {
    pub(super) fn of(system: &bollard::models::SystemInfo) -> Self {
        let devices = system.discovered_devices.iter().flatten();
        let mut listed: Vec<_> = devices
            .filter(|device| device.source.as_deref().is_none_or(|source| source == "cdi"))
            .filter_map(|device| device.id.clone())
            .collect();
        listed.sort();
        let spoken = !listed.is_empty() || system.cdi_spec_dirs.as_ref().is_some_and(|folders| !folders.is_empty());
        Self { spoken, listed }
    }
}

/// How the injector gives these GPUs, or in words why it cannot.
pub(super) fn request(injector: Injector, units: &[String], host: &Host<'_>) -> Result<GpuRequest, String> {
    let request = match injector {
        Injector::Cdi => GpuRequest {
            env: vec![HIDDEN.to_owned()],
            device_requests: vec![DeviceRequest {
                driver: Some("cdi".to_owned()),
                device_ids: Some(cdi::names(units, host.gpus, host.cdi)?),
                ..Default::default()
            }],
            ..GpuRequest::default()
        },
        Injector::Nvidia => GpuRequest {
            // The engine says the same when it calls the hook; here it takes the place of what the image says.
            env: vec![
                format!("NVIDIA_VISIBLE_DEVICES={}", units.join(",")),
                "NVIDIA_DRIVER_CAPABILITIES=compute,utility".to_owned(),
            ],
            device_requests: vec![DeviceRequest {
                driver: Some("nvidia".to_owned()),
                device_ids: Some(units.to_vec()),
                capabilities: Some(vec![["gpu", "compute", "utility"].map(str::to_owned).to_vec()]),
                ..Default::default()
            }],
            ..GpuRequest::default()
        },
        Injector::Devices => devices::request(units, host)?,
    };
    Ok(GpuRequest { injector: Some(injector), ..request })
}

/// The version of the host's driver, if it runs.
pub(super) fn driver_version(root: &Path) -> Option<String> {
    Driver::at(root).version()
}

/// Whether the engine speaks of what it was to do for a GPU.
pub(super) fn speaks_of_injection(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["device driver", "custom device", "cdi", "nvidia"].iter().any(|sign| message.contains(sign))
}

#[cfg(test)]
mod tests;
