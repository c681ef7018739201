//! Minimum transfer rate of request bodies, and draining of unread ones.
//!
//! Input: a request body. Output: the same body, which fails once the client has sent too little for too long. Only time spent
//! waiting for the client counts, not processing time. A body that is dropped before its end is drained in the background for a
//! while: closing the connection while the client still sends would reset it, and the client would not receive the response.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use poem::http::header::{CONTENT_LENGTH, EXPECT};
use poem::{Body, Request};
use tokio::time::Sleep;

use crate::connection::{Busy, MIN_RATE};

/// Limits of draining an unread body: bytes and time.
const DRAINED: usize = 64 * 1024 * 1024;
const LINGER: Duration = Duration::from_secs(8);

/// Enforces the minimum transfer rate on the request body and keeps the connection busy until the body has arrived. The
/// returned flag is set on timeout.
pub(crate) fn enforce(request: &mut Request, patience: Duration, busy: &Busy) -> Option<Arc<AtomicBool>> {
    let body = request.take_body();
    if body.is_empty() {
        return None;
    }
    // A client that sends `Expect` waits for a 100 or final status before it sends the body.
    let waits = request.headers().contains_key(EXPECT);
    let mut parts = Box::pin(body.into_bytes_stream());
    // Most bodies arrive together with the head and need no supervision.
    let first = if waits { None } else { parts.next().now_or_never() };
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let first = match first {
        Some(Some(Ok(all))) if Some(all.len()) == length => {
            request.set_body(all);
            return None;
        }
        first => first.flatten(),
    };
    let late = Arc::new(AtomicBool::new(false));
    let timed = Timed {
        parts: Box::pin(stream::iter(first).chain(parts)),
        patience,
        bytes: 0,
        waited: Duration::ZERO,
        since: None,
        timer: None,
        late: Arc::clone(&late),
        _busy: busy.clone(),
    };
    request.set_body(Body::from_bytes_stream(Lingering { rest: Some(timed), begun: !waits }));
    Some(late)
}

/// Body that is drained if dropped before its end.
struct Lingering<B: AsRef<[u8]> + 'static, S: Stream<Item = io::Result<B>> + Send + 'static> {
    /// `None` after the end.
    rest: Option<Timed<S>>,
    /// Whether the client has presumably begun to send.
    begun: bool,
}

impl<B: AsRef<[u8]>, S: Stream<Item = io::Result<B>> + Send> Stream for Lingering<B, S> {
    type Item = io::Result<B>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<B>>> {
        self.begun = true;
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let part = ready!(rest.poll_next_unpin(cx));
        // Nothing useful follows an error.
        if !matches!(part, Some(Ok(_))) {
            self.rest = None;
        }
        Poll::Ready(part)
    }
}

impl<B: AsRef<[u8]> + 'static, S: Stream<Item = io::Result<B>> + Send + 'static> Drop for Lingering<B, S> {
    fn drop(&mut self) {
        let Some(mut rest) = self.rest.take().filter(|_| self.begun) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(tokio::time::timeout(LINGER, async move {
            let mut drained = 0;
            while drained < DRAINED
                && let Some(Ok(part)) = rest.next().await
            {
                drained += part.as_ref().len();
            }
        }));
    }
}

struct Timed<S> {
    parts: Pin<Box<S>>,
    patience: Duration,
    /// Bytes received since the clock was reset.
    bytes: usize,
    waited: Duration,
    /// Start of the current wait.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    late: Arc<AtomicBool>,
    _busy: Busy,
}

impl<B: AsRef<[u8]>, S: Stream<Item = io::Result<B>>> Stream for Timed<S> {
    type Item = io::Result<B>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<B>>> {
        let this = &mut *self;
        this.waited += this.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        if let Poll::Ready(part) = this.parts.as_mut().poll_next(cx) {
            this.bytes += part.as_ref().and_then(|part| part.as_ref().ok()).map_or(0, |part| part.as_ref().len());
            if this.bytes as f64 >= MIN_RATE * this.patience.as_secs_f64() {
                (this.bytes, this.waited) = (0, Duration::ZERO);
            }
            return Poll::Ready(part);
        }
        let left = this.patience.saturating_sub(this.waited);
        if !left.is_zero() {
            let end = tokio::time::Instant::now() + left;
            let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end)));
            timer.as_mut().reset(end);
            this.since = Some(Instant::now());
            ready!(timer.as_mut().poll(cx));
        }
        this.late.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())))
    }
}
