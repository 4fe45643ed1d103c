//! `drydock gpus`

use super::client::Client;
use super::error::{CliError, Exit};
use super::out::Out;
use super::text::{ago, now_ms, one_line, size};
use crate::api::{CordonGpu, GpuList, GpuView};

/// What to do with GPUs.
#[derive(Debug, clap::Args)]
pub(super) struct Gpus {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the host's GPUs, how they are and who has them (the default)
    List,
    /// Have no job get a GPU; what runs on it goes on
    Cordon {
        /// As listed, such as GPU-5a2e...
        uuid: String,
        /// Why, in a sentence
        #[arg(long)]
        reason: String,
    },
    /// Let jobs have a GPU again: neither a reset nor a reboot does that by itself
    Uncordon { uuid: String },
}

impl Gpus {
    pub(super) async fn run(self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        let list: GpuList = match self.action.unwrap_or(Action::List) {
            Action::List => client.get(&["v1", "gpus"], &[]).await?,
            Action::Cordon { uuid, reason } => {
                client.post(&["v1", "gpus", &uuid, "cordon"], &CordonGpu { reason }).await?
            }
            Action::Uncordon { uuid } => client.post(&["v1", "gpus", &uuid, "uncordon"], &()).await?,
        };
        if out.json {
            out.document(&list)?;
            return Ok(Exit::Ok);
        }
        print(&list, out)?;
        Ok(Exit::Ok)
    }
}

fn print(list: &GpuList, out: &mut Out) -> Result<(), CliError> {
    if list.gpus.is_empty() {
        let why = list.problem.as_deref().unwrap_or("the driver knows of none");
        out.note(format!("no GPU: {why}; jobs run on the CPU"));
    } else {
        let header = ["GPU", "UUID", "NAME", "MEMORY", "BUSY", "HEAT", "POWER", "STATE"];
        out.table(header, list.gpus.iter().map(row).collect())?;
    }
    for gone in &list.gone {
        let since = ago(gone.at_ms, now_ms());
        out.note(format!(
            "{} is not there any more; cordoned {since} by {}: {}",
            gone.uuid,
            gone.by,
            one_line(&gone.reason)
        ));
    }
    if let Some(driver) = &list.driver {
        let cuda = list.cuda.as_ref().map_or_else(String::new, |cuda| format!(", CUDA {cuda}"));
        out.note(format!("driver {driver}{cuda}"));
    }
    Ok(())
}

fn row(view: &GpuView) -> [String; 8] {
    let gpu = &view.gpu;
    let told = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let limit = gpu.power_limit_watts.map_or_else(String::new, |watts| format!(" of {watts:.0}"));
    [
        gpu.index.to_string(),
        gpu.uuid.clone(),
        gpu.name.clone(),
        format!("{} of {}", size(gpu.memory.used_bytes()), size(gpu.memory.total_bytes)),
        told(gpu.utilization.map(|of| format!("{} %", of.gpu_percent))),
        told(gpu.temperature_celsius.map(|degrees| format!("{degrees} °C"))),
        told(gpu.power_watts.map(|watts| format!("{watts:.0}{limit} W"))),
        one_line(&state(view)),
    ]
}

/// What there is to say of the GPU, the most important first.
fn state(view: &GpuView) -> String {
    let gpu = &view.gpu;
    let mut told = Vec::new();
    told.extend(gpu.lost.then(|| "lost to the driver".to_owned()));
    let cordoned = view.cordon.as_ref();
    told.extend(
        cordoned.map(|cordon| format!("cordoned {} by {}: {}", ago(cordon.at_ms, now_ms()), cordon.by, cordon.reason)),
    );
    told.extend(view.held_by.iter().map(|holder| format!("job {}", holder.job)));
    for process in gpu.processes.iter().filter(|process| process.job.is_none()) {
        let held = process.memory_bytes.map_or_else(String::new, |bytes| format!(" {}", size(bytes)));
        told.push(format!("foreign: {} (pid {}){held}", process.name.as_deref().unwrap_or("unknown"), process.pid));
    }
    told.extend(gpu.divided.then(|| format!("{} slices", gpu.slices.len())));
    if let Some(errors) = gpu.ecc.and_then(|ecc| ecc.uncorrected).filter(|errors| *errors > 0) {
        told.push(format!("{errors} memory errors since the driver was loaded"));
    }
    if gpu.remapped_rows.is_some_and(|rows| rows.pending) {
        told.push("rows of its memory wait for a reset".into());
    }
    if told.is_empty() { "free".into() } else { told.join("; ") }
}
