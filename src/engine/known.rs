//! The object store of a snapshot, which knows the snapshot's files.
//!
//! How large they are is not asked again, one request for each. And a file that is gone is an error: asked for its size the
//! store would say that there is none, and DataFusion would go on without its records.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use url::Url;

use crate::store::{DataFile, Place};

/// Lets a session read the files of a snapshot that are on no disk.
pub(super) fn register(ctx: &SessionContext, files: &[DataFile]) -> std::result::Result<(), String> {
    let mut sizes = HashMap::new();
    let mut place = None;
    for file in files {
        if let Place::Objects(objects) = &file.place {
            sizes.insert(Key::from_url_path(url(file)?.path()).map_err(|e| e.to_string())?, file.size);
            place = Some(objects);
        }
    }
    if let Some(objects) = place {
        let (bucket, inner) = objects.for_queries();
        ctx.register_object_store(&bucket, Arc::new(Known { inner, sizes }));
    }
    Ok(())
}

/// Where a file is that is on no disk.
pub(super) fn url(file: &DataFile) -> std::result::Result<Url, String> {
    Url::parse(&file.path.to_string_lossy()).map_err(|e| e.to_string())
}

#[derive(Debug)]
struct Known {
    inner: Arc<dyn ObjectStore>,
    sizes: HashMap<Key, u64>,
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait::async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for Known {
    async fn get_opts(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        match self.sizes.get(key) {
            Some(&size) if options.head => Ok(GetResult {
                payload: GetResultPayload::Stream(stream::empty().boxed()),
                // Files never change.
                meta: ObjectMeta {
                    location: key.clone(),
                    last_modified: DateTime::UNIX_EPOCH,
                    size,
                    e_tag: None,
                    version: None,
                },
                range: 0..size,
                attributes: Default::default(),
            }),
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
        self.inner.get_ranges(key, ranges).await
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
