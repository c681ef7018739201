//! Unnamed temporary files, for data that exceeds memory.

use std::fs::File;
use std::io::{self, Read, Seek as _};

/// Creates a temporary file without a name, which only this process can open, and which is gone when it is closed.
///
/// # Errors
/// If the temporary directory is not writable.
pub fn unnamed_file() -> io::Result<File> {
    tempfile::tempfile()
}

/// Copies a stream to an unnamed temporary file, for formats whose metadata is at the end. The file is at its start.
///
/// # Errors
/// If the stream cannot be read or the file cannot be written.
pub fn spooled(mut input: impl Read) -> io::Result<File> {
    let mut file = unnamed_file()?;
    io::copy(&mut input, &mut file)?;
    file.rewind()?;
    Ok(file)
}
