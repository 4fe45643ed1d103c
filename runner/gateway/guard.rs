//! Who may speak to the gateway, decided before anything else is looked at.
//!
//! A web page that a browser on this host has open can send requests to a loopback address, and with DNS rebinding it
//! can even read the answers; it cannot, however, choose the Host and Origin headers. So both are checked for every
//! route: Host must be loopback's own or configured, and so must Origin, where a browser sends one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;

use super::Gateway;
use super::error::Refusal;
use crate::config::GatewayConfig;

/// What the Host and Origin headers may say.
pub(super) struct Guard {
    /// Where the gateway listens; 0 if that is not known, and then any port of loopback is taken for ours.
    port: u16,
    hosts: Vec<String>,
    origins: Vec<String>,
    max_body: u64,
}

/// Puts every route of `routes` behind the guard.
pub(super) fn guarded(routes: Router, guard: Guard, gateway: Arc<Gateway>) -> Router {
    let state = (Arc::new(guard), gateway);
    routes.layer(axum::middleware::from_fn_with_state(state, watch))
}

impl Guard {
    pub(super) fn new(config: &GatewayConfig, port: u16) -> Self {
        Self {
            port,
            hosts: config.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            origins: config.allowed_origins.iter().map(|origin| plain(origin)).collect(),
            max_body: config.max_body.0,
        }
    }

    /// The origin that the answer may be shown to, if it is not our own.
    fn admit(&self, headers: &HeaderMap, uri: &Uri) -> Result<Option<HeaderValue>, Refusal> {
        self.host(headers, uri)?;
        self.origin(headers)
    }

    fn host(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), Refusal> {
        let mut named = headers.get_all(header::HOST).iter();
        let host = match (named.next(), named.next()) {
            (Some(host), None) => host.to_str().unwrap_or_default().to_ascii_lowercase(),
            (None, _) => uri.authority().map(|authority| authority.as_str().to_ascii_lowercase()).unwrap_or_default(),
            (Some(_), Some(_)) => String::new(),
        };
        let authority = host.parse::<Authority>().map_err(|_| {
            Refusal::bad_request("bad_host", "the Host header is missing, repeated or unreadable")
                .hint("send one Host header that names the gateway")
        })?;
        if self.is_ours(&authority) || self.hosts.contains(&host) {
            return Ok(());
        }
        let message = format!("the gateway does not answer to the name `{host}` (a guard against DNS rebinding)");
        Err(Refusal::new(StatusCode::FORBIDDEN, "host_refused", message)
            .hint("use 127.0.0.1 or localhost, or add the name to gateway.allowed_hosts"))
    }

    fn origin(&self, headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
        let mut named = headers.get_all(header::ORIGIN).iter();
        let Some(value) = named.next() else { return Ok(None) };
        let origin = plain(value.to_str().unwrap_or_default());
        if named.next().is_none() {
            if self.origins.contains(&origin) {
                return Ok(Some(value.clone()));
            }
            let ours = origin.strip_prefix("http://").and_then(|host| host.parse::<Authority>().ok());
            if ours.is_some_and(|authority| self.is_ours(&authority)) {
                return Ok(None);
            }
        }
        let message = format!("pages of `{origin}` may not speak to the gateway");
        Err(Refusal::new(StatusCode::FORBIDDEN, "origin_refused", message)
            .hint("add the origin to gateway.allowed_origins if it is yours"))
    }

    fn is_ours(&self, authority: &Authority) -> bool {
        let host = authority.host();
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let loopback = host == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let port = match (authority.port(), authority.port_u16()) {
            (None, _) => true,
            (Some(_), port) => port.is_some_and(|port| self.port == 0 || port == self.port),
        };
        loopback && port && !authority.as_str().contains('@')
    }

    /// A body that says beforehand that it is too large is refused before it is read; the others are counted on the
    /// way in. Uploads have a limit of their own.
    fn fits(&self, request: &Request) -> Result<(), Refusal> {
        let announced =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let upload = request.method() == Method::PUT && request.uri().path().starts_with("/v1/blobs/");
        match announced {
            Some(bytes) if !upload && self.max_body < bytes => Err(Refusal::too_large(self.max_body)),
            _ => Ok(()),
        }
    }
}

/// An origin without the trailing slash that people like to write, in lower case.
fn plain(origin: &str) -> String {
    origin.trim_end_matches('/').to_ascii_lowercase()
}

/// Lets a request in or turns it away, and notes that it was there: its method, path, status and time. Headers and
/// bodies are never noted, they may hold secrets.
async fn watch(State((guard, gateway)): State<(Arc<Guard>, Arc<Gateway>)>, request: Request, next: Next) -> Response {
    let span = tracing::info_span!("request", method = %request.method(), path = request.uri().path());
    let begun = Instant::now();
    async move {
        let response = answer(&guard, request, next).await;
        gateway.traffic.answered(response.status());
        tracing::debug!(status = response.status().as_u16(), ms = begun.elapsed().as_millis(), "answered");
        response
    }
    .instrument(span)
    .await
}

async fn answer(guard: &Guard, request: Request, next: Next) -> Response {
    let origin = match guard.admit(request.headers(), request.uri()) {
        Ok(origin) => origin,
        Err(refusal) => return refusal.into_response(),
    };
    let preflight = request.method() == Method::OPTIONS
        && origin.is_some()
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight {
        StatusCode::NO_CONTENT.into_response()
    } else if let Err(refusal) = guard.fits(&request) {
        refusal.into_response()
    } else {
        next.run(request).await
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        if preflight {
            let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE");
            let named = HeaderValue::from_static(
                "accept, content-type, idempotency-key, last-event-id, mcp-method, mcp-name, mcp-protocol-version",
            );
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, named);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        let config = GatewayConfig {
            allowed_hosts: vec!["GPU-box.lan:7717".into()],
            allowed_origins: vec!["https://Example.org/".into()],
            ..GatewayConfig::default()
        };
        Guard::new(&config, 7717)
    }

    fn ask(host: &str, origin: Option<&str>) -> Result<Option<HeaderValue>, StatusCode> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        guard().admit(&headers, &Uri::from_static("/healthz")).map_err(|refusal| refusal.status)
    }

    #[test]
    fn only_loopback_and_configured_hosts_are_answered() {
        for host in ["127.0.0.1:7717", "localhost:7717", "LOCALHOST", "[::1]:7717", "127.0.0.1", "gpu-box.lan:7717"] {
            assert_eq!(ask(host, None), Ok(None), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:7717",
            "127.0.0.1:80",
            "127.0.0.1.evil.example:7717",
            "gpu-box.lan",
            "a@localhost:7717",
            "10.0.0.1:7717",
        ] {
            assert_eq!(ask(host, None), Err(StatusCode::FORBIDDEN), "{host}");
        }
        assert_eq!(ask("", None), Err(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn only_our_own_and_configured_origins_are_answered() {
        for origin in ["http://localhost:7717", "http://127.0.0.1:7717", "http://[::1]:7717"] {
            assert_eq!(ask("localhost:7717", Some(origin)), Ok(None), "{origin}");
        }
        let shown = ask("localhost:7717", Some("https://example.org")).unwrap();
        assert_eq!(shown.unwrap(), "https://example.org");
        for origin in [
            "https://evil.example",
            "null",
            "http://localhost:3000",
            "https://localhost:7717",
            "",
            "https://example.org.evil.example",
            "https://example.org:444",
        ] {
            assert_eq!(ask("localhost:7717", Some(origin)), Err(StatusCode::FORBIDDEN), "{origin}");
        }
    }

    #[test]
    fn a_repeated_host_is_refused() {
        let mut headers = HeaderMap::new();
        headers.append(header::HOST, HeaderValue::from_static("localhost:7717"));
        headers.append(header::HOST, HeaderValue::from_static("evil.example"));
        let refused = guard().admit(&headers, &Uri::from_static("/")).unwrap_err();
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    }
}
