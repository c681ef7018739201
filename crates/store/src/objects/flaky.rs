//! An in-memory object store with the faults of networks and services: latency, puts that fail before or after they take
//! effect, failing reads, and paged lists that lag for a few requests.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, Error as Fault, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions,
};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore as _, SeedableRng as _};

type Result<T> = std::result::Result<T, Fault>;

/// Names in a page of a list.
const PAGE: usize = 1000;

/// An in-memory object store with injected faults.
#[derive(Debug, Clone)]
pub struct Flaky {
    inner: Arc<InMemory>,
    state: Arc<Mutex<State>>,
    /// One in this number of requests fails; 0 for none.
    fails: u64,
    /// An object is missing from fewer lists than this after its put, and remains in fewer after its deletion.
    lags: u64,
    /// Latency of each request and of each page of a list.
    takes: Duration,
}

#[derive(Debug)]
struct State {
    random: Xoshiro256PlusPlus,
    /// Number of GET and HEAD requests.
    gets: usize,
    names: BTreeMap<Key, Named>,
}

/// An object in lists.
#[derive(Debug)]
struct Named {
    meta: ObjectMeta,
    /// Number of further lists in which it is missing.
    missing: u64,
    /// Number of further lists in which it remains, if it was deleted.
    deleted: Option<u64>,
}

impl Named {
    /// Its entry in a list.
    fn shown(&mut self) -> Option<ObjectMeta> {
        let counts_down = |left: &mut u64| std::mem::replace(left, left.saturating_sub(1)) > 0;
        let shown = match &mut self.deleted {
            Some(left) => counts_down(left),
            None => !counts_down(&mut self.missing),
        };
        shown.then(|| self.meta.clone())
    }
}

impl State {
    fn chance(&mut self, below: u64) -> u64 {
        self.random.next_u64() % below
    }

    /// The next page of a list, and the start of the page after it.
    fn page(&mut self, prefix: Option<&Key>, after: &Key) -> (Vec<ObjectMeta>, Option<Key>) {
        let mut shown = Vec::new();
        for (key, named) in self.names.range_mut((Bound::Excluded(after.clone()), Bound::Unbounded)) {
            if prefix.is_some_and(|prefix| !key.prefix_matches(prefix)) {
                continue;
            }
            if shown.len() == PAGE {
                let last = shown.last().map(|meta: &ObjectMeta| meta.location.clone());
                return (shown, last);
            }
            shown.extend(named.shown());
        }
        (shown, None)
    }
}

impl Flaky {
    /// A store without latency, with failures and lag.
    pub fn new(seed: u64) -> Self {
        Self { fails: 25, lags: 3, ..Self::slow(Duration::ZERO, seed) }
    }

    /// A store with latency, without failures and lag.
    pub fn slow(takes: Duration, seed: u64) -> Self {
        let state = State { random: Xoshiro256PlusPlus::seed_from_u64(seed), gets: 0, names: BTreeMap::new() };
        Self { inner: Arc::default(), state: Arc::new(Mutex::new(state)), fails: 0, lags: 1, takes }
    }

    /// The same store without latency.
    pub fn quick(&self) -> Self {
        Self { takes: Duration::ZERO, ..self.clone() }
    }

    /// Number of GET and HEAD requests.
    pub fn gets(&self) -> usize {
        self.state().gets
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lag(&self) -> u64 {
        self.state().chance(self.lags)
    }

    fn fails(&self) -> Result<()> {
        if self.fails > 0 && self.state().chance(self.fails) == 0 { Err(cut()) } else { Ok(()) }
    }

    async fn asked(&self) -> Result<()> {
        if !self.takes.is_zero() {
            tokio::time::sleep(self.takes).await;
        }
        self.fails()
    }

    async fn delete_one(&self, key: &Key) -> Result<()> {
        self.asked().await?;
        self.inner.delete(key).await?;
        let left = self.lag();
        if let Some(named) = self.state().names.get_mut(key) {
            named.deleted = Some(left);
        }
        Ok(())
    }
}

fn cut() -> Fault {
    Fault::Generic { store: "shaky", source: "the connection was cut".into() }
}

impl fmt::Display for Flaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a shaky store")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Flaky {
    async fn put_opts(&self, key: &Key, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.asked().await?;
        let put = self.inner.put_opts(key, payload, options).await?;
        let (meta, missing) = (self.inner.head(key).await?, self.lag());
        self.state().names.insert(key.clone(), Named { meta, missing, deleted: None });
        // The put took effect, but its answer is lost.
        self.fails()?;
        Ok(put)
    }

    async fn put_multipart_opts(&self, key: &Key, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        self.asked().await?;
        self.state().gets += 1;
        self.inner.get_opts(key, options).await
    }

    async fn get_ranges(&self, key: &Key, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.asked().await?;
        self.inner.get_ranges(key, ranges).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        let this = self.clone();
        let delete = move |key: Key| {
            let this = this.clone();
            async move { this.delete_one(&key).await.map(|()| key) }
        };
        keys.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.list_with_offset(prefix, &Key::default())
    }

    fn list_with_offset(&self, prefix: Option<&Key>, offset: &Key) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let pages = stream::try_unfold(Some(offset.clone()), move |after| {
            let (this, prefix) = (this.clone(), prefix.clone());
            async move {
                let Some(after) = after else { return Ok(None) };
                this.asked().await?;
                let (page, next) = this.state().page(prefix.as_ref(), &after);
                Ok::<_, Fault>(Some((stream::iter(page.into_iter().map(Ok)), next)))
            }
        });
        pages.try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.asked().await?;
        let depth = prefix.map_or(0, |prefix| prefix.parts().count()) + 1;
        let (mut objects, mut dirs) = (Vec::new(), Vec::<Key>::new());
        for (key, named) in &mut self.state().names {
            if prefix.is_some_and(|prefix| !key.prefix_matches(prefix)) {
                continue;
            }
            if key.parts().count() == depth {
                objects.extend(named.shown());
            } else if dirs.last().is_none_or(|dir| !key.prefix_matches(dir)) {
                dirs.push(key.parts().take(depth).collect());
            }
        }
        // Objects below subdirectories do not count towards a page.
        let pages = (objects.len() + dirs.len()) / PAGE;
        tokio::time::sleep(self.takes * u32::try_from(pages).unwrap_or(u32::MAX)).await;
        Ok(ListResult { objects, common_prefixes: dirs })
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Key, to: &Key, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}
