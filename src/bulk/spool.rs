//! Files without a name, for what is too much for memory.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// A file of its own that is gone when it is closed.
pub fn unnamed_file() -> io::Result<File> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("tercile-{}-{number}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
