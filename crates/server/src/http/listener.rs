//! Connections: their number, time-outs, and the graceful stop.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};

/// Maximum size of a request's head in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Maximum size of each of the two buffers of a connection in bytes.
const MAX_BUFFER: usize = 64 << 10;

/// Limits of connections.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) connections: usize,
    /// Time to receive a head, and of a client that does not read.
    pub(super) client_timeout: Duration,
    pub(super) stop_timeout: Duration,
}

/// Serves connections until `stopping` is true, and then those that have a request, for a limited time.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accept = async {
            // The semaphore is never closed.
            let permit = permits.clone().acquire_owned().await.ok()?;
            Some((permit, listener.accept().await))
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            _ = stopping.wait_for(|is_stopping| *is_stopping) => break,
        };
        match accepted {
            Some((permit, Ok((stream, _)))) => {
                let (router, stopping) = (router.clone(), stopping.clone());
                connections.spawn(async move {
                    connection(stream, router, limits.client_timeout, stopping).await;
                    drop(permit);
                });
            }
            // Too many open files, for example: those of connections that end become free.
            Some((_, Err(_))) => sleep(Duration::from_millis(50)).await,
            None => break,
        }
    }
    drop(listener);
    let rest = async { while connections.join_next().await.is_some() {} };
    // What does not finish in time is cut off.
    let _ = timeout(limits.stop_timeout, rest).await;
    connections.abort_all();
}

/// Serves one connection.
async fn connection(
    stream: TcpStream,
    router: Router,
    time: Duration,
    mut stopping: watch::Receiver<bool>,
) {
    // Chunks of a stream are small and must not wait for more.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Guarded {
        stream,
        time,
        stalled: None,
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(time)
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_BUFFER);
    let connection = builder.serve_connection(io, TowerToHyperService::new(router));
    tokio::pin!(connection);
    // Errors concern only this client, which is gone or does not speak HTTP.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopping.wait_for(|is_stopping| *is_stopping) => (),
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// A connection that fails if its client does not read for some time.
struct Guarded {
    stream: TcpStream,
    time: Duration,
    /// Set while data wait to be sent.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Guarded {
    /// Returns the result of a write, or an error if the client has not read for too long.
    fn check<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let time = self.time;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(time)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, data);
        self.check(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, data);
        self.check(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.check(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.check(context, shut)
    }
}
