//! Raw records as lines: NDJSON whose lines are not parsed, so that a line that is no object is a row too.

use std::io::{BufRead as _, BufReader, Read};

use tercile_store::record::Unreadable;

use super::{BYTES, Block, Carried, Error, Limits, ROWS};

/// The lines of a stream.
pub(super) struct Lines {
    input: BufReader<Box<dyn Read + Send>>,
    /// Line of the last record, counted from 1.
    line: u64,
}

impl Lines {
    pub fn new(input: BufReader<Box<dyn Read + Send>>) -> Self {
        Self { input, line: 0 }
    }

    /// Next block of lines that are not blank.
    pub fn records(&mut self, limits: Limits, first: u64) -> Result<Option<Block>, Error> {
        let (mut rows, mut lines, mut faults, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut line = Vec::new();
        while rows.len() < ROWS && bytes < BYTES {
            line.clear();
            let most = limits.piece.saturating_add(1) as u64;
            if self.input.by_ref().take(most).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.len() > limits.piece {
                return Err(Error::TooMuch(format!("a record may have {} bytes at most", limits.piece)));
            }
            self.line += 1;
            let text = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| self.line == 1).unwrap_or(&line).trim_ascii();
            if !text.is_empty() {
                rows.push(record_text(text, rows.len(), &mut faults));
                lines.push(self.line);
                bytes += line.len();
            }
        }
        Ok(Some(Block { carried: Carried::Objects(rows), first, lines, faults, ..Block::default() }))
    }
}

/// The text of a record. Bytes that are no text are a fault of the row, as in the store.
pub(super) fn record_text(bytes: &[u8], row: usize, faults: &mut Vec<(usize, String)>) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(error) => {
            faults.push((row, Unreadable::Utf8(error.valid_up_to()).to_string()));
            String::new()
        }
    }
}
