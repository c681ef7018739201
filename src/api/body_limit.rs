//! Bodies that must keep coming, and those that nobody needs.
//!
//! Input: a request's body. Output: the same, which fails once the client has sent next to nothing for too long. Only the time
//! that is spent waiting for the client counts, not what the server does with what came. Whoever drops it before its end
//! need not think of the client: one that still sends would find its connection reset and never read its answer, so that
//! the rest is read, and thrown away, for a while.

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

use super::connections::Busy;

/// Bytes that have to move for each second of waiting: of a request's body, and of an answer.
pub const RATE: f64 = 4096.0;
/// Bytes of a body that nobody needs and that are read all the same, and for how long.
const DRAINED: usize = 64 * 1024 * 1024;
const LINGER: Duration = Duration::from_secs(8);

/// Has a request's body arrive in time, its connection being busy until it has. What is returned tells whether it was too
/// late.
pub fn hasten(request: &mut Request, patience: Duration, busy: Option<&Busy>) -> Option<Arc<AtomicBool>> {
    let body = request.take_body();
    if body.is_empty() {
        return None;
    }
    // Who waits for a word before the body is sent needs none but the answer.
    let waits = request.headers().contains_key(EXPECT);
    let mut parts = Box::pin(body.into_bytes_stream());
    // Most bodies came along with their heads: of those there is nothing left to wait for.
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
    let hastened = Hastened {
        parts: Box::pin(stream::iter(first).chain(parts)),
        patience,
        bytes: 0,
        waited: Duration::ZERO,
        since: None,
        timer: None,
        late: Arc::clone(&late),
        _busy: busy.cloned(),
    };
    request.set_body(Body::from_bytes_stream(Lingering { rest: Some(hastened), begun: !waits }));
    Some(late)
}

/// A body whose rest is drained if it is dropped before its end.
struct Lingering<B: AsRef<[u8]> + 'static, S: Stream<Item = io::Result<B>> + Send + 'static> {
    /// `None`: it has ended.
    rest: Option<Hastened<S>>,
    /// Whether the client sends, as far as one can tell.
    begun: bool,
}

impl<B: AsRef<[u8]>, S: Stream<Item = io::Result<B>> + Send> Stream for Lingering<B, S> {
    type Item = io::Result<B>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<B>>> {
        self.begun = true;
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let part = ready!(rest.poll_next_unpin(cx));
        // After an error nothing comes that is worth waiting for.
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
    _busy: Option<Busy>,
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
