//! What an engine calls a GPU that it gives by CDI.
//!
//! The names are made by whoever wrote the specification. NVIDIA's toolkit calls a GPU by its index or its UUID, or both,
//! and a slice by the indices of its GPU and of its own in it: `0`, `GPU-5a2e...`, `1:0`. An index means what it meant when
//! the file was written; that a container got another GPU is found out after its start, see [`check`](super::check).

use drydock_gpu::inventory::Inventory;

use super::CdiDevices;

/// Who makes them and what they are, in every name.
const KIND: &str = "nvidia.com/gpu=";

/// One name for each of the units, or why one has none.
pub(super) fn names(units: &[String], gpus: &Inventory, cdi: &CdiDevices) -> Result<Vec<String>, String> {
    if !cdi.spoken {
        return Err(
            "the engine knows nothing of CDI; Docker does from 28.2 on, and from 25 with the feature `cdi`".into()
        );
    }
    units.iter().map(|unit| name(unit, gpus, cdi)).collect()
}

fn name(unit: &str, gpus: &Inventory, cdi: &CdiDevices) -> Result<String, String> {
    let by_uuid = format!("{KIND}{unit}");
    // An engine that lists none may know them all the same.
    if cdi.listed.is_empty() || cdi.listed.contains(&by_uuid) {
        return Ok(by_uuid);
    }
    let by_index = place(unit, gpus).into_iter().flatten().map(|name| format!("{KIND}{name}"));
    by_index.into_iter().find(|name| cdi.listed.contains(name)).ok_or_else(|| {
        format!(
            "the engine lists no CDI device for {unit} (it lists {}); write the list anew with `nvidia-ctk cdi generate \
             --output /etc/cdi/nvidia.yaml`",
            cdi.listed.join(", ")
        )
    })
}

/// The names by index that the unit may have, in the toolkit's two spellings.
fn place(unit: &str, gpus: &Inventory) -> Option<[String; 2]> {
    gpus.gpus.iter().find_map(|gpu| {
        if gpu.uuid == unit {
            return Some([gpu.index.to_string(), format!("gpu{}", gpu.index)]);
        }
        let slice = gpu.slices.iter().find(|slice| slice.uuid == unit)?.index;
        Some([format!("{}:{slice}", gpu.index), format!("mig{}:{slice}", gpu.index)])
    })
}
