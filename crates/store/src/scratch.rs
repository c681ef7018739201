//! Names of temporary files, and their deletion at the end of the process.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::cleanup;

/// A unique path in a directory of temporary files. The file is deleted at the end of the process.
pub(super) fn scratch_in(tmp: &Path) -> PathBuf {
    delete_own_at_exit(tmp);
    tmp.join(unique())
}

/// A file name that is unique across processes and machines: the process id is not sufficient, as in containers it is often the
/// same.
pub fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("{}{}", *OURS, COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Prefix of this process's names.
static OURS: LazyLock<String> =
    LazyLock::new(|| format!("{}-{:016x}-", std::process::id(), RandomState::new().build_hasher().finish()));

/// Registers deletion of this process's files in a `tmp/` at its end, because interrupted threads leave them there.
fn delete_own_at_exit(tmp: &Path) {
    static KNOWN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known.contains(tmp) {
        return;
    }
    known.insert(tmp.to_owned());
    let tmp = tmp.to_owned();
    let delete = move || {
        for entry in fs::read_dir(&tmp).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(OURS.as_str()) {
                // It may be gone already, and errors can no longer be reported.
                let _ = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
            }
        }
    };
    cleanup::register(delete).keep();
}
