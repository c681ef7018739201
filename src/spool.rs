//! Unnamed temporary files, for data that exceeds memory.

use std::fs::File;
use std::io;
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
