//! Request body in memory, charged to the memory budget as it arrives.
//!
//! Input: a body stream. Output: its bytes with their hold on the budget, or a problem: too long, truncated, or beyond the
//! budget. A claimed length allocates no memory; it only allows early refusal.

use std::io;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use poem::http::header::CONTENT_LENGTH;
use poem::{Body, Request};

use super::budget::{Budget, Exhausted, Hold};
use super::problem::Problem;

/// Capacity of a body of more than [`SMALL`] bytes: such blocks have pages of their own, which move when the block grows and return to
/// the system when it is freed (`memory.rs`). Growing step by step would leave as much memory again in the allocator's arenas.
const LARGE: usize = 2 * 1024 * 1024;
const SMALL: usize = 64 * 1024;

/// Bytes of a body with their hold on the budget.
pub struct BufferedBody {
    pub bytes: Vec<u8>,
    hold: Hold,
    /// Whether more than [`SMALL`] bytes are expected.
    large: bool,
}

/// Body length according to `Content-Length`.
pub fn claimed(request: &Request) -> Option<u64> {
    request.header(CONTENT_LENGTH).and_then(|length| length.parse().ok())
}

impl BufferedBody {
    /// Starts an empty body of expected length `claimed`.
    ///
    /// # Errors
    /// [`Exhausted`] if that length is not available now.
    pub fn begin(budget: &Budget, claimed: Option<u64>) -> Result<Self, Exhausted> {
        let claimed = usize::try_from(claimed.unwrap_or(0)).unwrap_or(usize::MAX);
        if claimed > budget.available() {
            // Counts the refusal.
            budget.hold(claimed)?;
        }
        Ok(Self { bytes: Vec::new(), hold: budget.hold(0)?, large: claimed > SMALL })
    }

    /// Reads until more than `up_to` bytes are buffered; `true` if the body ended before that.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`] if the budget is exhausted, else the error of the stream.
    pub async fn read(
        &mut self,
        body: &mut (impl Stream<Item = io::Result<Bytes>> + Unpin),
        up_to: usize,
    ) -> io::Result<bool> {
        while self.bytes.len() <= up_to {
            let Some(chunk) = body.next().await.transpose()? else { return Ok(true) };
            self.hold.grow(chunk.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
            let length = self.bytes.len() + chunk.len();
            if (self.large || length > SMALL) && length < LARGE && length > self.bytes.capacity() {
                // Costs addresses, and memory only as bytes arrive.
                self.bytes.reserve_exact(LARGE - self.bytes.len());
            }
            self.bytes.extend_from_slice(&chunk);
        }
        Ok(false)
    }

    /// Reads a whole body of at most `most` bytes.
    ///
    /// # Errors
    /// A problem: 413 if it is longer, 503 if the budget is exhausted, 400 if it does not arrive.
    pub async fn whole(budget: &Budget, claimed: Option<u64>, body: Body, most: usize) -> Result<Self, Problem> {
        let too_large = || Problem::too_large(format!("the body may have {most} bytes at most"));
        // An excessive `Content-Length` is refused before the body is read.
        if claimed.is_some_and(|claimed| claimed > most as u64) {
            return Err(too_large());
        }
        let mut held = Self::begin(budget, claimed)?;
        let mut body = Box::pin(body.into_bytes_stream());
        let ended = held.read(&mut body, most).await.map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => Problem::from(Exhausted),
            io::ErrorKind::InvalidData => Problem::bad_request(error.to_string()),
            _ => Problem::bad_request(format!("the body did not arrive: {error}")),
        })?;
        if ended { Ok(held) } else { Err(too_large()) }
    }
}

impl AsRef<[u8]> for BufferedBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_arrives_is_charged_and_what_is_claimed_is_not() {
        let budget = Budget::new(1 << 20);
        let status = |read: Result<BufferedBody, Problem>| read.err().map(|problem| problem.status);
        let body = |bytes: usize| Body::from(vec![b' '; bytes]);
        let held = BufferedBody::whole(&budget, Some(800_000), body(300_000), 1_000_000).await.ok().unwrap();
        assert_eq!((held.bytes.len(), budget.used()), (300_000, 300_000));
        assert_eq!(status(BufferedBody::whole(&budget, Some(800_000), body(1), 1_000_000).await), Some(503));
        assert_eq!(status(BufferedBody::whole(&budget, None, body(800_000), 1_000_000).await), Some(503));
        assert_eq!(status(BufferedBody::whole(&budget, None, body(11), 10).await), Some(413));
        assert_eq!(status(BufferedBody::whole(&budget, Some(11), body(11), 10).await), Some(413));
        drop(held);
        assert_eq!((budget.used(), budget.refused()), (0, 2));
    }
}
