//! Where the command line meets the gateway and the engine.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::sandbox::{EngineInfo, SandboxError};

/// Runs the gateway until `shutdown`.
pub async fn serve(_config: Config, _shutdown: CancellationToken) -> anyhow::Result<()> {
    anyhow::bail!("this build has no gateway")
}

/// MCP over stdio, through the gateway at `url`.
pub async fn bridge(
    _url: &str,
    _stdin: impl AsyncRead + Unpin,
    _stdout: impl AsyncWrite + Unpin,
    _shutdown: CancellationToken,
) -> anyhow::Result<()> {
    anyhow::bail!("this build has no gateway")
}

/// What the configured engine says of itself.
pub async fn probe(_config: &Config) -> Result<EngineInfo, SandboxError> {
    Err(SandboxError::Unreachable("this build has no engine".into()))
}
