//! Takes the place of `objects.rs` in a build without the feature `object-stores`.

use std::path::Path;
use std::sync::Arc;

use object_store::ObjectStore;
use url::Url;

use super::Error;
use super::disk::Disk;

/// Whether this build supports object stores.
pub(super) const ENABLED: bool = false;

const NOT_BUILT_IN: &str = "this tercile was built without object stores; build it with --features object-stores";

/// Refuses the URL of a store.
///
/// # Errors
/// Always [`Error::Url`].
pub(super) fn open(root: &Path) -> Result<Disk, Error> {
    Err(Error::Url { url: root.to_owned(), why: NOT_BUILT_IN.to_owned() })
}

/// Refuses the URL of files.
///
/// # Errors
/// Always.
pub fn client_of(_: &Url) -> Result<Arc<dyn ObjectStore>, String> {
    Err(NOT_BUILT_IN.to_owned())
}
