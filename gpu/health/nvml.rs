//! Looks at the host's GPUs through NVIDIA's management library (NVML), which comes with the driver.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, EventSet, Nvml};

use super::{Look, Reading, Xid};

/// Why no GPU can be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoGpus {
    #[error("NVIDIA's management library cannot be loaded ({0}): this host has no driver, or not all of it")]
    NoLibrary(String),
    #[error("NVIDIA's driver is not loaded into the kernel; load it with `modprobe nvidia`")]
    NoDriver,
    #[error("NVIDIA's library and the driver in the kernel are of two versions, as after an update; reboot the host")]
    VersionMismatch,
    #[error("NVIDIA's management library does not start: {0}")]
    Failed(String),
}

/// The host's GPUs.
#[derive(Debug)]
pub struct Gpus {
    nvml: Nvml,
}

/// How long the driver is waited for before anybody looks whether the watch is over, in milliseconds.
const WAIT_MS: u32 = 200;
/// Events that are kept of one watch; a GPU that is about to die can tell of thousands.
const MOST_EVENTS: usize = 1000;

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

    /// All GPUs as they are now. May take seconds where one of them does not answer.
    #[must_use]
    pub fn look(&self) -> Look {
        let driver = self.nvml.sys_driver_version().ok();
        let count = self.nvml.device_count().unwrap_or(0);
        let gpus = (0..count).filter_map(|index| match self.nvml.device_by_index(index) {
            Ok(device) => Some(reading(index, &device)),
            Err(NvmlError::GpuLost) => Some(Reading { index, lost: true, ..Reading::default() }),
            // Not one that this user may look at, or none any more.
            Err(_) => None,
        });
        Look { driver, gpus: gpus.collect() }
    }

    /// The Xid events that the driver tells of until it is `over`. Blocks. A GPU or driver without such events, and a
    /// watch that breaks off, leave what there was till then.
    #[must_use]
    pub fn watch(&self, over: &AtomicBool) -> Vec<Xid> {
        let mut told = Vec::new();
        let Some(events) = self.events() else { return told };
        while told.len() < MOST_EVENTS {
            // What was told before the watch was over is heard all the same.
            let is_over = over.load(Ordering::Relaxed);
            match events.wait(if is_over { 0 } else { WAIT_MS }) {
                Ok(event) => {
                    if let Some(XidError::Value(number)) = event.event_data {
                        told.push(Xid { uuid: event.device.uuid().ok(), number });
                    }
                }
                Err(NvmlError::Timeout) if !is_over => {}
                Err(_) => break,
            }
        }
        told
    }

    fn events(&self) -> Option<EventSet<'_>> {
        let mut events = self.nvml.create_event_set().ok()?;
        let mut any = false;
        for index in 0..self.nvml.device_count().ok()? {
            let Ok(device) = self.nvml.device_by_index(index) else { continue };
            let tells =
                device.supported_event_types().is_ok_and(|types| types.contains(EventTypes::CRITICAL_XID_ERROR));
            if tells {
                events = device.register_events(EventTypes::CRITICAL_XID_ERROR, events).ok()?;
                any = true;
            }
        }
        any.then_some(events)
    }
}

fn reading(index: u32, device: &Device<'_>) -> Reading {
    let uuid = device.uuid();
    let memory = device.memory_info();
    let uncorrected = |counter| device.total_ecc_errors(MemoryError::Uncorrected, counter);
    let (since_loaded, ever) = (uncorrected(EccCounter::Volatile), uncorrected(EccCounter::Aggregate));
    let lost = [uuid.as_ref().err(), memory.as_ref().err(), since_loaded.as_ref().err()];
    let (rows_pending, rows_failed) = remapped_rows(device).unwrap_or_default();
    Reading {
        index,
        uuid: uuid.as_ref().ok().cloned(),
        name: device.name().ok(),
        memory_total: memory.as_ref().ok().map(|memory| memory.total),
        memory_used: memory.as_ref().ok().map(|memory| memory.used),
        uncorrected: since_loaded.as_ref().ok().copied(),
        uncorrected_ever: ever.ok(),
        rows_pending,
        rows_failed,
        lost: lost.into_iter().flatten().any(|error| matches!(error, NvmlError::GpuLost)),
    }
}

/// Whether rows wait for being replaced, and whether replacing one has failed; the wrapper has no call for it.
fn remapped_rows(device: &Device<'_>) -> Option<(bool, bool)> {
    let call = device.nvml().lib().nvmlDeviceGetRemappedRows.as_ref().ok()?;
    let (mut corrected, mut uncorrected, mut pending, mut failed) = (0, 0, 0, 0);
    // SAFETY: the handle is of a device of this library, which outlives it, and the four numbers are there to be
    // written to.
    let answer = unsafe { call(device.handle(), &mut corrected, &mut uncorrected, &mut pending, &mut failed) };
    (answer == 0).then_some((pending != 0, failed != 0))
}
