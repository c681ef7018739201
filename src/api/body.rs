//! Bodies that must keep coming.
//!
//! Input: a request's body. Output: the same, which fails once the client has sent next to nothing for too long. Only the time
//! that is spent waiting for the client counts, not what the server does with what came.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::Stream;
use poem::{Body, Request};
use tokio::time::Sleep;

/// Bytes that have to come for each second of waiting.
const RATE: f64 = 4096.0;

/// Has a request's body arrive in time. What is returned tells whether it was too late.
pub fn hasten(request: &mut Request, patience: Duration) -> Option<Arc<AtomicBool>> {
    let body = request.take_body();
    if body.is_empty() {
        return None;
    }
    let late = Arc::new(AtomicBool::new(false));
    let parts = Box::pin(body.into_bytes_stream());
    let hastened = Hastened {
        parts,
        patience,
        bytes: 0,
        waited: Duration::ZERO,
        since: None,
        timer: None,
        late: Arc::clone(&late),
    };
    request.set_body(Body::from_bytes_stream(hastened));
    Some(late)
}

struct Hastened<S> {
    parts: Pin<Box<S>>,
    patience: Duration,
    /// What came since the clock was set to zero.
    bytes: usize,
    waited: Duration,
    /// Since when it waits now.
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    late: Arc<AtomicBool>,
}

impl<B: AsRef<[u8]>, S: Stream<Item = io::Result<B>>> Stream for Hastened<S> {
    type Item = io::Result<B>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<B>>> {
        let this = &mut *self;
        this.waited += this.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        if let Poll::Ready(part) = this.parts.as_mut().poll_next(cx) {
            this.bytes += part.as_ref().and_then(|part| part.as_ref().ok()).map_or(0, |part| part.as_ref().len());
            if this.bytes as f64 >= RATE * this.patience.as_secs_f64() {
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
