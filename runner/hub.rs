//! The model hub: what a name means there, pinned to a commit, and its files on their way into the blobs.
//!
//! hf-hub asks the questions (commit, listing). The files themselves are fetched here, with reqwest, because hf-hub
//! 1.0.0 starts a cut download over, does not wait as long as `Retry-After` says, loses the digest that only the first
//! answer of a redirect carries, and puts signed addresses into its errors.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderValue;

use crate::blobs::{BlobError, Blobs};
use crate::config::HubConfig;

mod download;
mod listing;
mod patience;
mod reference;
mod turns;

pub use listing::{Checksum, HubFile};
pub use patience::Patience;
pub use reference::{NotAReference, Reference};
pub use turns::Turns;

/// Something cannot be had from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("hub.offline is set, so `{0}` is not asked for; import it from a file or folder, or turn hub.offline off")]
    Offline(String),
    #[error(transparent)]
    Reference(#[from] NotAReference),
    #[error("the hub has no {what}; {next}")]
    NotFound { what: String, next: String },
    #[error("the hub does not let us read `{repo}` ({status}); {next}")]
    Denied { repo: String, status: u16, next: String },
    /// May well work later.
    #[error("the hub {problem} (tried {tries} times); try again later, or check the network of the gateway's host")]
    Unavailable { problem: String, tries: u32 },
    #[error("`{file}` of `{repo}` came with {found}, {expected} is right; the hub or something on the way is broken")]
    Corrupt { repo: String, file: String, expected: String, found: String },
    #[error("the hub cannot be set up: {0}")]
    Setup(String),
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Model,
    Dataset,
}

/// A repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    pub kind: Kind,
    /// `owner/name`
    pub repo: String,
    /// 40 hex digits: branches move, commits do not.
    pub commit: String,
}

impl Pinned {
    /// Where something came from, such as `hf:owner/name@0123...`.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("hf:{}@{}", self.repo, self.commit)
    }
}

/// The hub, as configured. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// None while offline.
    api: Option<hf_hub::HFClient>,
    http: reqwest::Client,
    /// Without a slash at its end.
    endpoint: reqwest::Url,
    token: Option<Token>,
    patience: Patience,
    blobs: Blobs,
    turns: Turns,
}

/// The token, which must not show anywhere.
struct Token(HeaderValue);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(hidden)")
    }
}

const ENDPOINT: &str = "https://huggingface.co";

impl Hub {
    /// The hub with what `config` and the environment say. Nothing is asked yet.
    pub fn open(config: &HubConfig, blobs: Blobs) -> Result<Self, HubError> {
        Self::with_patience(config, blobs, Patience::default())
    }

    /// The same, with a patience of one's own.
    pub fn with_patience(config: &HubConfig, blobs: Blobs, patience: Patience) -> Result<Self, HubError> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let endpoint = config.endpoint.clone().or_else(|| env("HF_ENDPOINT")).unwrap_or_else(|| ENDPOINT.into());
        let endpoint = reqwest::Url::parse(endpoint.trim_end_matches('/'))
            .map_err(|error| HubError::Setup(format!("hub.endpoint = {endpoint}: {error}")))?;
        let token = match &config.token_file {
            Some(file) => Some(read_token(file)?),
            None => env("HF_TOKEN"),
        };
        let setup = |error: reqwest::Error| HubError::Setup(error.without_url().to_string());
        let api = match config.offline {
            true => None,
            false => Some(api(&endpoint, token.as_deref(), client().build().map_err(setup)?)?),
        };
        // Redirects are followed by hand: the first answer has the digest, and no other host may see the token.
        let http = client().redirect(reqwest::redirect::Policy::none()).build().map_err(setup)?;
        let token = token.map(|token| Token::new(&token)).transpose()?;
        let inner = Inner { api, http, endpoint, token, patience, blobs, turns: Turns::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether the hub is never asked.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.inner.api.is_none()
    }
}

fn client() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("drydock/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(Duration::from_secs(60))
}

/// hf-hub's client, without its own retries: they do not heed `Retry-After`.
fn api(endpoint: &reqwest::Url, token: Option<&str>, client: reqwest::Client) -> Result<hf_hub::HFClient, HubError> {
    // Left to itself, hf-hub would look for a token in the home folder, which nobody told drydock to use. A token that
    // cannot be a header keeps it from looking, and is not sent.
    let token = token.unwrap_or("\n");
    hf_hub::HFClient::builder()
        .endpoint(endpoint.as_str().trim_end_matches('/'))
        .token(token)
        .client(client)
        .cache_enabled(false)
        .retry_max_attempts(0)
        .build()
        .map_err(|error| HubError::Setup(error.to_string()))
}

fn read_token(file: &Path) -> Result<String, HubError> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| HubError::Setup(format!("hub.token_file = {}: {error}", file.display())))?;
    Ok(text.trim().to_owned())
}

impl Token {
    fn new(token: &str) -> Result<Self, HubError> {
        let mut header = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| HubError::Setup("the hub's token has characters that no token has".into()))?;
        header.set_sensitive(true);
        Ok(Self(header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_never_shows() {
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join("token");
        std::fs::write(&file, "hf_secret\n").unwrap();
        let config = HubConfig { token_file: Some(file.clone()), ..HubConfig::default() };
        let hub = Hub::open(&config, Blobs::open(state.path()).unwrap()).unwrap();
        let shown = format!("{hub:?}");
        assert!(!shown.contains("secret") && shown.contains("Token(hidden)"), "{shown}");
        std::fs::write(&file, "hf_sec\u{1}ret").unwrap();
        let error = Hub::open(&config, Blobs::open(state.path()).unwrap()).unwrap_err().to_string();
        assert!(!error.contains("hf_sec"), "{error}");
    }

    #[test]
    fn an_endpoint_that_is_none_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let config = HubConfig { endpoint: Some("not an address".into()), ..HubConfig::default() };
        let error = Hub::open(&config, Blobs::open(state.path()).unwrap()).unwrap_err().to_string();
        assert!(error.contains("hub.endpoint = not an address"), "{error}");
    }
}
