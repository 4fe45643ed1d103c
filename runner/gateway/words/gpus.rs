//! The host's GPUs in a few lines.

use super::{cut, size};
use crate::api::{GpuList, GpuView};
use crate::gateway::tools::{GpuLine, GpuLines};

/// The same as data.
pub(in crate::gateway) fn gpu_lines(list: GpuList) -> GpuLines {
    let line = |view: GpuView| GpuLine {
        uuid: view.gpu.uuid,
        name: view.gpu.name,
        total_bytes: view.gpu.memory.total_bytes,
        free_bytes: view.gpu.memory.free_bytes,
        busy_percent: view.gpu.utilization.map(|of| of.gpu_percent),
        slices: view.gpu.slices.into_iter().map(|slice| slice.uuid).collect(),
        held_by: view.held_by.into_iter().map(|holder| holder.job).collect(),
        foreign_bytes: view.strangers.map_or(0, |strangers| strangers.memory_bytes),
        cordoned: view.gpu.cordoned,
    };
    GpuLines { gpus: list.gpus.into_iter().map(line).collect(), problem: list.problem }
}

/// A line for each GPU: how it is, and who has it.
pub(in crate::gateway) fn gpus(list: &GpuList) -> String {
    let mut lines: Vec<_> = list.gpus.iter().map(gpu).collect();
    if lines.is_empty() {
        let why = list.problem.as_deref().unwrap_or("the driver knows of none");
        return format!("no GPU: {why}\njobs run on the CPU");
    }
    for gone in &list.gone {
        lines.push(format!("{} is not there any more: {}", gone.uuid, cut(&gone.reason, 300)));
    }
    lines.join("\n")
}

fn gpu(view: &GpuView) -> String {
    let gpu = &view.gpu;
    let mut told = vec![format!("{} of {} free", size(gpu.memory.free_bytes), size(gpu.memory.total_bytes))];
    told.extend(gpu.utilization.map(|of| format!("{} % busy", of.gpu_percent)));
    told.extend(gpu.divided.then(|| format!("divided into {} slices", gpu.slices.len())));
    told.extend(view.held_by.iter().map(|holder| format!("held by job {}", holder.job)));
    let strangers = |of: crate::api::Strangers| {
        format!("{} processes that are not drydock's hold {}", of.processes, size(of.memory_bytes))
    };
    told.extend(view.strangers.map(strangers));
    told.extend(gpu.lost.then(|| "lost to the driver".to_owned()));
    told.extend(gpu.cordoned.as_ref().map(|why| format!("no job gets it: {}", cut(why, 300))));
    format!("{}: {}", gpu.called(), told.join(", "))
}
