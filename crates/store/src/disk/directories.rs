//! Directories of a disk: their creation and their sync.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::Error;

/// Creates a directory and those above it that are missing, durably: a new directory is lost at a power failure unless the directory
/// above it is synced.
pub(super) fn make_dirs(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.is_dir()).collect();
    fs::create_dir_all(dir)?;
    for made in missing.iter().rev() {
        match File::open(parent(made)).and_then(|above| above.sync_all()) {
            // Above the store, a directory may not be readable, or its filesystem may not sync directories.
            Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => {}
            synced => synced?,
        }
    }
    Ok(())
}

/// A new name is durable only once its directory is synced.
pub(super) fn sync_parent(path: &Path) -> Result<(), Error> {
    let dir = parent(path);
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether two names are those of one file.
pub(super) fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    identity(one).is_some_and(|found| identity(other) == Some(found))
}
