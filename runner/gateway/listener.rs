//! The socket: answers leave at once, buffers stay small, and a client that takes nothing is let go.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long a client may leave an answer untaken before its connection is closed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the kernel holds for a client that reads slowly, in bytes. Its own choice grows to megabytes per stream.
const SEND_BUFFER: usize = 64 * 1024;

/// Accepts connections that are closed when their client stops taking what it asked for.
pub(super) struct PatientListener {
    inner: TcpListener,
    patience: Duration,
    cut: CancellationToken,
}

impl PatientListener {
    /// Connections fail as soon as `cut` is cancelled.
    pub(super) fn new(inner: TcpListener, cut: CancellationToken) -> Self {
        Self { inner, patience: PATIENCE, cut }
    }
}

impl Listener for PatientListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (tcp, address) = Listener::accept(&mut self.inner).await;
        // Without TCP_NODELAY a small answer waits some 40 ms for the acknowledgement of the one before.
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY is not to be had");
        }
        if let Err(error) = rustix::net::sockopt::set_socket_send_buffer_size(&tcp, SEND_BUFFER) {
            tracing::debug!(%error, "the send buffer keeps its size");
        }
        (Connection::new(tcp, self.patience, self.cut.clone()), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A connection with a limit on how long a write may make no progress. Keep-alive comments do not help here: they are
/// written, too, and a client that reads nothing takes none of them.
pub(super) struct Connection {
    tcp: TcpStream,
    patience: Duration,
    /// Runs while a write waits for the client.
    stalled: Option<Pin<Box<Sleep>>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    fn new(tcp: TcpStream, patience: Duration, cut: CancellationToken) -> Self {
        Self { tcp, patience, stalled: None, cut: Box::pin(cut.cancelled_owned()) }
    }

    fn is_cut(&mut self, cx: &mut Context<'_>) -> bool {
        self.cut.as_mut().poll(cx).is_ready()
    }

    /// Hands on what a write came to, and counts the time while it comes to nothing.
    fn progress<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        if self.is_cut(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        if stalled.as_mut().poll(cx).is_ready() {
            tracing::debug!("a client took nothing for {patience:?}; its connection is closed");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.tcp).poll_read(cx, buffer);
        if read.is_pending() && self.is_cut(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.progress(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, bytes);
        self.progress(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn pair(patience: Duration, cut: CancellationToken) -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let mut listener = PatientListener { patience, ..PatientListener::new(listener, cut) };
        let ((server, _), client) = tokio::join!(Listener::accept(&mut listener), client);
        (server, client.unwrap())
    }

    /// Writes until the client's and the kernel's buffers are full and the write fails.
    async fn fill(server: &mut Connection) -> io::Error {
        let block = vec![0_u8; 64 * 1024];
        loop {
            if let Err(error) = server.write_all(&block).await {
                return error;
            }
        }
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_let_go() {
        let (mut server, _client) = pair(Duration::from_millis(50), CancellationToken::new()).await;
        assert_eq!(fill(&mut server).await.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_client_that_takes_a_little_is_kept() {
        let (mut server, mut client) = pair(Duration::from_millis(200), CancellationToken::new()).await;
        let slow = async {
            let mut taken = vec![0_u8; 256 * 1024];
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(60)).await;
                client.read_exact(&mut taken).await.unwrap();
            }
        };
        tokio::select! {
            () = slow => {}
            error = fill(&mut server) => panic!("{error}"),
        }
    }

    #[tokio::test]
    async fn a_cut_ends_reads_and_writes() {
        let cut = CancellationToken::new();
        let (mut server, _client) = pair(Duration::from_secs(60), cut.clone()).await;
        let (mut reader, _other) = pair(Duration::from_secs(60), cut.clone()).await;
        let mut byte = [0];
        let (written, read, ()) = tokio::join!(fill(&mut server), reader.read(&mut byte), async { cut.cancel() });
        assert_eq!(written.kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
