//! Object stores for DataFusion that know the sizes of a snapshot's files.
//!
//! Sizes are not requested again: on an object store that would be one request per file, and on a disk DataFusion
//! would open all files at once, more than a process may open. A missing file is an error: if the store reported it
//! as not found, DataFusion would omit its records silently.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use chrono::DateTime;
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use tercile_store::{Checksums, DataFile, Place, SmallFiles};
use tokio::sync::Semaphore;
use url::Url;

/// Registers the locations of a snapshot's files in a session.
pub(super) fn register(ctx: &SessionContext, files: &[DataFile]) -> std::result::Result<(), String> {
    let mut places: HashMap<Url, SizedStore> = HashMap::new();
    let damage = super::damage(ctx);
    for file in files {
        let url = url(file)?;
        let mut root = url.clone();
        root.set_path("");
        let known = places.entry(root).or_insert_with(|| SizedStore {
            inner: inner(&file.place),
            small: file.place.small_files(),
            damage: Arc::clone(&damage),
            ..SizedStore::default()
        });
        let key = Key::from_url_path(url.path()).map_err(|e| e.to_string())?;
        if let Some(checksums) = &file.checksums {
            known.checksums.insert(key.clone(), Arc::clone(checksums));
        }
        known.sizes.insert(key, file.size);
    }
    for (root, known) in places {
        ctx.register_object_store(&root, Arc::new(known));
    }
    Ok(())
}

fn inner(place: &Place) -> Arc<dyn ObjectStore> {
    place.client().unwrap_or_else(|| Arc::new(LocalFileSystem::new()))
}

/// The URL of a file in queries.
pub(super) fn url(file: &DataFile) -> std::result::Result<Url, String> {
    if file.place.is_disk() {
        return super::file_url(&file.path);
    }
    Url::parse(&file.path.to_string_lossy()).map_err(|e| e.to_string())
}

/// The damaged files that the queries of one or several sessions came upon.
#[derive(Debug, Default)]
pub struct Damage(Mutex<BTreeSet<String>>);

impl Damage {
    fn add(&self, message: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(message.to_owned());
    }

    /// One message per column chunk.
    pub fn messages(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[derive(Debug)]
struct SizedStore {
    inner: Arc<dyn ObjectStore>,
    /// Of an object store: small files are read as a whole.
    small: Option<Arc<SmallFiles>>,
    sizes: HashMap<Key, u64>,
    damage: Arc<Damage>,
    /// Checksums that complete column chunks are compared with.
    checksums: HashMap<Key, Arc<Checksums>>,
    /// Limits concurrent size requests, if sizes are requested at all.
    turns: Option<Semaphore>,
}

impl Default for SizedStore {
    fn default() -> Self {
        Self {
            inner: Arc::new(LocalFileSystem::new()),
            small: None,
            sizes: HashMap::new(),
            damage: Arc::default(),
            checksums: HashMap::new(),
            turns: None,
        }
    }
}

impl fmt::Display for SizedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// True if the name has the form of a record file. Other tables may be directories.
fn is_of_a_store(key: &Key) -> bool {
    let digits = |name: &str| name.bytes().take(20).filter(u8::is_ascii_digit).count() == 20;
    key.filename().is_some_and(|name| digits(name) && name.ends_with(".parquet"))
}

/// The message for a file that was changed after it was written. It contains the name relative to the store, because
/// results may go to remote clients.
fn damaged(key: &Key, at: u64) -> String {
    let parts: Vec<String> = key.parts().map(|part| part.as_ref().to_owned()).collect();
    let name = parts[parts.len().saturating_sub(4)..].join("/");
    format!(
        "{name} is damaged: its column chunk at byte {at} does not match its checksum; bring it back from a copy, and see \
         tercile doctor --deep"
    )
}

/// Metadata of an immutable file.
fn immutable(key: &Key, size: u64) -> ObjectMeta {
    ObjectMeta { location: key.clone(), last_modified: DateTime::UNIX_EPOCH, size, e_tag: None, version: None }
}

/// A range of a file in memory.
fn part(whole: &Bytes, key: &Key, range: &Range<u64>) -> Result<Bytes> {
    let (start, end) = (usize::try_from(range.start), usize::try_from(range.end));
    match (start, end) {
        (Ok(start), Ok(end)) if start <= end && end <= whole.len() => Ok(whole.slice(start..end)),
        _ => Err(failed(format!("{key} is shorter than it says").into())),
    }
}

fn nothing() -> GetResultPayload {
    GetResultPayload::Stream(stream::empty().boxed())
}

fn failed(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Generic { store: "files of a plan", source }
}

impl SizedStore {
    /// The start of the first range whose bytes contradict the file's checksums.
    fn contradicted(&self, key: &Key, ranges: &[Range<u64>], found: &[Bytes]) -> Option<u64> {
        let checksums = self.checksums.get(key)?;
        let mut read = ranges.iter().zip(found);
        read.find(|(range, bytes)| checksums.contradicts(range, bytes)).map(|(range, _)| range.start)
    }
}

#[async_trait::async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for SizedStore {
    async fn get_opts(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        match self.sizes.get(key) {
            Some(&size) if options.head => Ok(GetResult {
                payload: nothing(),
                meta: immutable(key, size),
                range: 0..size,
                attributes: Default::default(),
            }),
            Some(&size)
                if SmallFiles::fits(size)
                    && let Some(range) = &options.range
                    && let Some(files) = &self.small =>
            {
                let whole = files.read(&*self.inner, key, size).await?;
                let range = range.as_range(size).map_err(|e| failed(e.into()))?;
                let part = part(&whole, key, &range)?;
                let payload = GetResultPayload::Stream(stream::iter([Ok(part)]).boxed());
                Ok(GetResult { payload, meta: immutable(key, size), range, attributes: Default::default() })
            }
            None if options.head
                && let Some(turns) = &self.turns =>
            {
                let _turn = turns.acquire().await.map_err(|e| failed(e.into()))?;
                match self.inner.get_opts(key, options).await {
                    // The body is not read, and an open file would be held until the response is consumed.
                    Ok(found) => Ok(GetResult { payload: nothing(), ..found }),
                    Err(Error::NotFound { path, .. }) if is_of_a_store(key) => {
                        Err(failed(format!("{path} is gone").into()))
                    }
                    Err(error) => Err(error),
                }
            }
            _ => self.inner.get_opts(key, options).await,
        }
    }

    async fn put_opts(&self, key: &Key, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(key, payload, options).await
    }

    async fn put_multipart_opts(&self, key: &Key, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(key, options).await
    }

    async fn get_ranges(&self, key: &Key, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if let Some(&size) = self.sizes.get(key).filter(|size| SmallFiles::fits(**size))
            && let Some(files) = &self.small
        {
            let whole = files.read(&*self.inner, key, size).await?;
            let parts = ranges.iter().map(|range| part(&whole, key, range)).collect::<Result<Vec<_>>>()?;
            if self.contradicted(key, ranges, &parts).is_none() {
                return Ok(parts);
            }
            // The file may have been written again since.
            files.forget(key);
        }
        let found = self.inner.get_ranges(key, ranges).await?;
        if let Some(start) = self.contradicted(key, ranges, &found) {
            let message = damaged(key, start);
            self.damage.add(&message);
            return Err(failed(message.into()));
        }
        Ok(found)
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Key>, offset: &Key) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Key, to: &Key, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

/// Files of plans that other processes made.
#[cfg(feature = "distributed")]
pub(super) mod of_plans {
    use super::*;

    /// Maximum number of concurrent size requests.
    const AT_ONCE: usize = 64;

    /// A store for a process that knows only the files that plans name. Missing files of a tercile store are errors here too.
    pub fn named(inner: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(SizedStore { inner, turns: Some(Semaphore::new(AT_ONCE)), ..SizedStore::default() })
    }

    #[cfg(test)]
    mod tests {
        use object_store::ObjectStoreExt as _;

        use super::*;

        #[tokio::test]
        async fn a_file_of_a_plan_is_there_or_an_error() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("00000000000000000001.parquet");
            std::fs::write(&path, "12345").unwrap();
            let place = named(Arc::new(LocalFileSystem::new()));
            let key = Key::from_filesystem_path(&path).unwrap();
            assert_eq!(place.head(&key).await.unwrap().size, 5);
            assert_eq!(place.get(&key).await.unwrap().bytes().await.unwrap(), "12345");
            std::fs::remove_file(&path).unwrap();
            let error = place.head(&key).await.unwrap_err();
            // DataFusion would list a missing file as an empty directory.
            assert!(
                matches!(error, Error::Generic { .. }) && error.to_string().contains("1.parquet is gone"),
                "{error}"
            );
            let table = Key::from_absolute_path(dir.path().join("table.parquet")).unwrap();
            std::fs::create_dir(dir.path().join("table.parquet")).unwrap();
            assert!(matches!(place.head(&table).await, Err(Error::NotFound { .. })));
        }
    }
}
