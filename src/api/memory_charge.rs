//! Memory accounting of a streamed body: charged to the budget as needed.
//!
//! Input: bytes as they are read and decompressed, and rows as they are answered. Output: a hold on the budget that follows the
//! memory in use. Most blocks of rows fit into the initial charge of a stream; a single row or record batch may be much larger.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::budget::{Budget, Exhausted, Hold};
use super::problem::Problem;
use crate::bulk::Meter;

/// Initial charge of a stream in bytes: chunks waiting to be read, a block of rows, and response bytes waiting to be sent
/// (`streaming_body.rs`).
const START: usize = 8 * 1024 * 1024;
/// Bytes of a block within the initial charge.
const BLOCK: usize = 5 * 1024 * 1024;
/// Copies in memory of the bytes read: as received and as rows.
const COPIES: usize = 2;

/// Charge of one stream.
pub struct MemoryCharge(Mutex<Charged>);

struct Charged {
    hold: Hold,
    /// Bytes read and decompressed since the last rows were answered.
    since: usize,
    /// Bytes held until the end of the stream.
    kept: usize,
    /// Whether the rows of all bytes read were answered.
    answered: bool,
}

impl MemoryCharge {
    /// Charge of a new stream.
    ///
    /// # Errors
    /// [`Exhausted`] if the budget has no room for it.
    pub fn begin(budget: &Budget) -> Result<Arc<Self>, Exhausted> {
        let charged = Charged { hold: budget.hold(START)?, since: 0, kept: 0, answered: false };
        Ok(Arc::new(Self(Mutex::new(charged))))
    }

    fn charged(&self) -> MutexGuard<'_, Charged> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the rows so far were answered. Their input is released at the next read, because one batch gives many
    /// blocks.
    pub fn answered(&self) {
        self.charged().answered = true;
    }

    /// Records the end of the work: only `waiting` bytes of the response remain.
    pub fn ends(&self, waiting: usize) {
        self.charged().hold.shrink_to(waiting);
    }
}

impl Charged {
    fn adjust(&mut self) -> io::Result<()> {
        let wanted = START + self.kept + COPIES * self.since.saturating_sub(BLOCK);
        let more = wanted.saturating_sub(self.hold.bytes());
        if more > 0 {
            self.hold.grow(more).map_err(exhausted)?;
        }
        Ok(())
    }
}

impl Meter for MemoryCharge {
    fn holds(&self, bytes: usize) -> io::Result<()> {
        let mut charged = self.charged();
        if std::mem::take(&mut charged.answered) {
            charged.since = 0;
            let start = START + charged.kept;
            charged.hold.shrink_to(start);
        }
        charged.since += bytes;
        charged.adjust()
    }

    fn keeps(&self, bytes: usize) -> io::Result<()> {
        let mut charged = self.charged();
        charged.kept += bytes;
        charged.adjust()
    }
}

/// Error of a stream without memory.
fn exhausted(exhausted: Exhausted) -> io::Error {
    io::Error::new(io::ErrorKind::OutOfMemory, Problem::from(exhausted).detail)
}

/// Reader whose bytes are charged as they are read.
pub struct Metered<R> {
    pub input: R,
    pub charge: Arc<MemoryCharge>,
}

impl<R: io::Read> io::Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.charge.holds(read)?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_row_is_charged_until_it_is_answered_and_more_is_read() {
        let budget = Budget::new(64 * 1024 * 1024);
        let charge = MemoryCharge::begin(&budget).ok().unwrap();
        charge.holds(BLOCK).unwrap();
        assert_eq!(budget.used(), START);
        charge.holds(1000).unwrap();
        charge.answered();
        assert_eq!(budget.used(), START + COPIES * 1000);
        charge.holds(1).unwrap();
        charge.keeps(500).unwrap();
        assert_eq!(budget.used(), START + 500);
        let refused = charge.holds(budget.limit()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory);
        charge.ends(10);
        assert_eq!(budget.used(), 10);
        drop(charge);
        assert_eq!(budget.used(), 0);
    }
}
