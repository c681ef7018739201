//! The object store backend: a prefix of S3 or a compatible service, Google Cloud Storage, or Azure.
//!
//! Input: paths below the store's root, whose text is a URL. Output: the operations of a backend (backend.rs). The rest
//! of the program is synchronous here, so requests run on a separate runtime while the caller waits.

mod backend;
mod catalog;
mod conditional_put;
mod endpoint;
#[doc(hidden)]
pub mod flaky;
mod index;
mod lease;
mod range_reader;
mod retry;
#[cfg(test)]
mod store_tests;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

pub use backend::ObjectBackend;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
pub use lease::Lease;
use lease::{Beats, Sightings};
pub use object_store::UpdateVersion as Version;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path as Key;
use object_store::{
    ClientOptions, Error as Fault, ObjectMeta, ObjectStore, ObjectStoreExt as _, RetryConfig, UpdateVersion,
};
pub use range_reader::Object;
use retry::{again, gone, plain, short};
use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};
use url::Url;

use super::backend::Entry;
use super::location;
use super::{Error, SmallFiles};

/// Timeout of one request including its body. A GET of a query that is never answered is retried after it, so it is less than
/// [`RETRYING`]; a range of a file of the usual size arrives within it at 1 MB/s.
const REQUEST: Duration = Duration::from_secs(30);
/// How long a failing request is retried before its error is reported.
const RETRYING: Duration = Duration::from_secs(45);
/// Timeout of one attempt of a small request: a list, a head, a block of 4 MiB.
const ATTEMPT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// Minimum upload rate in bytes per second: an upload's timeout grows with its size.
const SLOWEST: u64 = 1 << 20;

/// Whether this build supports object stores.
pub(super) const ENABLED: bool = true;

/// Names per part of a split list; less than a page, so that one page reaches the end of a part.
pub(super) const PAGE: usize = 900;
/// Parts of a list that are requested concurrently.
const LISTS_AT_ONCE: usize = 16;

/// A prefix of an object store.
#[derive(Debug)]
pub struct Objects {
    root: PathBuf,
    url: Url,
    prefix: Key,
    /// Client for this backend's runtime.
    store: Arc<dyn ObjectStore>,
    /// Client for the runtime of the queries: connections belong to the runtime that created them.
    for_queries: Arc<dyn ObjectStore>,
    small_files: Arc<SmallFiles>,
    runtime: Option<Runtime>,
    /// The feeding lock, if this process holds it.
    feeding: Mutex<Option<Arc<Beats>>>,
    /// Leases of other processes, as they were last read.
    sightings: Mutex<Sightings>,
}

impl Drop for Objects {
    fn drop(&mut self) {
        // The last owner may be an async task, which must not block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Objects {
    /// Creates a client from the URL and the usual environment variables (AWS_…, GOOGLE_…, AZURE_…). Makes no request.
    ///
    /// # Errors
    /// If the URL or a variable is invalid, or the runtime cannot start.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let fault = |why: String| Error::Url { url: root.to_owned(), why };
        let named = location::object(&root.to_string_lossy()).map_err(&fault)?;
        let url = Url::parse(&named.text).map_err(|e| fault(e.to_string()))?;
        let prefix = Key::parse(&named.prefix).map_err(|e| fault(e.to_string()))?;
        endpoint::check(&url, |name| std::env::var(name).ok()).map_err(&fault)?;
        let client = || client(&url).map_err(|e| fault(short(&e)));
        let (store, for_queries) = (client()?, client()?);
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("objects").enable_all().build();
        let runtime = Some(runtime.map_err(|e| fault(e.to_string()))?);
        Ok(Self {
            root: PathBuf::from(named.text),
            url,
            prefix,
            store,
            for_queries,
            small_files: Arc::default(),
            runtime,
            feeding: Mutex::default(),
            sightings: Mutex::default(),
        })
    }

    /// A prefix of any object store.
    ///
    /// # Errors
    /// [`Error::Url`] if the URL cannot be parsed.
    pub(super) fn over(root: &str, store: Arc<dyn ObjectStore>) -> Result<Self, Error> {
        let fault = |why: String| Error::Url { url: root.into(), why };
        let url = Url::parse(root).map_err(|e| fault(e.to_string()))?;
        let prefix = Key::from_url_path(url.path()).map_err(|e| fault(e.to_string()))?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = Some(runtime.map_err(|e| fault(e.to_string()))?);
        let (root, for_queries) = (PathBuf::from(root), Arc::clone(&store));
        Ok(Self {
            root,
            url,
            prefix,
            store,
            for_queries,
            small_files: Arc::default(),
            runtime,
            feeding: Mutex::default(),
            sightings: Mutex::default(),
        })
    }

    /// The client for a query engine.
    pub fn for_queries(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.for_queries)
    }

    /// The cache of small files.
    pub fn small_files(&self) -> Arc<SmallFiles> {
        Arc::clone(&self.small_files)
    }

    /// Runs a future on this backend's runtime and blocks until it ends. Tells the caller's runtime, if any, that the thread
    /// blocks.
    fn wait<T: Send + 'static>(&self, work: impl Future<Output = Result<T, Fault>> + Send + 'static) -> io::Result<T> {
        let (done, waits) = std::sync::mpsc::sync_channel(1);
        let runtime = self.runtime.as_ref().ok_or_else(gone)?;
        runtime.spawn(async move {
            // The receiver may be gone.
            let _ = done.send(work.await);
        });
        let received = match Handle::try_current() {
            Ok(current) if current.runtime_flavor() == RuntimeFlavor::MultiThread => {
                tokio::task::block_in_place(|| waits.recv())
            }
            _ => waits.recv(),
        };
        received.map_err(|_| gone())?.map_err(plain)
    }

    fn key(&self, path: &Path) -> Key {
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        below.iter().fold(self.prefix.clone(), |key, part| key.join(part.to_string_lossy().as_ref()))
    }

    /// The client and the key of a path, to be moved into a future.
    fn at(&self, path: &Path) -> (Arc<dyn ObjectStore>, Key) {
        (Arc::clone(&self.store), self.key(path))
    }

    /// The files of a directory, unordered.
    pub fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let (store, key) = self.at(dir);
        let found = self.wait(async move { again(|| store.list_with_delimiter(Some(&key))).await })?;
        Ok(found.objects.into_iter().filter_map(entry).collect())
    }

    /// The files of a large directory, listed concurrently in parts that end at these names, which are sorted.
    pub fn list_all(&self, dir: &Path, marks: &[String]) -> io::Result<Vec<Entry>> {
        // S3's directory buckets list in no order.
        if marks.is_empty() || self.url.host_str().is_some_and(|bucket| bucket.ends_with("--x-s3")) {
            return self.list(dir);
        }
        let (store, key) = self.at(dir);
        let marks = marks.iter().map(|mark| key.clone().join(mark.as_str()));
        let begins = std::iter::once(key.clone()).chain(marks.clone());
        let ask = |(after, until): (Key, Option<Key>)| {
            let (store, dir) = (Arc::clone(&store), key.clone());
            async move { again(|| part(&*store, &dir, &after, until.as_ref())).await }
        };
        let asked: Vec<_> = begins.zip(marks.map(Some).chain([None])).map(ask).collect();
        let found: Vec<Vec<ObjectMeta>> =
            self.wait(async move { stream::iter(asked).buffered(LISTS_AT_ONCE).try_collect().await })?;
        Ok(found.into_iter().flatten().filter_map(entry).collect())
    }

    /// The files of a directory whose names come after this one.
    pub fn list_from(&self, dir: &Path, after: &str) -> io::Result<Vec<Entry>> {
        let (store, key) = self.at(dir);
        let offset = key.clone().join(after);
        let found: Vec<ObjectMeta> =
            self.wait(async move { again(|| store.list_with_offset(Some(&key), &offset).try_collect()).await })?;
        Ok(found.into_iter().filter_map(entry).collect())
    }

    /// The names of a directory's subdirectories.
    pub fn dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        let (store, key) = self.at(dir);
        let found = self.wait(async move { again(|| store.list_with_delimiter(Some(&key))).await })?;
        Ok(found.common_prefixes.iter().filter_map(|prefix| prefix.filename().map(str::to_owned)).collect())
    }

    /// Reads a whole object.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let (store, key) = self.at(path);
        self.wait(async move { Ok(whole(&*store, &key).await?.0.to_vec()) })
    }

    /// Reads an object and its version; `None` if it does not exist.
    pub fn read_version(&self, path: &Path) -> io::Result<Option<(Vec<u8>, Version)>> {
        let (store, key) = self.at(path);
        self.wait(async move {
            match whole(&*store, &key).await {
                Ok((bytes, version)) => Ok(Some((bytes.to_vec(), version))),
                Err(Fault::NotFound { .. }) => Ok(None),
                Err(fault) => Err(fault),
            }
        })
    }

    /// Conditional put: replaces the version that was read, or creates the object. Returns the new version; `None` if another
    /// writer was faster.
    pub fn replace_if(
        &self,
        bytes: impl Into<Bytes>,
        path: &Path,
        seen: Option<Version>,
    ) -> io::Result<Option<Version>> {
        let ((store, key), bytes) = (self.at(path), bytes.into());
        self.wait(async move { conditional_put::put_if(&*store, &key, bytes, seen).await })
    }

    /// Puts an object, whether it exists or not.
    pub fn put(&self, bytes: &[u8], path: &Path) -> io::Result<()> {
        let ((store, key), bytes) = (self.at(path), Bytes::copy_from_slice(bytes));
        self.wait(async move { again(|| store.put(&key, bytes.clone().into())).await.map(drop) })
    }

    /// Deletes an object.
    pub fn delete(&self, path: &Path) -> io::Result<()> {
        let (store, key) = self.at(path);
        self.small_files.forget(&key);
        self.wait(async move { again(|| store.delete(&key)).await })
    }

    fn head(&self, path: &Path) -> io::Result<ObjectMeta> {
        let (store, key) = self.at(path);
        self.wait(async move { again(|| store.head(&key)).await })
    }

    /// Modification time of an object.
    pub fn modified(&self, path: &Path) -> io::Result<SystemTime> {
        Ok(self.head(path)?.last_modified.into())
    }

    /// An object's version as bytes, to detect changes without reading the object.
    pub fn stamp(&self, path: &Path) -> io::Result<Vec<u8>> {
        let meta = self.head(path)?;
        Ok(format!("{:?} {} {}", meta.e_tag, meta.last_modified, meta.size).into_bytes())
    }

    /// Moves an object to a unique name.
    pub fn set_aside(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((store, from), to) = (self.at(from), self.key(to));
        self.small_files.forget(&from);
        self.wait(async move {
            let (bytes, _) = whole(&*store, &from).await?;
            again(|| store.put(&to, bytes.clone().into())).await?;
            again(|| store.delete(&from)).await
        })
    }

    /// Opens an object for range reads.
    pub fn open_object(self: &Arc<Self>, path: &Path) -> io::Result<Object> {
        Object::open(self, self.key(path))
    }

    /// An object whose bytes are cached.
    pub fn cached_object(self: &Arc<Self>, path: &Path, size: u64) -> Option<Object> {
        let key = self.key(path);
        let bytes = self.small_files.cached_bytes(&key, size)?;
        Some(Object::in_memory(self, key, bytes))
    }

    /// Checks that the service supports conditional puts, on which all guarantees depend.
    ///
    /// # Errors
    /// If a name can be taken twice, or a request fails.
    pub fn probe(&self, path: &Path) -> io::Result<()> {
        let first = self.replace_if(b"first".to_vec(), path, None)?;
        let second = self.replace_if(b"second".to_vec(), path, None);
        self.delete(path)?;
        if first.is_some() && second?.is_none() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the service ignores If-None-Match, and two writers would overwrite each other's files; choose one that honours it",
        ))
    }

    /// Keeps a reference to the feeding lock.
    pub(super) fn feeds(&self, lease: &Lease) {
        *self.feeding.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease.beats());
    }

    /// Whether this process held the feeding lock and may have lost it.
    pub(super) fn lost(&self) -> bool {
        let feeding = self.feeding.lock().unwrap_or_else(PoisonError::into_inner);
        feeding.as_ref().is_some_and(|beats| !beats.holds())
    }
}

/// The objects of a directory between two names.
async fn part(store: &dyn ObjectStore, dir: &Key, after: &Key, until: Option<&Key>) -> Result<Vec<ObjectMeta>, Fault> {
    let here = |meta: &ObjectMeta| std::future::ready(Ok(until.is_none_or(|until| meta.location <= *until)));
    store.list_with_offset(Some(dir), after).try_take_while(here).try_collect().await
}

fn entry(meta: ObjectMeta) -> Option<Entry> {
    let name = meta.location.filename()?.to_owned();
    Some(Entry { name, modified: Some(meta.last_modified.into()), tag: meta.e_tag })
}

fn version(meta: &ObjectMeta) -> Version {
    UpdateVersion { e_tag: meta.e_tag.clone(), version: meta.version.clone() }
}

/// Reads a whole object. A truncated body is an error.
async fn whole(store: &dyn ObjectStore, key: &Key) -> Result<(Bytes, Version), Fault> {
    again(|| async move {
        let found = store.get(key).await?;
        let version = version(&found.meta);
        Ok::<_, Fault>((found.bytes().await?, version))
    })
    .await
}

/// Opens the store at a URL.
///
/// # Errors
/// [`Error::Url`] if the URL or the environment is invalid.
pub(super) fn open(root: &Path) -> Result<ObjectBackend, Error> {
    ObjectBackend::open(root)
}

/// A client of a URL's bucket, for callers other than the store.
///
/// # Errors
/// A text with the invalid part of the URL or environment.
pub fn client_of(url: &Url) -> Result<Arc<dyn ObjectStore>, String> {
    client(url).map_err(|e| short(&e))
}

fn client(url: &Url) -> Result<Arc<dyn ObjectStore>, Fault> {
    let http = endpoint::allows_http(|name| std::env::var(name).ok());
    let options =
        ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(Duration::from_secs(5)).with_allow_http(http);
    let retry = RetryConfig { max_retries: 8, retry_timeout: RETRYING, ..Default::default() };
    // The three builders are of different types without a common trait.
    macro_rules! build {
        ($builder:ty) => {
            Arc::new(
                <$builder>::from_env().with_url(url.as_str()).with_client_options(options).with_retry(retry).build()?,
            )
        };
    }
    Ok(match url.scheme() {
        "gs" => build!(GoogleCloudStorageBuilder),
        "s3" | "s3a" => build!(AmazonS3Builder),
        _ => build!(MicrosoftAzureBuilder),
    })
}
