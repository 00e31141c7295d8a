//! Bodies of requests and responses.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::http::StatusCode;
use http_body::Frame;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use super::error::{ApiError, ApiResult};

/// Reads a body of limited size in limited time.
pub(super) async fn read(body: Body, limit: usize, time: Duration) -> ApiResult<Bytes> {
    let too_large = || {
        let message = format!("the body exceeds {limit} bytes (--body-limit)");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    match timeout(time, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            // A limit that was exceeded is reported as the source of the error.
            let is_limit = std::error::Error::source(&error)
                .is_some_and(|source| source.to_string().contains("limit"));
            Err(match is_limit {
                true => too_large(),
                false => ApiError::new(
                    StatusCode::BAD_REQUEST,
                    format!("the body cannot be read: {error}"),
                ),
            })
        }
        Err(_) => {
            let message = format!(
                "the body was not received within {} seconds",
                time.as_secs()
            );
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

/// Reads and drops a body of limited size in limited time, so that a client that writes it before it reads can read the
/// error.
pub(super) async fn discard(mut body: Body, limit: usize, time: Duration) {
    let read = async {
        let mut size = 0;
        while size <= limit {
            match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
                Some(Ok(frame)) => size += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) | None => break,
            }
        }
    };
    // What comes later is cut off with the connection.
    let _ = timeout(time, read).await;
}

/// Source of the pieces of a stream.
pub(super) trait Pieces: Send + Unpin + 'static {
    /// Event that pieces are made of.
    type Event: Send;

    /// Returns the bytes that an event adds; `None` at the end of the events. The stream ends when [`Pieces::is_over`].
    fn piece(&mut self, event: Option<Self::Event>) -> Bytes;

    /// True after the last piece.
    fn is_over(&self) -> bool;
}

/// A response body that holds the permit of its request until it is sent or dropped.
pub(super) enum HeldBody<P: Pieces> {
    /// A complete document.
    Whole(Option<Bytes>, #[allow(dead_code)] OwnedSemaphorePermit),
    /// Server-sent events.
    Stream {
        events: UnboundedReceiver<P::Event>,
        pieces: P,
        #[allow(dead_code)]
        permit: OwnedSemaphorePermit,
    },
}

impl<P: Pieces> HttpBody for HeldBody<P> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes, _) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream { events, pieces, .. } => loop {
                if pieces.is_over() {
                    return Poll::Ready(None);
                }
                let Poll::Ready(event) = events.poll_recv(context) else {
                    return Poll::Pending;
                };
                let piece = pieces.piece(event);
                if !piece.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
            },
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Whole(bytes, _) => {
                http_body::SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Self::Stream { .. } => http_body::SizeHint::default(),
        }
    }
}
