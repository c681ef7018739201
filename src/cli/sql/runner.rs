//! A session: runs statements and prints their results.
//!
//! Output: rows on stdout or in a file. A shell
//! reloads the store's files and the SQL files before each statement, so that results are current.

mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use show::{Shown, on_error};
use tercile_store::{Snapshot, Store};

use super::super::output_file::{Mark, Output, OutputFile};
use super::super::{Terminal, Usage, count, say, watchdog};
use super::copy::Copying;
use super::output::Format;
use super::params::TableFile;
use super::query::{Work, apart, params_of, prepare};
use crate::config::{SqlArgs, StoreArgs};
use crate::engine::cluster::Engine;
use crate::engine::{self, Limits};
use crate::files;
use crate::sql::fault::{Fault, Source};
use crate::sql::piece::Piece;
use crate::sql::{self, Files, View};

/// Settings that dot commands change.
pub struct Settings {
    /// The requested format; `None` means the format of the output file's extension, or a table.
    pub format: Option<Format>,
    /// `None` is stdout.
    pub output: Option<Output>,
    pub params: BTreeMap<String, ScalarValue>,
    /// Format and dialect of the files of `--table`.
    pub input: files::Options,
    /// Maximum number of table rows; 0 means unlimited.
    pub max_rows: usize,
    pub timer: bool,
    pub timeout: Option<Duration>,
    /// True to show plans instead of rows.
    pub explain: bool,
}

/// A session and its output settings.
pub struct Runner {
    pub ctx: SessionContext,
    pub files: Files,
    /// Views that fail to plan, with the reason.
    pub broken: BTreeMap<String, Fault>,
    /// Views already created, including broken ones. Views are created on demand, because most statements read only a
    /// few and planning is expensive.
    made: BTreeSet<String>,
    pub settings: Settings,
    /// True after a command that ends the shell.
    pub quit: bool,
    named: StoreArgs,
    store: Store,
    snapshot: Snapshot,
    sql: SqlArgs,
    terminal: Terminal,
    /// Number of results in the output file.
    results: usize,
    /// Position in the output before the current piece.
    before: Option<Mark>,
    /// True if statements run in this process and not on a cluster.
    here: bool,
    /// True in a shell: the output file is published after each piece instead of at the end.
    publish_each: bool,
    /// True after the store was found, or its absence reported.
    expected: bool,
    /// Callback that receives each definition of this session.
    on_definition: Option<OnDefinition>,
}

type OnDefinition = Box<dyn FnMut(&str) -> anyhow::Result<()> + Send>;

impl Runner {
    pub async fn open(
        named: StoreArgs,
        sql: SqlArgs,
        settings: Settings,
        limits: Limits,
        terminal: &Terminal,
    ) -> anyhow::Result<Self> {
        let files = sql.load()?;
        let store = Store::at(&named.store)?;
        let snapshot = store.snapshot()?;
        let here = limits.engine == Engine::Local;
        let limits = Limits { models: Some(store.clone()), ..limits };
        let ctx = engine::open_without_views(&snapshot, &files, limits)?;
        Ok(Self {
            ctx,
            files,
            broken: BTreeMap::new(),
            made: BTreeSet::new(),
            settings,
            quit: false,
            named,
            store,
            snapshot,
            sql,
            terminal: terminal.clone(),
            results: 0,
            before: None,
            here,
            publish_each: false,
            expected: false,
            on_definition: None,
        })
    }

    /// Calls `told` with each statement or dot command that defines something. Replaying them restores the session's
    /// state.
    pub fn on_definition(&mut self, told: impl FnMut(&str) -> anyhow::Result<()> + Send + 'static) {
        self.on_definition = Some(Box::new(told));
    }

    /// Reports a statement or dot command that defines something.
    pub fn defined(&mut self, text: &str) -> anyhow::Result<()> {
        self.on_definition.as_mut().map_or(Ok(()), |told| told(text))
    }

    /// Recreates views if the store or the SQL files have changed.
    pub async fn refresh(&mut self) -> anyhow::Result<()> {
        let (files, snapshot) = (self.sql.load()?, self.store.snapshot()?);
        if files != self.files || snapshot.files != self.snapshot.files {
            for view in self.files.views() {
                self.ctx.deregister_table(view.name.as_str())?;
            }
            engine::renew(&self.ctx, &snapshot, (&self.files, &files))?;
            (self.files, self.snapshot) = (files, snapshot);
            (self.made, self.broken) = (BTreeSet::new(), BTreeMap::new());
            self.make_views().await;
        }
        Ok(())
    }

    /// Creates all views.
    pub async fn make_views(&mut self) {
        let wanted = self.files.views().iter().map(|view| view.name.clone()).collect();
        self.make(wanted).await;
    }

    async fn make(&mut self, wanted: BTreeSet<String>) {
        let missing = |view: &&View| wanted.contains(&view.name) && !self.made.contains(&view.name);
        engine::add_what_plans(&self.ctx, self.files.views().iter().filter(missing), &mut self.broken).await;
        self.made.extend(wanted);
    }

    /// Creates the views that a statement reads and their dependencies. Creates all views if the statement names an
    /// unknown table, which may be a typing error, or if it is not a query, because it may list tables.
    async fn make_views_for(&mut self, statement: &Statement) {
        let query = matches!(statement, Statement::Statement(inner) if matches!(**inner, ast::Statement::Query(_)));
        let Some(mut waiting) = query.then(|| sql::tables_of(statement).ok()).flatten() else {
            return self.make_views().await;
        };
        let tables = engine::tables(&self.ctx);
        let functions = self.ctx.state().table_functions().clone();
        let mut wanted = BTreeSet::new();
        while let Some(name) = waiting.pop_first() {
            match self.files.view(&name) {
                Some(view) if wanted.insert(view.name.clone()) => waiting.extend(view.reads().iter().cloned()),
                Some(_) => {}
                None if tables.contains(&name) || functions.contains_key(&name) => {}
                None => return self.make_views().await,
            }
        }
        self.make(wanted).await;
    }

    /// Adds a file as a table. `asked` is the flag or command, for messages.
    pub async fn add_table(&self, asked: &str, table: &TableFile) -> anyhow::Result<()> {
        if self.files.view(&table.name).is_some() {
            anyhow::bail!("{asked} {0}: there is a table or view {0} already; choose another name", table.name);
        }
        // Executors open files by themselves, and object stores have no local path.
        let added = match self.here && tercile_store::scheme(&table.path).is_none() {
            true => engine::add_local_file(&self.ctx, &table.name, &table.path, &self.settings.input).await,
            false => engine::add_file(&self.ctx, &table.name, &table.path).await,
        };
        added.with_context(|| format!("{asked} {}", table.name))
    }

    /// The store, and its files when the session began or was renewed.
    pub fn data(&self) -> (&Store, &Snapshot) {
        (&self.store, &self.snapshot)
    }

    /// Redirects results to `file` and finishes the previous output file.
    pub fn write_to(&mut self, file: Option<&OutputFile>) -> anyhow::Result<()> {
        if let Some(file) = file {
            file.format(self.settings.format)?;
        }
        let output = file.map(OutputFile::open).transpose()?;
        self.finish()?;
        (self.settings.output, self.before) = (output, None);
        Ok(())
    }

    /// Redirects results to stdout; returns the previous output file.
    pub fn write_to_screen(&mut self) -> Option<OutputFile> {
        (self.results, self.before) = (0, None);
        self.settings.output.take()?.named().cloned()
    }

    /// Publishes the output file after each piece, because a shell may stay open indefinitely.
    pub fn publish_each(&mut self) {
        self.publish_each = true;
    }

    /// The format of results.
    fn format(&self) -> Format {
        let named = self.settings.output.as_ref().and_then(Output::named);
        let by_name = || named.and_then(|file| file.format(None).ok().flatten());
        self.settings.format.or_else(by_name).unwrap_or(Format::Table)
    }

    /// Sets the format of results.
    ///
    /// # Errors
    /// If the output file's extension stands for another format.
    pub fn set_format(&mut self, format: Format) -> Result<(), Usage> {
        if let Some(file) = self.settings.output.as_ref().and_then(Output::named) {
            file.format(Some(format))?;
        }
        self.settings.format = Some(format);
        Ok(())
    }

    /// Commits the output file; later results go to stdout.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        let (results, output) = (std::mem::take(&mut self.results), self.settings.output.take());
        let Some(output) = output else { return Ok(()) };
        if let Some(file) = output.named().filter(|_| results == 0 && output.is_untouched()) {
            tracing::warn!("no statement gave rows: nothing was written to {}", file.path().display());
            return Ok(());
        }
        Ok(output.commit()?)
    }

    /// Rolls back the output of a piece that failed or was cancelled.
    pub fn take_back(&mut self) -> io::Result<()> {
        match (self.before.take(), &self.settings.output) {
            (Some(before), Some(output)) => output.back_to(before),
            _ => Ok(()),
        }
    }

    /// Begins a piece; returns the number of results before it.
    pub fn begin(&mut self) -> io::Result<usize> {
        self.before = self.settings.output.as_mut().map(Output::begin).transpose()?;
        Ok(self.results)
    }

    /// Publishes the output of a piece in a shell. `results` is the number of results before the piece.
    pub fn complete(&mut self, results: usize) -> io::Result<()> {
        if let (Some(before), Some(output)) = (self.before.take(), &mut self.settings.output)
            && self.publish_each
            && (self.results > results || output.mark()? != before)
        {
            return output.publish();
        }
        Ok(())
    }

    /// Runs a statement and prints its result.
    pub async fn statement(&mut self, source: &Source<'_>, piece: &Piece<'_>) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut statement = sql::parse(source, piece)?;
        let hint = |name: &str| format!("add --param {name}=VALUE (.param in a shell)");
        let params = params_of(source, piece, &self.settings.params, hint)?;
        self.make_views_for(&statement).await;
        self.check_reads(&statement)?;
        let copying = Copying::redirect(&mut statement, self.here)?;
        let defines = defines(&statement);
        let explained = self.settings.explain || matches!(statement, Statement::Explain(_));
        let query = matches!(&statement, Statement::Statement(inner) if matches!(**inner, ast::Statement::Query(_)));
        let cap =
            (query && self.format() == Format::Table && self.settings.max_rows > 0).then_some(self.settings.max_rows);
        let (explain, limit) = (self.settings.explain, cap.map(|cap| cap + 1));
        let work = Work { statement, params, explain, limit, read_only: false };
        let timeout = self.settings.timeout;
        let too_slow = |limit: Duration| -> anyhow::Error {
            source.fault(piece.place, format!("stopped after {limit:?}, which is what --timeout allows")).into()
        };
        let _armed = timeout.map(|limit| {
            let error = too_slow(limit);
            watchdog::deadline(limit, move || say(&error))
        });
        let shown = async {
            let blame = |e: DataFusionError| self.blame(source, piece, &e);
            let ready = apart(prepare(self.ctx.clone(), work)).await?.map_err(blame)?;
            if explained && self.format() == Format::Table {
                return self.show_plan(ready).await.map_err(|e| on_error(e, blame));
            }
            self.show(ready, cap).await.map_err(|e| on_error(e, blame))
        };
        let shown = match timeout {
            None => shown.await,
            Some(limit) => match tokio::time::timeout(limit, shown).await {
                Ok(shown) => shown,
                Err(_) => Err(too_slow(limit)),
            },
        }?;
        if let Some(copying) = copying {
            copying.finish()?;
        }
        if defines {
            self.defined(&format!("{};", piece.text))?;
        }
        self.results += usize::from(shown.is_some());
        let mut notes = Vec::new();
        match &shown {
            Some(Shown { rows, more: true, .. }) => notes.push(format!("the first {}", count(*rows, "row"))),
            Some(Shown { rows, .. }) if self.settings.timer => notes.push(count(*rows, "row")),
            _ => {}
        }
        if self.settings.timer {
            notes.push(format!("{:.3} s", began.elapsed().as_secs_f64()));
        }
        if let Some(shown) = shown {
            if shown.more {
                notes.push("--max-rows 0, or .rows 0 in a shell, shows all".to_owned());
            }
            notes.extend(shown.note);
        }
        if !notes.is_empty() {
            eprintln!("({})", notes.join("; "));
        }
        Ok(())
    }

    /// A statement that reads a broken view fails with that view's fault. A statement that reads a missing store fails if the store was
    /// named, and otherwise succeeds with a warning.
    fn check_reads(&mut self, statement: &Statement) -> anyhow::Result<()> {
        let reads: BTreeSet<String> = sql::tables_of(statement).unwrap_or_default();
        if let Some(fault) = reads.iter().find_map(|name| self.broken.get(name)) {
            return Err(fault.clone().into());
        }
        let ours = |name: &String| name == sql::RECORDS || self.files.view(name).is_some();
        if !self.expected && reads.iter().any(ours) {
            self.named.expect(&self.store)?;
            self.expected = true;
        }
        Ok(())
    }

    fn blame(&self, source: &Source<'_>, piece: &Piece<'_>, error: &DataFusionError) -> anyhow::Error {
        if let DataFusionError::ResourcesExhausted(why) = error.find_root() {
            let why = why.split(" with top memory consumers").next().unwrap_or_default();
            let why = format!("the query needs more memory than --memory-limit allows ({})", sql::one_line(why));
            return source.fault(piece.place, why).into();
        }
        source.blame(piece, error, &engine::tables(&self.ctx)).into()
    }
}

/// True if a statement changes the session, as opposed to reading or writing data.
fn defines(statement: &Statement) -> bool {
    use ast::Statement::{Analyze, Copy, Delete, Explain, ExplainTable, Insert, Query, ShowTables, Update};
    match statement {
        Statement::Statement(inner) => !matches!(
            **inner,
            Query(_)
                | Insert(_)
                | Update { .. }
                | Delete(_)
                | Copy { .. }
                | Explain { .. }
                | ExplainTable { .. }
                | ShowTables { .. }
                | Analyze { .. }
        ),
        Statement::CopyTo(_) | Statement::Explain(_) => false,
        _ => true,
    }
}
