//! An answer on its way: from the handler to the last byte that the connection takes.
//!
//! Input: an answer, and the record of its request. Output: the same bytes in pieces, each of which keeps the record. HTTP/2
//! buffers a piece for as long as the client's window is closed, and drops the body that it came from; so only the bytes
//! themselves can tell when an answer is complete. Until then its request counts, and so does its memory.

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

/// Bytes of an answer that the connection gets at a time: one that takes none of them for too long is closed.
const PIECE: usize = 64 * 1024;

/// Marks, in its extensions, an answer whose bytes are kept anyway, however many requests wait for them: it costs no memory
/// of its own.
#[derive(Debug, Clone, Copy)]
pub struct Shared;

/// Has an answer's request count as running until the connection has taken all of it, or is gone.
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
    // The handler is done. A stream goes on working for its connection.
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

/// What an answer keeps until it is complete.
struct Pending {
    record: Record,
    owed: Option<Owed>,
}

/// An answer's body.
struct Delivery {
    body: BoxBody<Bytes, io::Error>,
    /// Whether the record knows its length already.
    counted: bool,
    /// What came from the body and is still to be given.
    rest: Bytes,
    pending: Arc<Pending>,
}

/// Bytes that the connection was given.
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
