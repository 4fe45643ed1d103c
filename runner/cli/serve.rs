//! `drydock serve` and `drydock stdio`: the commands that are a gateway, not its client.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::error::{CliError, Exit};
use crate::config::{Config, Flag, LogConfig, LogFormat};
use crate::store::StoreError;

/// How often a gateway of another process is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Settings that often differ from one start to the next; the configuration has them all.
#[derive(Debug, clap::Args)]
pub(super) struct Settings {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Folder that datasets and models may be read from; may be given several times
    #[arg(long = "data-dir", value_name = "FOLDER")]
    data_dirs: Vec<PathBuf>,
    /// The worker's image
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Never ask the hub for anything
    #[arg(long)]
    offline: bool,
    /// Form of the log lines on stderr: text or json
    #[arg(long, value_name = "FORM")]
    log_format: Option<String>,
    /// Which log lines are written, in the form of RUST_LOG
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
}

impl Settings {
    pub(super) fn flags(&self) -> Vec<Flag> {
        let texts = [
            ("--listen", "gateway.listen", &self.listen),
            ("--image", "sandbox.image", &self.image),
            ("--log-format", "log.format", &self.log_format),
            ("--log-filter", "log.filter", &self.log_filter),
        ];
        let mut flags: Vec<_> =
            texts.into_iter().filter_map(|(flag, key, value)| Some(text_flag(flag, key, value.as_ref()?))).collect();
        if !self.data_dirs.is_empty() {
            let folders: Vec<_> = self.data_dirs.iter().map(|folder| folder.display().to_string()).collect();
            flags.push(Flag { flag: "--data-dir", key: "data_dirs", value: serde_json::json!(folders).to_string() });
        }
        if self.offline {
            flags.push(Flag { flag: "--offline", key: "hub.offline", value: "true".into() });
        }
        flags
    }
}

/// A flag whose value is text, whatever it looks like.
pub(super) fn text_flag(flag: &'static str, key: &'static str, value: &str) -> Flag {
    Flag { flag, key, value: serde_json::json!(value).to_string() }
}

/// Runs the gateway until SIGINT or SIGTERM.
pub(super) async fn serve(config: Config) -> Result<Exit, CliError> {
    start_log(&config.log);
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    crate::serve::serve(config, shutdown_on_signals()?).await?;
    Ok(Exit::Ok)
}

/// Speaks MCP over stdin and stdout until stdin ends. As long as no other gateway answers at the configured address,
/// one is run in this process; a gateway that was named with `--gateway` is somebody else's to run.
pub(super) async fn stdio(config: Config, gateway: Option<&str>) -> Result<Exit, CliError> {
    start_log(&config.log);
    let shutdown = shutdown_on_signals()?;
    if let Some(url) = gateway {
        bridge(url, &shutdown).await?;
        return Ok(Exit::Ok);
    }
    let mut keeper = tokio::spawn(keep_one_running(config.clone(), shutdown.clone()));
    let url = tokio::select! {
        url = until_one_answers(&config) => url,
        ended = &mut keeper => {
            ended.map_err(anyhow::Error::from)??;
            return Ok(Exit::Ok);
        }
    };
    let bridged = bridge(&url, &shutdown).await;
    shutdown.cancel();
    keeper.await.map_err(anyhow::Error::from)??;
    bridged.map(|()| Exit::Ok)
}

/// Runs a gateway whenever none answers. Several hosts may do this at a time: the state folder's lock lets one of them
/// be the gateway, and when its host leaves, another one takes its place.
async fn keep_one_running(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    while !shutdown.is_cancelled() {
        if !answers(&super::gateway_url(&config)).await
            && let Err(error) = crate::serve::serve(config.clone(), shutdown.clone()).await
            && !matches!(error.downcast_ref(), Some(StoreError::InUse(_)))
        {
            tracing::error!(%error, "no gateway can be run");
            return Err(error);
        }
        // Nobody tells that another process's gateway has ended.
        let _ = tokio::time::timeout(LOOK_AGAIN, shutdown.cancelled()).await;
    }
    Ok(())
}

async fn bridge(url: &str, shutdown: &CancellationToken) -> Result<(), CliError> {
    crate::serve::bridge(url, tokio::io::stdin(), tokio::io::stdout(), shutdown.clone()).await?;
    Ok(())
}

/// The address of the gateway of this configuration, once it answers.
async fn until_one_answers(config: &Config) -> String {
    loop {
        let url = super::gateway_url(config);
        if answers(&url).await {
            return url;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn answers(url: &str) -> bool {
    match super::client::Client::new(url) {
        Ok(client) => client.is_alive().await,
        Err(_) => false,
    }
}

/// A token that is cancelled by the first SIGINT or SIGTERM; a second one ends the process at once.
fn shutdown_on_signals() -> Result<CancellationToken, CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::io("signals"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::io("signals"))?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        let mut signals = async || tokio::select! { _ = interrupt.recv() => 130, _ = terminate.recv() => 143 };
        signals().await;
        tracing::info!("shutting down; a second signal ends it at once");
        token.cancel();
        std::process::exit(signals().await);
    });
    Ok(shutdown)
}

/// Log lines go to stderr: stdout belongs to results and to MCP.
fn start_log(config: &LogConfig) {
    // The filter was checked when the configuration was read.
    let mut filter = EnvFilter::try_new(&config.filter).unwrap_or_default();
    // Below this level rmcp logs whole messages, whatever the filter asks for; and messages may hold secrets.
    if let Ok(capped) = "rmcp=warn".parse() {
        filter = filter.add_directive(capped);
    }
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start in one process (tests do that) keeps the first one's log.
    let _ = match config.format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
}
