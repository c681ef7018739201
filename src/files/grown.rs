//! Recognises a file that has grown since it was replayed.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

use super::{Error, Fault, Options, Rows, Source};
use crate::printable::hex;

/// Whether the first `rows` rows of a source are a file with this hash (SHA-256 of all its bytes, in hex). Line ends behind the
/// last row may have been missing in it.
///
/// # Errors
/// If the source cannot be read or one of these rows is malformed.
pub fn is_continued(source: &Source, options: &Options, rows: u64, hash: &str) -> Result<bool, Error> {
    let name = source.name();
    let io = |error: io::Error| Fault::Io(error).at(&name);
    let mut reader = Rows::open(source, options)?;
    if reader.dialect.compression.is_some() || reader.dialect.encoding != encoding_rs::UTF_8 {
        // The end of a row in the decoded text is no position in the file's bytes.
        return Ok(false);
    }
    let mut json = String::new();
    for _ in 0..rows {
        if reader.next_row(&mut json)?.is_none() {
            return Ok(false);
        }
    }
    let end = reader.start() + reader.end();
    drop(reader);
    let mut bytes = source.bytes().map_err(io)?;
    let mut hasher = Sha256::new();
    // The line end of the last row, `\r\n` at most, may have been missing.
    let start = end.saturating_sub(2);
    copy(&mut bytes, &mut hasher, start).map_err(io)?;
    let exact = |hasher: &Sha256| hex(&hasher.clone().finalize()) == hash;
    for (position, byte) in (start..).zip(io::BufReader::new(bytes).bytes()) {
        let byte = byte.map_err(io)?;
        if exact(&hasher) {
            return Ok(true);
        }
        if position >= end && !byte.is_ascii_whitespace() {
            return Ok(false);
        }
        hasher.update([byte]);
    }
    Ok(exact(&hasher))
}

fn copy(from: &mut impl Read, hasher: &mut Sha256, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut from = from.take(bytes);
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            read => hasher.update(&buffer[..read]),
        }
    }
}
