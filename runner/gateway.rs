//! The gateway: what the world says to the house over HTTP, and what it hears back.
//!
//! MCP at `/mcp`, REST and server-sent events under `/v1`, health and metrics beside them, all on one socket and behind
//! one guard. Nothing here decides about jobs: a request becomes a question to the [`Desk`], and its answer, or its
//! [`error`], becomes a response. A request may end at any time, and no job notices.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use rmcp::ServerHandler;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Layer as _;

use crate::desk::Desk;

mod again;
mod body;
mod calls;
mod connections;
mod downloads;
mod error;
mod follow;
mod guard;
mod health;
mod knowledge;
mod listener;
pub mod mcp;
mod openapi;
mod rest;
mod routes;
mod schema;
pub mod stdio;
mod tasks;
mod tools;
mod uploads;
mod words;

use listener::PatientListener;

/// How long open requests may go on after a shutdown was asked for.
const GRACE: Duration = Duration::from_secs(2);

/// The gateway could not serve.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("the gateway's socket failed: {0}; is the address still this host's?")]
    Socket(#[from] std::io::Error),
}

/// What every request may use.
pub(crate) struct Gateway {
    desk: Desk,
    /// Every stream and every wait ends when this is cancelled.
    shutdown: CancellationToken,
    /// Work that was begun for a request and must not end with it.
    begun: TaskTracker,
    traffic: health::Traffic,
    feeds: follow::Feeds,
    answers: again::Answers,
}

impl Gateway {
    fn new(desk: Desk, shutdown: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            desk,
            shutdown,
            begun: TaskTracker::new(),
            traffic: health::Traffic::default(),
            feeds: follow::Feeds::default(),
            answers: again::Answers::default(),
        })
    }

    /// Does `work` to its end, even if nobody waits for it any more: the server drops what it does for a client that
    /// has gone, and a submission that is cut between its commit and its announcement would lie in the queue unseen.
    async fn undisturbed<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let span = tracing::Span::current();
        match self.begun.spawn(tracing::Instrument::instrument(work, span)).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down, and this request with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// Serves until `shutdown` is cancelled; then streams and waits end at once, and whatever is still open after
/// [`GRACE`] is cut.
pub async fn serve(listener: TcpListener, desk: Desk, shutdown: CancellationToken) -> Result<(), GatewayError> {
    let address = listener.local_addr()?;
    let gateway = Gateway::new(desk, shutdown.clone());
    let app = assemble(&gateway, address.port(), mcp::Server::new(&gateway));
    let cut = CancellationToken::new();
    let connections = connections::serve(PatientListener::new(listener, cut.clone()), app, shutdown.clone());
    let serving = async {
        connections.await;
        gateway.begun.close();
        gateway.begun.wait().await;
        Ok(())
    };
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(GRACE).await;
        cut.cancel();
        // What was cut still has to notice. Work that goes on, such as a download, ends with the process.
        tokio::time::sleep(GRACE / 4).await;
    };
    tokio::select! {
        served = serving => served,
        () = overdue => Ok(()),
    }
}

/// Every route behind the guard, for somebody who brings a server of their own. The port that clients may name in the
/// Host header is the configured one.
pub fn router(desk: Desk, shutdown: CancellationToken) -> Router {
    router_around(desk, shutdown, |server| server)
}

/// The same with something around the MCP server: the protocol's own conformance tests call tools that no real server
/// has, and are to find them behind this guard and this transport.
pub fn router_around<S: ServerHandler + Clone>(
    desk: Desk,
    shutdown: CancellationToken,
    around: impl FnOnce(mcp::Server) -> S,
) -> Router {
    let port = desk.config.gateway.listen.port();
    let gateway = Gateway::new(desk, shutdown);
    assemble(&gateway, port, around(mcp::Server::new(&gateway)))
}

fn assemble(gateway: &Arc<Gateway>, port: u16, server: impl ServerHandler + Clone) -> Router {
    let config = &gateway.desk.config.gateway;
    let mcp = from_fn_with_state(gateway.clone(), again::answer).layer(mcp::service(server, config.max_body.0));
    let routes =
        routes::router(routes::all(), config.max_body.0).with_state(gateway.clone()).route_service("/mcp", mcp);
    guard::guarded(routes, guard::Guard::new(config, port), gateway.clone())
}
