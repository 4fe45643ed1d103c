//! Why a configuration cannot be used.

use std::net::SocketAddr;
use std::path::PathBuf;

/// The configuration cannot be used. Each message names the place, the key, the value and what is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: cannot be read: {reason}; correct --config or DRYDOCK_CONFIG, or make the file readable")]
    Unreadable { path: PathBuf, reason: String },
    #[error("{path}: not valid TOML: {reason}")]
    NotToml { path: PathBuf, reason: String },
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    UnknownKeys(Vec<BadKey>),
    #[error("{origin}: {key} = {value}: not accepted; write {accepts}")]
    BadValue { origin: String, key: String, value: String, accepts: String },
    #[error(
        "{origin}: gateway.listen = {listen}: other machines could reach the gateway, which has no authentication yet; \
         listen on 127.0.0.1, or name the hosts it may be reached as in gateway.allowed_hosts, such as \
         [\"gpu-box.lan:{}\"]", .listen.port()
    )]
    Exposed { origin: String, listen: SocketAddr },
}

/// A key that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: unknown key `{key}`; {}", match .nearest {
    Some(known) => format!("did you mean `{known}`?"),
    None => "`drydock config` lists the keys there are".to_owned(),
})]
pub struct BadKey {
    pub origin: String,
    pub key: String,
    pub nearest: Option<&'static str>,
}
