//! The host's GPUs: what there is, who has it, and what no job gets.

use drydock_gpu::inventory::Gpu;
use drydock_spec::Owner;

use super::{Desk, DeskError};
use crate::api::{GpuHolder, GpuList, GpuView, Strangers};
use crate::gpus::Known;
use crate::legible::legible;
use crate::store::AttemptRow;

/// A GPU cannot be cordoned or uncordoned as asked.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("no GPU `{0}`")]
    NoSuchGpu(String),
    #[error("`{slice}` is a slice; it is the GPU that is damaged or well: `{gpu}`")]
    IsSlice { slice: String, gpu: String },
    #[error("the reason is empty, or longer than {MOST_REASON} characters")]
    Reason,
}

/// Characters of a reason.
const MOST_REASON: usize = 300;

impl Desk {
    /// The GPUs by the newest look, and who has them.
    pub async fn gpus(&self) -> Result<GpuList, DeskError> {
        let held = self.store.attempts_under_way().await?;
        Ok(list(&self.gpus.now(), &held))
    }

    /// Has no job get the GPU any more. What runs on it goes on.
    pub async fn cordon(&self, owner: &Owner, uuid: &str, reason: &str) -> Result<GpuList, DeskError> {
        let reason = legible(reason.trim());
        if reason.is_empty() || reason.chars().count() > MOST_REASON {
            return Err(GpuError::Reason.into());
        }
        is_there(&self.gpus.now(), uuid)?;
        self.gpus.cordon(uuid, &reason, &owner.0).await?;
        self.gpus().await
    }

    /// Lets jobs have the GPU again; harmless if they may.
    pub async fn uncordon(&self, uuid: &str) -> Result<GpuList, DeskError> {
        let known = self.gpus.now();
        if !known.cordons.iter().any(|cordon| cordon.uuid == uuid) {
            is_there(&known, uuid)?;
        }
        self.gpus.uncordon(uuid).await?;
        self.gpus().await
    }
}

fn is_there(known: &Known, uuid: &str) -> Result<(), GpuError> {
    let Some(gpu) = known.gpus.as_ref().ok().and_then(|look| look.gpu_of(uuid)) else {
        return Err(GpuError::NoSuchGpu(uuid.to_owned()));
    };
    if gpu.uuid != uuid {
        return Err(GpuError::IsSlice { slice: uuid.to_owned(), gpu: gpu.uuid.clone() });
    }
    Ok(())
}

fn list(known: &Known, held: &[AttemptRow]) -> GpuList {
    let look = known.gpus.as_ref();
    let is_gone = |uuid: &str| known.each().all(|gpu| gpu.uuid != uuid);
    GpuList {
        gpus: known.each().map(|gpu| view(gpu, known, held)).collect(),
        problem: look.err().map(ToString::to_string),
        driver: look.ok().and_then(|look| look.driver.clone()),
        cuda: look.ok().and_then(|look| look.cuda.clone()),
        looked_ms: known.looked_ms,
        gone: known.cordons.iter().filter(|cordon| is_gone(&cordon.uuid)).cloned().collect(),
    }
}

fn view(gpu: &Gpu, known: &Known, held: &[AttemptRow]) -> GpuView {
    let is_of_it = |unit: &&String| gpu.uuid == **unit || gpu.slices.iter().any(|slice| slice.uuid == **unit);
    let holder = |row: &AttemptRow| {
        let units: Vec<_> = row.gpus.iter().filter(is_of_it).cloned().collect();
        (!units.is_empty()).then_some(GpuHolder { job: row.job, attempt: row.attempt.0, units })
    };
    let strangers: Vec<_> = gpu.processes.iter().filter(|process| process.job.is_none()).collect();
    let strangers = Strangers {
        processes: u32::try_from(strangers.len()).unwrap_or(u32::MAX),
        memory_bytes: strangers.iter().filter_map(|process| process.memory_bytes).sum(),
    };
    GpuView {
        gpu: gpu.clone(),
        held_by: held.iter().filter_map(holder).collect(),
        strangers: Some(strangers).filter(|strangers| strangers.processes > 0),
        cordon: known.cordons.iter().find(|cordon| cordon.uuid == gpu.uuid).cloned(),
    }
}
