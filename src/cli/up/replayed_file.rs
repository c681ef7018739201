//! The file that `up` replays: its check, its admission to the store, and the rows of it that are stored.

use std::time::Duration;

use anyhow::bail;
use tercile_store::row_set::RowSet;
use tercile_store::{EMBEDDED, Replayed, Source, Store};

use super::Up;
use crate::cli::{Usage, blocking, count};
use crate::engine::{self, Limits};
use crate::files::{self, Checked, Rows};
use crate::produce::Key;
use crate::replay;

/// A file to replay, checked completely.
pub(super) struct File {
    pub source: files::Source,
    pub checked: Checked,
    pub key: Option<Key>,
}

impl Up {
    /// The file to replay, if any, checked to be free of errors.
    pub(super) async fn file(&self, store: &Store, fields: &[String]) -> anyhow::Result<Option<File>> {
        if self.topic.is_several() && self.data.is_some() {
            return Err(
                Usage("--data is sent to one topic: name one with --topic, or leave --data out".to_owned()).into()
            );
        }
        let source = match &self.data {
            Some(path) => files::Source::named(path)?.rereadable()?,
            None if self.kafka.is_given()? => {
                if self.key.key.is_some() {
                    return Err(Usage("--key names a field of --data; say --data, or leave it out".to_owned()).into());
                }
                return Ok(None);
            }
            None => files::Source::Sample,
        };
        let given = self.data.is_some();
        let (checking, options) = (source.clone(), self.input.options());
        let checked = blocking(move || Ok(files::check(&checking, &options)?)).await?;
        let rows = Rows::open(&source, &self.input.options())?;
        rows.report();
        if let Some(names) = rows.names()
            && !names.iter().any(|name| fields.contains(name))
        {
            bail!(
                "{}, line 1: expected a header line with some of the fields {}; found {}",
                source.name().display(),
                fields.join(", "),
                names.join(", ")
            );
        }
        if checked.rows == 0 {
            bail!("{}: expected rows after the header, found none", source.name().display());
        }
        if !given && !self.only_sample(store, &checked)? {
            return Ok(None);
        }
        let (asked, named, options) = (source.clone(), self.key.clone(), self.input.options());
        let key = blocking(move || Ok(named.of(&asked, &options)?)).await?;
        Ok(Some(File { source, checked, key }))
    }

    /// True if the sample is the store's only source.
    fn only_sample(&self, store: &Store, sample: &Checked) -> anyhow::Result<bool> {
        Ok(match store.source()? {
            None => true,
            Some(source) if source.id != EMBEDDED => false,
            Some(source) if source.files.is_empty() => store.snapshot()?.rows() == 0,
            Some(source) => source.files.iter().all(|file| file.hash == sample.hash),
        })
    }

    /// Records the file in the store before any of its rows is sent, or rejects it. A file that begins with all rows of one that
    /// was replayed before continues it: only its new rows are sent.
    pub(super) async fn admit(&self, store: &Store, source: &Source, file: &File) -> anyhow::Result<()> {
        let name = file.source.name().display().to_string();
        let known = source.files.iter().any(|known| known.hash == file.checked.hash);
        let mut continues = None;
        if let Some(last) = source.files.last()
            && !known
        {
            let (root, rows) = (store.root().display(), file.checked.rows);
            continues = self.continued(source, file).await?;
            match continues.as_ref().and_then(|hash| source.files.iter().find(|old| old.hash == *hash)) {
                // Its rows may be those that another file added after the same beginning.
                Some(old)
                    if let Some(other) =
                        source.files.iter().find(|other| other.continues.as_ref() == Some(&old.hash)) =>
                {
                    bail!(
                        "{name} begins with the {} of {}, as {} does, which was replayed into the store {root} after it and has other rows \
                         or more of them; give the newest version of the file, or a file with the new rows alone",
                        count(old.rows.unwrap_or_default(), "row"),
                        old.name,
                        other.name
                    )
                }
                Some(old) if self.append => {
                    let new = count(rows - old.rows.unwrap_or_default(), "new row");
                    let known = count(old.rows.unwrap_or_default(), "row");
                    tracing::info!("{name}: the {known} of {} and {new}", old.name);
                }
                Some(old) => bail!(
                    "the store {root} was fed from {}, and {name} has {} more; to send them say --append",
                    old.name,
                    count(rows - old.rows.unwrap_or_default(), "row")
                ),
                // Most of its rows would be stored once more.
                None if let Some(old) =
                    source.files.iter().find(|old| old.first.as_ref() == Some(&file.checked.first)) =>
                {
                    bail!(
                        "{name} begins with the first row of {}, which was replayed into the store {root}, but other rows of \
                         that file have changed, are missing, or are written differently (line ends, quotes); choose another \
                         --store, or a file with the new rows alone",
                        old.name
                    )
                }
                None if !self.append => bail!(
                    "the store {root} was fed from {}; to add {name} to it say --append, or choose another --store",
                    last.name
                ),
                None => {}
            }
        }
        let Checked { rows, hash, first } = file.checked.clone();
        let (rows, first) = (Some(rows), Some(first));
        Ok(store.add_file(&Replayed { name, hash, rows, first, continues, ..Replayed::default() })?)
    }

    /// The hash of the longest replayed file whose rows are the first rows of this one.
    async fn continued(&self, source: &Source, file: &File) -> anyhow::Result<Option<String>> {
        let longest = |old: &&Replayed| old.rows.is_some_and(|rows| rows > 0 && rows < file.checked.rows);
        let mut older: Vec<Replayed> = source.files.iter().filter(longest).cloned().collect();
        older.sort_by_key(|old| std::cmp::Reverse(old.rows));
        let (input, options) = (file.source.clone(), self.input.options());
        blocking(move || {
            for old in older {
                if files::is_continued(&input, &options, old.rows.unwrap_or_default(), &old.hash)? {
                    return Ok(Some(old.hash));
                }
            }
            Ok(None)
        })
        .await
    }

    /// The rows of a file that are stored, under its own hash or under that of a file that it continues.
    pub(super) async fn stored_rows(&self, store: &Store, checked: &Checked) -> anyhow::Result<RowSet> {
        let mut stored = self.rows_of(store, &checked.hash, checked.rows).await?;
        let mut older = Vec::new();
        let mut hash = Some(checked.hash.clone());
        let files = store.source()?.map(|source| source.files).unwrap_or_default();
        while let Some(file) = hash.and_then(|hash| files.iter().find(|file| file.hash == hash)) {
            hash = file.continues.clone().filter(|older_hash| !older.contains(older_hash));
            older.extend(hash.clone());
        }
        for file in files.iter().filter(|file| older.contains(&file.hash)) {
            stored.add(&self.rows_of(store, &file.hash, file.rows.unwrap_or_default()).await?);
        }
        // Read after the records were listed: a record that expires in between is in at least one of the two.
        let source = store.source()?;
        for file in source.iter().flat_map(|source| &source.files) {
            if file.hash == checked.hash || older.contains(&file.hash) {
                stored.add(&file.expired);
            }
        }
        Ok(stored)
    }

    /// The rows that are stored under a hash. If a file expires during the read, the read is repeated.
    async fn rows_of(&self, store: &Store, hash: &str, rows: u64) -> anyhow::Result<RowSet> {
        let mut tries = 0;
        loop {
            let snapshot = store.snapshot()?;
            if snapshot.rows() == 0 {
                return Ok(RowSet::default());
            }
            // The views were planned before, and the query reads records.
            let ctx = engine::open_without_views(&snapshot, &self.sql.load()?, Limits::default())?;
            tries += 1;
            match replay::stored_rows(&ctx, hash, rows).await {
                Err(error) if tries < 10 => tracing::debug!("the stored rows are read again: {error}"),
                read => return Ok(read?),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
