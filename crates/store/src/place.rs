//! Selects the backend of a store by its root.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use super::backend::Backend;
use super::disk::Disk;
use super::location::{SCHEMES, scheme};
use super::{Error, objects};

/// A shared backend. The default reads files of the local disk that belong to no store.
#[derive(Debug, Clone)]
pub struct Place(Arc<dyn Backend>);

impl Default for Place {
    fn default() -> Self {
        Self::new(Disk::default())
    }
}

impl Deref for Place {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// Backends of one kind are equal: the paths, which include the prefix, tell files apart.
impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.is_disk() == other.is_disk()
    }
}

impl Eq for Place {}

impl Place {
    pub(super) fn new(backend: impl Backend + 'static) -> Self {
        Self(Arc::new(backend))
    }

    /// Checks that this build supports the backend of a root.
    ///
    /// # Errors
    /// [`Error::Url`] if it does not.
    pub fn check(root: &Path) -> Result<(), Error> {
        let known = scheme(root).is_none_or(|scheme| SCHEMES.contains(&scheme));
        if known && (objects::ENABLED || scheme(root).is_none()) {
            return Ok(());
        }
        Self::of(root).map(drop)
    }

    /// The backend for a store's root in canonical form ([`super::location::canonical`]).
    ///
    /// # Errors
    /// [`Error::Url`] if the URL is invalid or the backend is not compiled in.
    pub fn of(root: &Path) -> Result<Self, Error> {
        match scheme(root) {
            None => Ok(Self::new(Disk::new(root))),
            Some(scheme) if SCHEMES.contains(&scheme) => objects::open(root).map(Self::new),
            Some(_) => Err(Error::Url {
                url: root.to_owned(),
                why: if objects::ENABLED {
                    "expected a directory, s3://bucket/prefix, gs://, az:// or file://".to_owned()
                } else {
                    "expected a directory, or file:///a/directory".to_owned()
                },
            }),
        }
    }
}
