//! Conditional puts with a definite result even if answers are lost.
//!
//! A put whose answer was lost may have succeeded, and its retry then fails as a conflict. So after a conflict the current
//! object is compared with the bytes that were sent. No two files are identical, because each contains its writer's id; if two
//! writers send the same bytes, as for `source.json`, both may succeed.

use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{Error as Fault, ObjectStore, ObjectStoreExt as _, PutMode};

use super::retry::{Tries, again, passes, within};
use super::{ATTEMPT, SLOWEST, Version, version, whole};

/// Creates an object, or replaces the version that was read. Returns the new version; `None` if another writer was faster.
/// Resolves lost answers, or fails.
pub(super) async fn put_if(
    store: &dyn ObjectStore,
    key: &Key,
    bytes: Bytes,
    seen: Option<Version>,
) -> Result<Option<Version>, Fault> {
    let mut tries = Tries::new();
    loop {
        let mode = seen.clone().map_or(PutMode::Create, PutMode::Update);
        // The timeout grows with the size.
        let timeout = ATTEMPT + Duration::from_secs(bytes.len() as u64 / SLOWEST);
        let put = store.put_opts(key, bytes.clone().into(), mode.into());
        let fault = match within(timeout, put).await {
            Ok(put) => return Ok(Some(put.into())),
            Err(fault @ (Fault::AlreadyExists { .. } | Fault::Precondition { .. })) => {
                match standing(store, key, &bytes).await? {
                    Current::Ours(version) => return Ok(Some(version)),
                    // Of concurrent puts, each may be refused in favour of another, and none succeeds.
                    Current::Other(now) if seen.as_ref() == Some(&now) => fault,
                    Current::None if seen.is_none() => fault,
                    Current::Other(_) | Current::None => return Ok(None),
                }
            }
            Err(fault) if !passes(&fault) => return Err(fault),
            Err(fault) => fault,
        };
        if !tries.another().await {
            return Err(fault);
        }
        tracing::debug!("the put of {key} is tried again: {fault}");
    }
}

/// The current object, compared with the bytes that were put.
enum Current {
    Ours(Version),
    Other(Version),
    None,
}

async fn standing(store: &dyn ObjectStore, key: &Key, bytes: &Bytes) -> Result<Current, Fault> {
    match compared(store, key, bytes).await {
        Err(Fault::NotFound { .. }) => Ok(Current::None),
        compared => compared,
    }
}

async fn compared(store: &dyn ObjectStore, key: &Key, bytes: &Bytes) -> Result<Current, Fault> {
    let meta = again(|| store.head(key)).await?;
    // Most differ in size, and need not be read.
    if meta.size != bytes.len() as u64 {
        return Ok(Current::Other(version(&meta)));
    }
    let (there, version) = whole(store, key).await?;
    Ok(if there == *bytes { Current::Ours(version) } else { Current::Other(version) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn a_name_is_taken_once_and_a_version_replaced_once() {
        let (store, key) = (InMemory::new(), Key::from("a/b"));
        let put = async |bytes: &'static str, seen: Option<&Version>| {
            put_if(&store, &key, Bytes::from(bytes), seen.cloned()).await.unwrap()
        };
        let first = put("first", None).await.unwrap();
        assert_eq!(put("other", None).await, None);
        // The same bytes: an answer was lost.
        assert_eq!(put("first", None).await, Some(first.clone()));
        let second = put("second", Some(&first)).await.unwrap();
        assert_eq!(put("third", Some(&first)).await, None);
        assert_eq!(put("second", Some(&first)).await, Some(second));
    }

    #[tokio::test]
    async fn one_of_many_concurrent_puts_succeeds() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let key = Key::from("a");
        let puts = (0..50).map(|i| {
            let (store, key) = (Arc::clone(&store), key.clone());
            tokio::spawn(async move { put_if(&*store, &key, Bytes::from(format!("writer {i}")), None).await })
        });
        let mut first = 0;
        for put in puts.collect::<Vec<_>>() {
            first += usize::from(put.await.unwrap().unwrap().is_some());
        }
        assert_eq!(first, 1);
    }
}
