//! Tracks a response until the connection has taken its last byte, for the timeout of slow readers.
//!
//! Input: a response. Output: the same bytes in pieces, each of which holds what the response holds. HTTP/2
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

use crate::connection::{Busy, Owed};

/// Maximum bytes of a piece. A connection that takes no piece for too long is closed.
const PIECE: usize = 64 * 1024;

/// Follows a response until the connection has taken its last byte; then it is dropped, as it is when the connection ends.
pub trait ResponseObserver: Send + Sync + 'static {
    /// Bytes of the body were handed to the connection.
    fn sent(&self, bytes: usize);

    /// The last bytes were handed over. A response that is dropped without this call is truncated.
    fn completed(&self);
}

/// Extension of a response that has an observer.
#[derive(Clone)]
pub struct Observed(Arc<dyn ResponseObserver>);

impl Observed {
    /// The extension for an observer.
    pub fn by(observer: impl ResponseObserver) -> Self {
        Self(Arc::new(observer))
    }
}

/// Makes a response count as pending until the connection has taken it, or is closed.
pub(crate) fn follow(response: &mut Response, busy: Busy) {
    let observer = response.extensions_mut().remove::<Observed>();
    let body: BoxBody<Bytes, io::Error> = response.take_body().into();
    let length = body.size_hint().exact();
    if length == Some(0) {
        if let Some(Observed(observer)) = observer {
            observer.completed();
        }
        response.set_body(Body::from(body));
        return;
    }
    // The handler is finished. A stream keeps the connection busy.
    let pending = Arc::new(Pending { observer, owed: busy.owe(), _busy: length.is_none().then_some(busy) });
    response.set_body(Body::from(BoxBody::new(Delivery { body, rest: Bytes::new(), pending })));
}

/// State that a response holds until it is complete.
struct Pending {
    observer: Option<Observed>,
    owed: Owed,
    _busy: Option<Busy>,
}

impl Pending {
    fn completed(&self) {
        if let Some(Observed(observer)) = &self.observer {
            observer.completed();
        }
    }
}

/// Response body in pieces.
struct Delivery {
    body: BoxBody<Bytes, io::Error>,
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
        if let Some(Observed(observer)) = &self.pending.observer {
            observer.sent(bytes.len());
        }
        self.pending.owed.given(bytes.len());
        if self.is_end_stream() {
            self.pending.completed();
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
                    this.pending.completed();
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    this.pending.owed.waiting();
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
