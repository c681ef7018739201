//! Moves unusable files aside, and removes empty stores.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Store, unique};

impl Store {
    /// Removes a store on a disk that has no files yet, after what created it has failed. Directories with files stay.
    pub fn remove_if_empty(&self) {
        if !self.place.is_disk() || !matches!(self.source(), Ok(None)) {
            return;
        }
        let directories = ["records", "models", "tmp", "marks"].map(|sub| self.root.join(sub));
        let has_files = |dir: &PathBuf| std::fs::read_dir(dir).is_ok_and(|mut files| files.next().is_some());
        if directories.iter().any(has_files) {
            return;
        }
        // A directory to which another process has added a file cannot be removed, and stays.
        let _ = std::fs::remove_file(self.root.join("up.lock"));
        for dir in directories.iter().chain([&self.root]) {
            let _ = std::fs::remove_dir(dir);
        }
    }

    /// Moves a file that cannot be used to `aside/` and returns its new path. Succeeds if the file does not exist.
    ///
    /// # Errors
    /// If the backend refuses.
    pub fn set_aside(&self, path: &Path) -> Result<PathBuf, Error> {
        let below = path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().replace('/', "-");
        let to = self.root.join("aside").join(format!("{below}-{}", unique()));
        match self.place.set_aside(path, &to) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("set aside", path)(e)),
            _ => Ok(to),
        }
    }
}
