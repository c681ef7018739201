//! A cache of small record files of an object store: one request brings all of such a file, and later reads make none.
//!
//! A query reads a Parquet file in several ranges, and each range is a request. Below [`LARGEST`] the time of a request exceeds that
//! of the additional bytes. Files never change, so that an entry stays valid, except that a damaged file may be set aside and written
//! again: an entry is forgotten with its file, and by a reader that finds it contradict the file's checksums.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, Result};
use tokio::sync::OnceCell;

/// Maximum bytes of a file that is read as a whole.
const LARGEST: u64 = 1 << 20;
/// Maximum bytes of all cached files.
const KEPT: u64 = 32 << 20;

/// The cache of a store.
#[derive(Default)]
pub struct SmallFiles(Mutex<Cached>);

#[derive(Default)]
struct Cached {
    /// By name and size.
    files: HashMap<(Key, u64), Arc<OnceCell<Bytes>>>,
    /// Oldest first.
    order: VecDeque<(Key, u64)>,
    bytes: u64,
}

impl fmt::Debug for SmallFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmallFiles").field("bytes", &self.cached().bytes).finish_non_exhaustive()
    }
}

impl SmallFiles {
    /// Whether a file of this size is read as a whole.
    pub fn fits(size: u64) -> bool {
        size <= LARGEST
    }

    /// The bytes of a file, from the cache or with one request. Concurrent readers share the request.
    ///
    /// # Errors
    /// Those of the client.
    pub async fn read(&self, client: &dyn ObjectStore, key: &Key, size: u64) -> Result<Bytes> {
        let file = self.cached().entry(key, size);
        file.get_or_try_init(|| async { client.get(key).await?.bytes().await }).await.cloned()
    }

    /// The bytes of a file, if they are cached.
    pub fn cached_bytes(&self, key: &Key, size: u64) -> Option<Bytes> {
        self.cached().files.get(&(key.clone(), size))?.get().cloned()
    }

    /// Adds a file whose bytes were read otherwise.
    pub fn add(&self, key: &Key, bytes: &Bytes) {
        // If it is cached, it has the same bytes.
        let _ = self.cached().entry(key, bytes.len() as u64).set(bytes.clone());
    }

    /// Removes a file, which is deleted or replaced.
    pub fn forget(&self, key: &Key) {
        let mut cached = self.cached();
        let Cached { files, order, bytes } = &mut *cached;
        order.retain(|file| {
            let stays = file.0 != *key;
            if !stays {
                files.remove(file);
                *bytes -= file.1;
            }
            stays
        });
    }

    fn cached(&self) -> MutexGuard<'_, Cached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cached {
    fn entry(&mut self, key: &Key, size: u64) -> Arc<OnceCell<Bytes>> {
        let file = (key.clone(), size);
        if let Some(known) = self.files.get(&file) {
            return Arc::clone(known);
        }
        self.bytes += size;
        self.order.push_back(file.clone());
        while self.bytes > KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.files.remove(&oldest);
            self.bytes -= oldest.1;
        }
        let new = Arc::default();
        self.files.insert(file, Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn a_file_is_requested_once_and_the_oldest_make_room() {
        let (client, files) = (InMemory::new(), SmallFiles::default());
        let key = |n: u64| Key::from(format!("{n}.parquet"));
        client.put(&key(0), "first".into()).await.unwrap();
        assert_eq!(files.read(&client, &key(0), 5).await.unwrap(), "first");
        client.delete(&key(0)).await.unwrap();
        assert_eq!(files.read(&client, &key(0), 5).await.unwrap(), "first", "from the cache");
        assert!(files.read(&client, &key(1), 5).await.is_err(), "an error is not kept");
        files.forget(&key(0));
        assert!(files.read(&client, &key(0), 5).await.is_err(), "it was forgotten");
        client.put(&key(0), "first".into()).await.unwrap();
        files.read(&client, &key(0), 5).await.unwrap();
        client.delete(&key(0)).await.unwrap();
        let large = Bytes::from(vec![0; LARGEST as usize]);
        for n in 2..2 + KEPT / LARGEST {
            files.add(&key(n), &large);
        }
        assert!(files.cached().bytes <= KEPT);
        assert!(files.read(&client, &key(0), 5).await.is_err(), "it made room");
        assert_eq!(files.read(&client, &key(3), LARGEST).await.unwrap(), large);
    }
}
