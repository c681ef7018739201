//! Unnamed temporary files, for data that exceeds memory.

use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::sync::atomic::{AtomicU64, Ordering};

/// Creates a temporary file that is deleted when closed.
///
/// # Errors
/// If the temporary directory is not writable.
pub fn unnamed_file() -> io::Result<File> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("tercile-{}-{number}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
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
