//! Reads parts of files.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::Length as _;

use crate::backend::RangeReader;

/// Every read names its position: several threads may read one file, and the position of a descriptor is shared by its
/// duplicates. (Parquet's own reader of files moves it.)
impl RangeReader for File {
    fn size(&self) -> u64 {
        self.len()
    }

    fn reader(&self, start: u64) -> ParquetResult<Box<dyn Read>> {
        Ok(Box::new(BufReader::new(ReadFrom { file: self.try_clone()?, position: start })))
    }

    fn bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.len()) {
            return Err(ParquetError::EOF(format!("the file ends before {length} bytes from {start} on")));
        }
        let mut bytes = vec![0; length];
        self.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

/// Reads a file from a position on.
struct ReadFrom {
    file: File,
    position: u64,
}

impl Read for ReadFrom {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}
