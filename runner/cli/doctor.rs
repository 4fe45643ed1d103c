//! `drydock doctor`

use super::client::Client;
use super::error::{CliError, Exit};
use super::out::Out;
use super::text::one_line;
use super::{Global, gateway_url};
use crate::api::{DatasetList, ModelList};
use crate::config::Flag;
use crate::doctor::{GatewayView, Verdict, examine};
use crate::gpus::Host;

/// Checks the host; the exit code is 1 if no job can run here.
pub(super) async fn doctor(global: &Global, flags: Vec<Flag>, out: &mut Out) -> Result<Exit, CliError> {
    let loaded = global.load(flags)?;
    let url = global.named().map_or_else(|| gateway_url(&loaded.config), str::to_owned);
    let client = Client::new(&url)?;
    let gpus = Host::new(loaded.config.sandbox.nvml.clone()).look().await;
    let engine = crate::serve::probe(&loaded.config, gpus.clone().unwrap_or_default()).await;
    let gateway = ask(&client).await.map_err(|error| error.to_string());
    let checks = examine(&loaded, &engine, &gpus, &gateway);
    if out.json {
        out.document(&checks)?;
    } else {
        for check in &checks {
            let verdict = match check.verdict {
                Verdict::Ok => "ok     ",
                Verdict::Warn => "warn   ",
                Verdict::Problem => "problem",
            };
            let mend = check.mend.as_ref().map(|mend| format!("  ->  {mend}")).unwrap_or_default();
            out.line(format!("{verdict}  {:13} {}{mend}", check.name, one_line(&check.found)))?;
        }
    }
    let broken = checks.iter().any(|check| check.verdict == Verdict::Problem);
    Ok(if broken { Exit::Error } else { Exit::Ok })
}

async fn ask(client: &Client) -> Result<GatewayView, CliError> {
    let models: ModelList = client.get(&["v1", "models"], &[]).await?;
    let datasets: DatasetList = client.get(&["v1", "datasets"], &[]).await?;
    Ok(GatewayView {
        url: client.address().to_owned(),
        host: client.get(&["v1", "host"], &[]).await?,
        gpus: client.get(&["v1", "gpus"], &[]).await?,
        models: models.models.len(),
        datasets: datasets.datasets.len(),
    })
}
