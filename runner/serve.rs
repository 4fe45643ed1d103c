//! From a configuration to a gateway that answers: the house and its faces, opened and closed in order.

use anyhow::Context as _;
use drydock_gpu::inventory::Inventory;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{AddressFile, Config};
use crate::gateway;
use crate::house::{House, docker};
use crate::in_hand::InHand;
use crate::sandbox::docker::DockerSandbox;
use crate::sandbox::gpus::KnownGpus;
use crate::sandbox::{EngineInfo, Sandbox, SandboxError};

/// Runs the gateway until `shutdown`. Jobs go on without it; the next gateway of the same state folder takes them up.
pub async fn serve(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listen = config.gateway.listen;
    let state_dir = config.state_dir.clone();
    raise_open_files();
    // The lock comes before the address: who holds the state folder is the gateway.
    let house = House::open(config, None, Clock::System).await?;
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}; choose another address with --listen or gateway.listen (port 0 takes a free one)")
    })?;
    let address = listener.local_addr()?;
    house.start().await?;
    let published = AddressFile::publish(&state_dir, address)?;
    tracing::info!(%address, state_dir = %state_dir.display(), "the gateway listens: MCP at /mcp, REST under /v1");
    let served = gateway::serve(listener, house.desk.clone(), shutdown).await;
    drop(published);
    house.close().await;
    tracing::info!("the gateway has stopped");
    Ok(served?)
}

/// Each client is an open file, and the usual soft limit of 1024 was made for programs that `select` among them.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => tracing::debug!(files = limit.maximum, "open files that this process may have"),
        Err(error) => tracing::warn!(%error, files = limit.current, "the limit on open files stays as it is"),
    }
}

/// MCP over stdio, through the gateway at `url`, until `stdin` ends.
pub async fn bridge(
    url: &str,
    stdin: impl AsyncRead + Unpin,
    stdout: impl AsyncWrite + Unpin,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    Ok(gateway::stdio::bridge(url, stdin, stdout, shutdown).await?)
}

/// What the configured engine says of itself, and of how containers get those of the host's GPUs that there are.
pub async fn probe(config: &Config, gpus: Inventory) -> Result<EngineInfo, SandboxError> {
    let known = KnownGpus::asked(move || gpus.clone());
    let sandbox = DockerSandbox::new(docker(config, "doctor", known, InHand::default()));
    let asked = sandbox.probe().await;
    if asked.is_ok()
        && let Err(error) = sandbox.sweep_trials(&Clock::System).await
    {
        tracing::debug!(%error, "containers of earlier trials stay");
    }
    if asked.is_ok() && sandbox.try_injectors().await { sandbox.probe().await } else { asked }
}
