//! Makes `COPY … TO 'file'` atomic: the file is complete or unchanged.
//!
//! Input: a parsed statement. Output: the same statement with a hidden path in the target's directory as its target,
//! and the action that renames the result after success. DataFusion alone would replace the file with the rows
//! written before an error. On a cluster the executors write the hidden path, on a disk that all machines share, and this
//! process renames the file.

use std::path::{Path, PathBuf};

use datafusion::sql::parser::{CopyToStatement, Statement};
use tercile_store::cleanup::{self, Registered};
use tercile_store::scheme;
use url::Url;

use super::super::output_file::{Output, OutputFile};
use crate::engine;

/// The target file of a running COPY statement.
pub struct Copying {
    output: Output,
    /// The path that DataFusion writes.
    hidden: PathBuf,
    /// That path and DataFusion's temporary path, registered for removal when the process ends.
    leftovers: Vec<Registered>,
    /// Whether the statement runs in this process, not on a cluster.
    here: bool,
}

impl Copying {
    /// Redirects a COPY to a single local file. `None` for other statements, for a COPY to a directory (which adds
    /// files with new names) and for a COPY to an object store (which replaces an object when it is complete).
    /// `here`: the statement runs in this process.
    pub fn redirect(statement: &mut Statement, here: bool) -> anyhow::Result<Option<Self>> {
        let Statement::CopyTo(copy) = statement else { return Ok(None) };
        let Some(path) = single_file(copy) else { return Ok(None) };
        let output = OutputFile::new(&path).open()?;
        let Some(hidden) = output.hidden_path() else {
            anyhow::bail!("cannot COPY to {}: it is no regular file; use --output or .output", path.display());
        };
        let url =
            engine::file_url(&hidden).map_err(|why| anyhow::anyhow!("cannot COPY to {}: {why}", path.display()))?;
        copy.target = url.to_string();
        let mut staged = hidden.clone().into_os_string();
        staged.push("#1");
        let leftovers = vec![cleanup::file(&hidden), cleanup::file(Path::new(&staged))];
        Ok(Some(Self { output, hidden, leftovers, here }))
    }

    /// Renames the file to its target.
    pub fn finish(mut self) -> anyhow::Result<()> {
        // A COPY of no rows may write no file.
        if self.hidden.exists() {
            self.output.adopt(&self.hidden)?;
        } else if !self.here {
            anyhow::bail!(
                "the executors' file {} is not on this machine; COPY to a directory that all machines share, or use --output",
                self.hidden.display()
            );
        }
        self.output.publish()?;
        self.leftovers.clear();
        Ok(())
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        // Only after a failure: DataFusion may still be writing, and its files are removed when the process ends.
        let _ = std::fs::remove_file(&self.hidden);
        self.leftovers.drain(..).for_each(Registered::keep);
    }
}

/// The target of a statement that copies to a single local file.
fn single_file(copy: &CopyToStatement) -> Option<PathBuf> {
    let target = &copy.target;
    let path = match target.starts_with("file:") {
        true => Url::parse(target).ok()?.to_file_path().ok()?,
        false if scheme(Path::new(target)).is_some() => return None,
        false => PathBuf::from(target),
    };
    let option = copy.options.iter().find(|(name, _)| name.trim_start_matches("format.") == "single_file_output");
    let single = match option {
        Some((_, value)) => value.to_string().trim_matches('\'') == "true",
        None => !target.ends_with('/') && path.extension().is_some(),
    };
    (single && copy.partitioned_by.is_empty()).then_some(path)
}
