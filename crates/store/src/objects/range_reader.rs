//! Range reads of an object, with a cache of recent blocks, because a file's pages are requested one by one.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{Error as Fault, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _};

use super::Objects;
use super::retry::again;
use crate::SmallFiles;

/// Block size of sequential reads, in bytes.
const BLOCK: u64 = 4 << 20;
/// Bytes at the end of a file that are read with its length: most footers are shorter.
const TAIL: u64 = 64 << 10;
/// Cached blocks per open file.
const KEPT: usize = 4;

/// An object, open for range reads.
#[derive(Debug, Clone)]
pub struct Object {
    objects: Arc<Objects>,
    key: Key,
    size: u64,
    /// With their starts.
    blocks: Arc<Mutex<VecDeque<(u64, Bytes)>>>,
}

impl Object {
    pub(super) fn open(objects: &Arc<Objects>, key: Key) -> io::Result<Self> {
        let (store, asked) = (Arc::clone(&objects.store), key.clone());
        let (size, tail) = objects.wait(async move { again(|| tail(&*store, &asked)).await })?;
        if tail.len() as u64 == size {
            objects.small_files.add(&key, &tail);
        }
        let blocks = VecDeque::from([(size - tail.len() as u64, tail)]);
        Ok(Self { objects: Arc::clone(objects), key, size, blocks: Arc::new(Mutex::new(blocks)) })
    }

    /// An object whose bytes are known.
    pub(super) fn in_memory(objects: &Arc<Objects>, key: Key, bytes: Bytes) -> Self {
        let (size, objects) = (bytes.len() as u64, Arc::clone(objects));
        Self { objects, key, size, blocks: Arc::new(Mutex::new(VecDeque::from([(0, bytes)]))) }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads `length` bytes from `start` on.
    pub fn bytes(&self, start: u64, length: usize) -> io::Result<Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(known) = self.known(start, length) {
            return Ok(known);
        }
        let (store, key, size) = (Arc::clone(&self.objects.store), self.key.clone(), self.size);
        let (at, block) = if SmallFiles::fits(size) {
            let files = self.objects.small_files();
            (0, self.objects.wait(async move { again(|| files.read(&*store, &key, size)).await })?)
        } else {
            let end = (start + (length as u64).max(BLOCK)).min(size);
            (start, self.objects.wait(async move { again(|| store.get_range(&key, start..end)).await })?)
        };
        let from = (start - at) as usize;
        if block.len() < from + length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut blocks = self.blocks();
        if blocks.len() == KEPT {
            blocks.pop_front();
        }
        blocks.push_back((at, block.clone()));
        Ok(block.slice(from..from + length))
    }

    fn blocks(&self) -> MutexGuard<'_, VecDeque<(u64, Bytes)>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, start: u64, length: usize) -> Option<Bytes> {
        self.blocks().iter().find_map(|(at, block)| {
            let from = usize::try_from(start.checked_sub(*at)?).ok()?;
            (from + length <= block.len()).then(|| block.slice(from..from + length))
        })
    }

    /// A sequential reader from this position.
    pub fn reader(&self, start: u64) -> Reader {
        Reader { object: self.clone(), at: start }
    }
}

/// An object's length and its last bytes.
async fn tail(store: &dyn ObjectStore, key: &Key) -> Result<(u64, Bytes), Fault> {
    let range = Some(GetRange::Suffix(TAIL));
    match store.get_opts(key, GetOptions { range, ..Default::default() }).await {
        Ok(found) => Ok((found.meta.size, found.bytes().await?)),
        // Azure does not support suffix ranges.
        Err(Fault::NotSupported { .. }) => {
            let size = store.head(key).await?.size;
            Ok((size, store.get_range(key, size.saturating_sub(TAIL)..size).await?))
        }
        Err(fault) => Err(fault),
    }
}

/// A sequential reader of an object.
pub struct Reader {
    object: Object,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.object.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let length = into.len().min(left);
        if length > 0 {
            into[..length].copy_from_slice(&self.object.bytes(self.at, length)?);
            self.at += length as u64;
        }
        Ok(length)
    }
}
