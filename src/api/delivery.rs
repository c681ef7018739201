//! Tracks a response until the connection has taken its last byte.
//!
//! Input: a response and the record of its request. Output: the same bytes in pieces, each of which holds the record. HTTP/2
//! buffers a piece while the client's window is closed and drops the body that it came from; therefore only the lifetime of the
//! bytes themselves shows when a response is complete. Until then the request counts as running and holds its memory.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use poem::{Body, Response};

use super::access::Record;
use super::connections::{Busy, Owed};

/// Maximum bytes of a piece. A connection that takes no piece for too long is closed.
const PIECE: usize = 64 * 1024;

/// Marks, in the response extensions, a body whose bytes are shared by all requests: it costs no memory of its own.
#[derive(Debug, Clone, Copy)]
pub struct Shared;

/// Makes the request of a response count as running until the connection has taken the whole response, or is closed.
pub fn follow(mut record: Record, response: &mut Response) {
    let body: BoxBody<Bytes, io::Error> = response.take_body().into();
    let length = body.size_hint().exact();
    let endless = response.content_type().is_some_and(|kind| kind.starts_with("text/event-stream"));
    record.begins(length, endless);
    if length == Some(0) {
        response.set_body(Body::from(body));
        return;
    }
    let owed = record.busy.as_ref().map(Busy::owe);
    // The handler is finished. A stream keeps the connection busy.
    if length.is_some() {
        record.busy = None;
    }
    let pending = Arc::new(Pending { record, owed });
    response.set_body(Body::from(BoxBody::new(Delivery {
        body,
        counted: length.is_some(),
        rest: Bytes::new(),
        pending,
    })));
}

/// State that a response holds until it is complete.
struct Pending {
    record: Record,
    owed: Option<Owed>,
}

/// Response body in pieces.
struct Delivery {
    body: BoxBody<Bytes, io::Error>,
    /// Whether the record already knows the length.
    counted: bool,
    /// Bytes of the body that were not handed over yet.
    rest: Bytes,
    pending: Arc<Pending>,
}

/// Bytes handed to the connection.
struct Piece {
    bytes: Bytes,
    _pending: Arc<Pending>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Delivery {
    fn piece(&mut self) -> Bytes {
        let bytes = self.rest.split_to(self.rest.len().min(PIECE));
        if !self.counted {
            self.pending.record.gave(bytes.len());
        }
        if let Some(owed) = &self.pending.owed {
            owed.given(bytes.len());
        }
        if self.is_end_stream() {
            self.pending.record.ends();
        }
        Bytes::from_owner(Piece { bytes, _pending: Arc::clone(&self.pending) })
    }
}

impl HttpBody for Delivery {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            let frame = match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(Some(frame)) => frame?,
                Poll::Ready(None) => {
                    this.pending.record.ends();
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    if let Some(owed) = &this.pending.owed {
                        owed.waiting();
                    }
                    return Poll::Pending;
                }
            };
            match frame.into_data() {
                Ok(bytes) => this.rest = bytes,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(this.piece()))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
