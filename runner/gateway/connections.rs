//! Connections: taken in, served, and brought to an end.
//!
//! Served by hyper itself and not by `axum::serve`, whose connections buffer some 400 KiB for a client that does not
//! read, and there is no telling it otherwise.

use std::pin::pin;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::listener::{Connection, PatientListener};

/// Bytes that a connection holds at most of what its client does not take, and of a request's head.
const MOST_BUFFERED: usize = 32 << 10;

/// Serves until `shutdown` is cancelled, and then until the last answer has gone out.
pub(super) async fn serve(mut listener: PatientListener, app: Router, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let (connection, _) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        connections.spawn(answer(connection, app.clone(), shutdown.clone()));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn answer(connection: Connection, app: Router, shutdown: CancellationToken) {
    let mut server = http1::Builder::new();
    server.max_buf_size(MOST_BUFFERED);
    let mut serving = pin!(server.serve_connection(TokioIo::new(connection), TowerToHyperService::new(app)));
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::trace!(%error, "a connection ended");
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use rustix::net::sockopt::set_socket_recv_buffer_size;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    #[tokio::test]
    async fn a_client_that_does_not_read_is_given_no_more_than_the_buffers_hold() {
        let given = Arc::new(AtomicUsize::new(0));
        let count = given.clone();
        let endless = move || {
            let count = count.clone();
            let block = move || {
                count.fetch_add(4096, Ordering::Relaxed);
                Some(Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 4096])))
            };
            std::future::ready(Body::from_stream(futures::stream::iter(std::iter::from_fn(block))))
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let listener = PatientListener::new(listener, shutdown.clone());
        tokio::spawn(serve(listener, Router::new().route("/", get(endless)), shutdown.clone()));
        let socket = TcpSocket::new_v4().unwrap();
        set_socket_recv_buffer_size(&socket, 4096).unwrap();
        let mut client = socket.connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = given.load(Ordering::Relaxed);
            if now == before && now > 0 {
                break;
            }
            before = now;
        }
        assert!(before < 256 << 10, "{before} bytes were given to a client that takes none");
        shutdown.cancel();
    }
}
