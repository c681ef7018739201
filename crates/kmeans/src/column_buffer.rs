//! Out-of-core column buffers: Arrow arrays that may be larger than memory.
//!
//! Input: values in parts, and a memory limit. Output: Arrow arrays. Up to the limit the values are in memory, beyond it in
//! unnamed temporary files that are memory-mapped. Both kinds of array are read alike. After [`done_with`], values of a
//! file occupy no memory.

#![allow(unsafe_code, reason = "maps files of columns into memory")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use arrow_array::{Array, ArrowPrimitiveType, PrimitiveArray};
use arrow_buffer::ToByteSlice;
use arrow_buffer::{Buffer, MutableBuffer, NullBuffer, NullBufferBuilder, ScalarBuffer};
use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::parallel::CHUNK;

/// Bytes of a limit that are reserved for everything except columns: buffers, chunks in transit, the program itself.
const APART: usize = 64 << 20;

/// Memory budget of columns and directory of their files.
#[derive(Debug, Clone)]
pub struct Space {
    /// Bytes of columns that stay in memory.
    memory: usize,
    /// Directory of the files. A file has a name only until it is open.
    dir: PathBuf,
}

impl Space {
    /// A budget of `memory` bytes of columns; files are created in `dir`.
    pub fn new(memory: usize, dir: impl Into<PathBuf>) -> Self {
        Self { memory, dir: dir.into() }
    }

    /// A budget for a process that may use `limit` bytes in total: all but 64 MiB, and at least a quarter.
    pub fn within(limit: usize, dir: impl Into<PathBuf>) -> Self {
        Self::new(limit.saturating_sub(APART).max(limit / 4), dir)
    }

    /// Whether `bytes` bytes of columns fit in the budget.
    pub fn holds(&self, bytes: usize) -> bool {
        bytes <= self.memory
    }

    /// Creates an unnamed file, which the operating system removes when it is closed, however the process ends.
    ///
    /// # Errors
    /// If the file cannot be created or unlinked.
    pub fn file(&self) -> io::Result<File> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("columns-{}-{number}", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        fs::remove_file(path)?;
        Ok(file)
    }
}

/// Half of the memory of the machine or of the cgroup, whichever is smaller, in bytes.
pub fn half_of_memory() -> usize {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let machine = || {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        let kilobytes = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?;
        Some(kilobytes.trim().parse::<usize>().ok()? << 10)
    };
    let group = number("/sys/fs/cgroup/memory.max").unwrap_or(usize::MAX);
    machine().unwrap_or(4 << 30).min(group) / 2
}

/// A column under construction.
pub struct Growing<P: ArrowPrimitiveType> {
    /// Arrow's buffer, because it is aligned for vector registers.
    memory: MutableBuffer,
    file: Option<BufWriter<File>>,
    valid: NullBufferBuilder,
    values: PhantomData<P>,
}

impl<P: ArrowPrimitiveType> Growing<P> {
    /// An empty column with capacity for `most` values.
    pub fn new(most: usize) -> Self {
        let memory = MutableBuffer::with_capacity(most * size_of::<P::Native>());
        Self { memory, file: None, valid: NullBufferBuilder::new(most), values: PhantomData }
    }

    /// Appends values and their validity.
    ///
    /// # Errors
    /// If the column is in a file and writing fails.
    pub fn append(&mut self, values: &PrimitiveArray<P>) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(values.values().to_byte_slice())?,
            None => self.memory.extend_from_slice(values.values()),
        }
        match values.nulls() {
            Some(nulls) => self.valid.append_buffer(nulls),
            None => self.valid.append_n_non_nulls(values.len()),
        }
        Ok(())
    }

    /// Bytes of values in memory; 0 after [`Self::spill`].
    pub fn held(&self) -> usize {
        self.memory.len()
    }

    /// Moves the values to a file, which also takes further values.
    ///
    /// # Errors
    /// If the file cannot be created or written.
    pub fn spill(&mut self, space: &Space) -> io::Result<()> {
        if self.file.is_none() {
            let mut file = BufWriter::with_capacity(1 << 18, space.file()?);
            file.write_all(&self.memory)?;
            (self.memory, self.file) = (MutableBuffer::new(0), Some(file));
        }
        Ok(())
    }

    /// The finished column.
    ///
    /// # Errors
    /// If the file cannot be written or mapped.
    pub fn finish(mut self) -> io::Result<PrimitiveArray<P>> {
        let nulls = self.valid.finish();
        match self.file {
            Some(file) => mapped(&file.into_inner().map_err(io::IntoInnerError::into_error)?, nulls),
            None => Ok(PrimitiveArray::new(Buffer::from(self.memory).into(), nulls)),
        }
    }
}

/// Maps a whole file of values, which must not be written any more.
///
/// # Errors
/// If the file cannot be mapped.
pub fn mapped<P: ArrowPrimitiveType>(file: &File, nulls: Option<NullBuffer>) -> io::Result<PrimitiveArray<P>> {
    let bytes = file.metadata()?.len() as usize;
    if bytes == 0 {
        return Ok(PrimitiveArray::new(ScalarBuffer::from(Vec::new()), nulls));
    }
    // SAFETY: the file has no name, so no other process changes its bytes or its length.
    let map = unsafe { Mmap::map(file)? };
    map.advise(Advice::Sequential)?;
    let start = NonNull::new(map.as_ptr().cast_mut()).ok_or_else(|| io::Error::other("a mapping at address 0"))?;
    let map = Arc::new(Mapping(map));
    let mut mappings = MAPPINGS.write().unwrap_or_else(PoisonError::into_inner);
    mappings.retain(|mapping| mapping.strong_count() > 0);
    mappings.push(Arc::downgrade(&map));
    drop(mappings);
    // SAFETY: the mapping is `bytes` long, and lives as long as the buffer.
    let buffer = unsafe { Buffer::from_custom_allocation(start, bytes, map) };
    Ok(PrimitiveArray::new(ScalarBuffer::new(buffer, 0, bytes / size_of::<P::Native>()), nulls))
}

struct Mapping(Mmap);

/// All live mappings.
static MAPPINGS: RwLock<Vec<Weak<Mapping>>> = RwLock::new(Vec::new());

/// Declares that these values are not read again soon. If they are in a mapped file, their memory is released.
pub fn done_with<T>(values: &[T]) {
    let values = values.as_ptr_range();
    let (start, end) = (values.start as usize, values.end as usize);
    let mappings = MAPPINGS.read().unwrap_or_else(PoisonError::into_inner);
    for map in mappings.iter().filter_map(Weak::upgrade) {
        let Range { start: first, end: last } = map.0.as_ptr_range();
        if first as usize <= start && end <= last as usize {
            // If the advice fails, the memory stays in use; nothing else changes.
            // SAFETY: the mapping is read-only, so released pages are read from the file again, unchanged.
            let _ =
                unsafe { map.0.unchecked_advise_range(UncheckedAdvice::DontNeed, start - first as usize, end - start) };
        }
    }
}

/// Evenly spaced rows: ⌊j·n/m⌋ for j = 0 … m-1, m = min(n, most).
pub fn evenly(n: usize, most: usize) -> Vec<u32> {
    let m = n.min(most);
    (0..m).map(|j| (j as u128 * n as u128 / m as u128) as u32).collect()
}

/// The values of some rows. `rows` must be ascending.
///
/// # Panics
/// If a row is beyond the end of the column.
pub fn take<P: ArrowPrimitiveType>(column: &PrimitiveArray<P>, rows: &[u32]) -> PrimitiveArray<P> {
    let mut taken = Vec::with_capacity(rows.len());
    for near in rows.chunk_by(|a, b| *a as usize / CHUNK == *b as usize / CHUNK) {
        taken.extend(near.iter().map(|&row| column.is_valid(row as usize).then(|| column.value(row as usize))));
        done_with(&column.values()[near[0] as usize..near[near.len() - 1] as usize + 1]);
    }
    taken.into_iter().collect()
}

/// Writes values to a file of values, starting at value number `at`.
///
/// # Errors
/// If writing fails.
pub fn write_at(file: &File, values: &[f64], at: usize) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, values.to_byte_slice(), (at * size_of::<f64>()) as u64)
}

/// Default directory for files: the system's temporary directory.
pub fn scratch() -> &'static Path {
    static DIR: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    DIR.get_or_init(std::env::temp_dir)
}

#[cfg(test)]
mod tests {
    use arrow_array::Float64Array;
    use arrow_array::types::Float64Type;

    use super::*;

    #[test]
    fn a_column_in_a_file_equals_the_one_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::within(0, dir.path());
        let parts: Vec<Float64Array> =
            (0..30).map(|p| (0..5000).map(|i| (i % 7 != p).then_some(f64::from(i * p))).collect()).collect();
        let (mut here, mut there) = (Growing::<Float64Type>::new(10), Growing::<Float64Type>::new(10));
        for (i, part) in parts.iter().enumerate() {
            here.append(part).unwrap();
            there.append(part).unwrap();
            if i == 3 {
                assert_eq!(there.held(), 4 * 5000 * 8);
                there.spill(&space).unwrap();
                assert_eq!(there.held(), 0);
            }
        }
        let (here, there) = (here.finish().unwrap(), there.finish().unwrap());
        assert_eq!(here, there);
        done_with(&there.values()[1234..140_000]);
        done_with(&here.values()[1234..140_000]);
        assert_eq!(here, there, "what was done with is still there");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "its file has no name");
        let empty = Growing::<Float64Type>::new(0);
        assert_eq!(empty.finish().unwrap().len(), 0);
    }
}
