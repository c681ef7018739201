//! Verifies all bytes of a file.

use std::path::Path;

use parquet::file::reader::Length as _;

use super::{DataFile, read_footer, unreadable};
use crate::Error;
use crate::backend::Input;
use crate::checksums::{Checksums, Fault};

/// Verifies every byte of an open file. `false` if it has no checksums, because an earlier build wrote it.
///
/// # Errors
/// [`Error::Damaged`] if a byte is not the one that was written.
pub fn check(path: &Path, file: &Input) -> Result<bool, Error> {
    let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
    let (metadata, bytes) = read_footer(path, file)?;
    let Some(sums) = Checksums::of(&metadata, &bytes).map_err(damaged)? else { return Ok(false) };
    match sums.check(file, file.len() - bytes.len() as u64) {
        Ok(()) => Ok(true),
        Err(Fault::Damaged(why)) => Err(damaged(why)),
        Err(Fault::Unreadable(error)) => Err(unreadable(path, error)),
    }
}

impl DataFile {
    /// Reads the whole file and verifies every byte. `false` if it has no checksums, because an earlier build wrote it.
    ///
    /// # Errors
    /// [`Error::Damaged`] if a byte is not the one that was written.
    pub fn check(&self) -> Result<bool, Error> {
        check(&self.path, &self.open()?)
    }
}
