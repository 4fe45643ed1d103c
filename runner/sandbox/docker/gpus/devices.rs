//! GPUs as plain device files, with the driver's libraries beside them.
//!
//! The device files that a container is not given are shut to it by its control group, whatever file it may find or make.
//! May read and write, may not make (`rw`): the engine makes the files, and the worker needs to make none.
//!
//! The libraries lie in a folder of their own, [`LIBRARIES`], where NVIDIA's own images look as well, and not in one of the
//! image's: which folders its loader searches depends on who made the image, and what lies there is hers. So the loader
//! is told of it by `LD_LIBRARY_PATH`, before what the image has there.

use std::collections::BTreeSet;

use bollard::models::{DeviceMapping, Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountType};
use drydock_gpu::inventory::Inventory;

use super::driver::Driver;
use super::libraries::{self, Library};
use super::{GpuRequest, HIDDEN, Host};

/// Where a container finds the driver's libraries.
const LIBRARIES: &str = "/usr/local/nvidia/lib64";

/// What all GPUs are used through: without the first two nothing can be computed.
const SHARED: [(&str, bool); 3] = [("nvidiactl", true), ("nvidia-uvm", true), ("nvidia-uvm-tools", false)];

pub(super) fn request(units: &[String], host: &Host<'_>) -> Result<GpuRequest, String> {
    let driver = Driver::at(host.root);
    let version = driver.version().ok_or("NVIDIA's driver is not loaded: /proc/driver/nvidia/version is not there")?;
    let libraries = libraries::find(host.root, &version)?;
    let mut nodes = shared(driver)?;
    for unit in units {
        nodes.extend(of_unit(unit, host.gpus, driver)?);
    }
    let mut devices = Vec::with_capacity(nodes.len());
    for node in nodes {
        devices.push(device(&node, driver)?);
    }
    let path = match host.library_path {
        Some(own) if !own.is_empty() => format!("{LIBRARIES}:{own}"),
        _ => LIBRARIES.to_owned(),
    };
    Ok(GpuRequest {
        env: vec![HIDDEN.to_owned(), format!("LD_LIBRARY_PATH={path}")],
        devices,
        mounts: libraries.iter().flat_map(mounts).collect(),
        ..GpuRequest::default()
    })
}

fn shared(driver: Driver<'_>) -> Result<BTreeSet<String>, String> {
    let mut nodes = BTreeSet::new();
    for (name, needed) in SHARED {
        if driver.node(name).is_some() {
            nodes.insert(name.to_owned());
        } else if needed {
            return Err(format!("/dev/{name} is not there; `nvidia-modprobe -u -c=0` makes it, as root"));
        }
    }
    Ok(nodes)
}

/// The names of the device files of a GPU or a slice.
fn of_unit(unit: &str, gpus: &Inventory, driver: Driver<'_>) -> Result<Vec<String>, String> {
    let parent = gpus.gpu_of(unit).ok_or_else(|| format!("{unit} is not on this host any more"))?;
    let minors = driver.minors();
    let minor = minors.get(&parent.uuid).ok_or_else(|| {
        format!("the driver does not tell the device file of {}; keep it loaded with nvidia-persistenced", parent.uuid)
    })?;
    let gpu = format!("nvidia{minor}");
    if parent.uuid == unit {
        return Ok(vec![gpu]);
    }
    let instances = parent.slices.iter().find(|slice| slice.uuid == unit).and_then(|slice| slice.instances);
    let (gpu_instance, compute_instance) = instances.ok_or_else(|| {
        format!("which device files belong to the slice {unit} is not known; use CDI or NVIDIA's toolkit")
    })?;
    let slice = driver
        .slice_nodes(*minor, gpu_instance, compute_instance)
        .ok_or_else(|| format!("the driver does not tell the device files of the slice {unit}"))?;
    Ok([gpu].into_iter().chain(slice).collect())
}

fn device(name: &str, driver: Driver<'_>) -> Result<DeviceMapping, String> {
    let node =
        driver.node(name).ok_or_else(|| format!("/dev/{name} is not there; `nvidia-modprobe` makes it, as root"))?;
    Ok(DeviceMapping {
        path_on_host: Some(node.to_string_lossy().into_owned()),
        path_in_container: Some(format!("/dev/{name}")),
        cgroup_permissions: Some("rw".to_owned()),
    })
}

fn mounts(library: &Library) -> impl Iterator<Item = Mount> {
    library.names.iter().map(|name| Mount {
        typ: Some(MountType::BIND),
        source: Some(library.file.to_string_lossy().into_owned()),
        target: Some(format!("{LIBRARIES}/{name}")),
        read_only: Some(true),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            ..Default::default()
        }),
        ..Default::default()
    })
}
