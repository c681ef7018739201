//! `COPY … TO 'file'`, which DataFusion writes: the file is complete, or as it was before.
//!
//! Input: a parsed statement. Output: the same statement with a hidden path beside the file in place of its target, and what
//! moves it to the target after a success. DataFusion by itself replaces the file with the rows up to an error.

use std::path::{Path, PathBuf};

use datafusion::sql::parser::{CopyToStatement, Statement};
use tercile_store::cleanup::{self, Registered};
use tercile_store::scheme;
use url::Url;

use super::super::output_file::{Output, OutputFile};
use crate::engine;

/// A file that a statement which runs copies to.
pub struct Copying {
    output: Output,
    /// Where DataFusion writes.
    hidden: PathBuf,
    /// That, and where DataFusion has it until it is complete: removed when the process ends.
    leftovers: Vec<Registered>,
}

impl Copying {
    /// Redirects a COPY to one file of this machine. `None`: it is another statement, or copies to a directory, to which
    /// files of new names are added, or to an object store, which replaces an object when it is complete.
    pub fn redirect(statement: &mut Statement) -> anyhow::Result<Option<Self>> {
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
        Ok(Some(Self { output, hidden, leftovers }))
    }

    /// Gives the file its name.
    pub fn finish(mut self) -> anyhow::Result<()> {
        // A COPY of no rows may write no file.
        if self.hidden.exists() {
            self.output.adopt(&self.hidden)?;
        }
        self.output.publish()?;
        self.leftovers.clear();
        Ok(())
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        // After a failure only: DataFusion may be writing still, and what it has then goes at the end of the process.
        let _ = std::fs::remove_file(&self.hidden);
        self.leftovers.drain(..).for_each(Registered::keep);
    }
}

/// The file that a statement copies to, if it is one file of this machine.
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
