//! Looks at the host's GPUs, and listens to them, through NVIDIA's management library (NVML), which comes with the
//! driver.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::MemoryInfo;
use nvml_wrapper::{Device, EventSet, Nvml, cuda_driver_version_major, cuda_driver_version_minor};

use crate::health::Xid;
use crate::inventory::{Ecc, Gpu, Inventory, Memory, Process, RemappedRows, Slice, Utilization};

/// Why no GPU can be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoGpus {
    #[error("NVIDIA's management library cannot be loaded ({0}): this host has no driver, or not all of it")]
    NoLibrary(String),
    #[error("NVIDIA's driver is not loaded into the kernel; load it with `modprobe nvidia`")]
    NoDriver,
    #[error("NVIDIA's library and the driver in the kernel are of two versions, as after an update; reboot the host")]
    VersionMismatch,
    #[error("NVIDIA's management library does not do its part: {0}; see `nvidia-smi`")]
    Failed(String),
    #[error("NVIDIA's driver does not answer; see `nvidia-smi` and the kernel's log, and reboot the host")]
    Silent,
}

/// The host's GPUs.
#[derive(Debug)]
pub struct Gpus {
    nvml: Nvml,
}

/// How long the driver is waited for before anybody looks whether the listening is over, in milliseconds.
const WAIT_MS: u32 = 1000;
/// How long nobody listens after the driver has refused to tell.
const DEAF: Duration = Duration::from_secs(10);
/// What NVIDIA's catalogue calls an event that older GPUs have for itself: a memory error that cannot be corrected.
const DOUBLE_BIT_ERROR: u64 = 48;
/// A GPU's mode while it is divided.
const MIG_ENABLED: u32 = 1;

impl Gpus {
    /// Loads the library: the driver's own, or this one.
    pub fn open(library: Option<&Path>) -> Result<Self, NoGpus> {
        let mut builder = Nvml::builder();
        // The driver brings no file without its version, which only headers for compilers do.
        builder.lib_path(library.map_or(OsStr::new("libnvidia-ml.so.1"), Path::as_os_str));
        let nvml = builder.init().map_err(|error| match error {
            NvmlError::LibloadingError(error) => NoGpus::NoLibrary(error.to_string()),
            NvmlError::DriverNotLoaded => NoGpus::NoDriver,
            NvmlError::LibRmVersionMismatch => NoGpus::VersionMismatch,
            error => NoGpus::Failed(error.to_string()),
        })?;
        Ok(Self { nvml })
    }

    /// All GPUs as they are now. May take seconds where one of them does not answer, and for ever where the driver
    /// does not.
    pub fn look(&self) -> Result<Inventory, NoGpus> {
        let count = self.nvml.device_count().map_err(|error| NoGpus::Failed(error.to_string()))?;
        let mut found = Inventory {
            driver: self.nvml.sys_driver_version().ok(),
            cuda: self.nvml.sys_cuda_driver_version().ok().map(|version| {
                format!("{}.{}", cuda_driver_version_major(version), cuda_driver_version_minor(version))
            }),
            ..Inventory::default()
        };
        for index in 0..count {
            match self.nvml.device_by_index(index).and_then(|device| Ok((device.uuid()?, device))) {
                Ok((uuid, device)) => found.gpus.push(gpu(index, uuid, &device)),
                Err(NvmlError::GpuLost) => found.silent.push(index),
                // Not one that this user may look at, or none any more.
                Err(_) => {}
            }
        }
        Ok(found)
    }

    /// Tells every Xid event until it is `over`. Blocks. Returns at once where no GPU tells of any.
    pub fn listen(&self, over: &AtomicBool, mut heard: impl FnMut(Xid)) {
        while let Some((events, names)) = self.events() {
            loop {
                // What was told before it was over is heard all the same.
                let is_over = over.load(Ordering::Relaxed);
                match events.wait(if is_over { 0 } else { WAIT_MS }) {
                    Ok(event) => {
                        let number = match event.event_data {
                            Some(XidError::Value(number)) => number,
                            None if event.event_type.contains(EventTypes::DOUBLE_BIT_ECC_ERROR) => DOUBLE_BIT_ERROR,
                            None | Some(XidError::Unknown) => continue,
                        };
                        // One that has just been lost does not say any more which it is.
                        let known = names.iter().find(|(device, _)| *device == handle(&event.device));
                        let uuid = known.map(|(_, uuid)| uuid.clone()).or_else(|| event.device.uuid().ok());
                        heard(Xid { uuid, number });
                    }
                    Err(_) if is_over => return,
                    Err(NvmlError::Timeout) => {}
                    Err(_) => break,
                }
            }
            drop(events);
            std::thread::sleep(DEAF);
        }
    }

    /// What tells of the events of all GPUs that have any, with what each of them is called.
    fn events(&self) -> Option<(EventSet<'_>, Vec<(usize, String)>)> {
        let mut events = self.nvml.create_event_set().ok()?;
        let mut names = Vec::new();
        for index in 0..self.nvml.device_count().ok()? {
            let Ok(device) = self.nvml.device_by_index(index) else { continue };
            let wanted = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
            let told = device.supported_event_types().unwrap_or(EventTypes::empty()) & wanted;
            if !told.is_empty() {
                events = device.register_events(told, events).ok()?;
                names.push((handle(&device), device.uuid().unwrap_or_default()));
            }
        }
        (!names.is_empty()).then_some((events, names))
    }
}

/// What tells a device from others while the library is loaded.
fn handle(device: &Device<'_>) -> usize {
    // SAFETY: the handle is only compared, never used.
    unsafe { device.handle() as usize }
}

fn gpu(index: u32, uuid: String, device: &Device<'_>) -> Gpu {
    let memory = device.memory_info();
    let uncorrected = device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile);
    let lost = [memory.as_ref().err(), uncorrected.as_ref().err()];
    let lost = lost.into_iter().flatten().any(|error| matches!(error, NvmlError::GpuLost));
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
    let capability = device.cuda_compute_capability().ok();
    Gpu {
        index,
        uuid,
        name: device.name().unwrap_or_default(),
        compute_capability: capability.and_then(|it| Some((it.major.try_into().ok()?, it.minor.try_into().ok()?))),
        memory: memory.map_or(Memory::default(), self::memory),
        utilization: device
            .utilization_rates()
            .ok()
            .map(|of| Utilization { gpu_percent: of.gpu, memory_percent: of.memory }),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        power_watts: device.power_usage().ok().map(watts),
        power_limit_watts: device.enforced_power_limit().ok().map(watts),
        ecc: ecc(device),
        remapped_rows: remapped_rows(device),
        divided: device.mig_mode().is_ok_and(|mode| mode.current == MIG_ENABLED),
        slices: slices(device),
        processes: processes(device),
        lost,
        cordoned: None,
    }
}

fn memory(told: MemoryInfo) -> Memory {
    Memory { total_bytes: told.total, reserved_bytes: told.reserved, free_bytes: told.free }
}

fn ecc(device: &Device<'_>) -> Option<Ecc> {
    let count = |kind, counter| device.total_ecc_errors(kind, counter).ok();
    Some(Ecc {
        enabled: device.is_ecc_enabled().ok()?.currently_enabled,
        corrected: count(MemoryError::Corrected, EccCounter::Volatile),
        uncorrected: count(MemoryError::Uncorrected, EccCounter::Volatile),
        uncorrected_ever: count(MemoryError::Uncorrected, EccCounter::Aggregate),
    })
}

/// Slices of a divided GPU. Their places have gaps where one was removed.
fn slices(device: &Device<'_>) -> Vec<Slice> {
    if !device.mig_mode().is_ok_and(|mode| mode.current == MIG_ENABLED) {
        return Vec::new();
    }
    let slice = |index| {
        let slice = device.mig_device_by_index(index).ok()?;
        let uuid = slice.uuid().ok()?;
        // Such as `NVIDIA H200 MIG 1g.18gb`.
        let profile =
            slice.name().ok().and_then(|name| name.split_once(" MIG ").map(|(_, profile)| profile.to_owned()));
        let memory = memory(slice.memory_info().ok()?);
        Some(Slice { index, instances: instances(&slice), uuid, profile, memory })
    };
    (0..device.mig_device_count().unwrap_or(0)).filter_map(slice).collect()
}

/// Which instances a slice consists of; the binding has no words for that.
fn instances(slice: &Device<'_>) -> Option<(u32, u32)> {
    let library = slice.nvml().lib();
    let (gpu, compute) =
        (library.nvmlDeviceGetGpuInstanceId.as_ref().ok()?, library.nvmlDeviceGetComputeInstanceId.as_ref().ok()?);
    let (mut gpu_instance, mut compute_instance) = (0, 0);
    // SAFETY: the library is loaded for as long as the device lives, and writes one number to where it is told.
    let answers = unsafe { [gpu(slice.handle(), &mut gpu_instance), compute(slice.handle(), &mut compute_instance)] };
    (answers == [0, 0]).then_some((gpu_instance, compute_instance))
}

/// Every process that computes on the GPU, also on a slice of it.
fn processes(device: &Device<'_>) -> Vec<Process> {
    let told = device.running_compute_processes().unwrap_or_default();
    let processes = told.into_iter().map(|process| Process {
        pid: process.pid,
        memory_bytes: match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        },
        ..Process::default()
    });
    processes.collect()
}

/// The wrapper has no call for it.
fn remapped_rows(device: &Device<'_>) -> Option<RemappedRows> {
    let call = device.nvml().lib().nvmlDeviceGetRemappedRows.as_ref().ok()?;
    let (mut corrected, mut uncorrected, mut pending, mut failed) = (0, 0, 0, 0);
    // SAFETY: the handle is of a device of this library, which outlives it, and the four numbers are there to be
    // written to.
    let answer = unsafe { call(device.handle(), &mut corrected, &mut uncorrected, &mut pending, &mut failed) };
    let rows = RemappedRows { corrected, uncorrected, pending: pending != 0, failed: failed != 0 };
    (answer == 0).then_some(rows)
}
