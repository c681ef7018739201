//! The SQL files (files.rs): views, segmentations, and statements in general.
//!
//! Cleaning, slicing and features are defined only in these files; the module `engine` executes them.

pub mod column_names;
pub mod depth;
mod dialect;
mod engine_errors;
pub mod fault;
mod fields;
mod files;
mod from_first;
pub mod guard;
pub mod header;
pub mod infer;
pub mod language;
mod other_dialects;
pub mod piece;
mod quoting;
pub mod reference;
pub mod script;
mod timestamp;
mod unsupported;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use datafusion::common::TableReference;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::Tokenizer;
use fault::{Fault, Source};
pub use files::Files;
use guard::Guard;
use header::Header;
use language::Labels;
use piece::Piece;
pub use quoting::{identifier, literal, one_line, quote};
use tercile_kmeans::features::scaling::Scaling;

/// The name of the base table.
pub const RECORDS: &str = "records";

/// Recursion limit of the parser, greater than any nesting that passes [`depth::check`].
pub const RECURSION: usize = 512;

/// An error in the SQL files. `file` is a path, or a name preceded by "built-in".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the SQL files in {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{dir} holds no 00_records.sql, which declares the fields", dir = dir.display())]
    NoRecords { dir: PathBuf },
    #[error("{file}: a SQL file is called NN_name.sql, with digits, then a name of a-z, 0-9 and _")]
    Name { file: String },
    #[error("{file}: the view {view} is there already")]
    Twice { file: String, view: String },
    #[error(
        "{file}: a reference table is called name.csv or name.parquet, with a name of a-z, 0-9 and _; rename the file, or move it \
         elsewhere"
    )]
    ReferenceName { file: String },
    #[error("{file}: there is a view or table {name} already; rename the file")]
    ReferenceTwice { file: String, name: String },
    #[error("{0}")]
    Sql(#[source] Fault),
}

/// A view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The file name without its number and extension.
    pub name: String,
    /// The file's name in error messages.
    pub file: String,
    pub text: String,
    pub header: Header,
    /// The tables and views that it reads.
    reads: BTreeSet<String>,
}

impl View {
    /// The tables and views that it reads.
    pub fn reads(&self) -> &BTreeSet<String> {
        &self.reads
    }

    /// Its text, for error messages.
    pub fn source(&self) -> Source<'_> {
        Source { name: Some(&self.file), text: &self.text }
    }

    /// Its statement within the text.
    pub fn piece(&self) -> Result<Piece<'_>, Fault> {
        files::one_piece(&self.source())
    }
}

/// A view that defines clusters, with the metadata of its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segmentation {
    pub name: String,
    /// The file's name in error messages.
    pub file: String,
    /// The number of clusters.
    pub k: usize,
    /// The key columns of its entities; empty for a segmentation of records.
    pub entity: Vec<String>,
    /// Its columns except the keys, in order.
    pub features: Vec<String>,
    /// Per feature and language: words from low to high.
    pub labels: Labels,
    /// What a new model must keep to serve without an operator's decision.
    pub guard: Guard,
    /// How each feature is scaled, in their order.
    pub scaling: Vec<Scaling>,
    /// Of each feature: the line of the header that scales it, if there is one.
    pub scaling_lines: Vec<Option<usize>>,
    /// Properties of its SQL that may make models of entities irreproducible.
    pub warnings: Vec<String>,
    /// SHA-256 of the SQL that determines its rows.
    pub sql_hash: String,
}

/// Parses a statement, unless it is nested too deeply.
pub fn parse(source: &Source<'_>, piece: &Piece<'_>) -> Result<Statement, Fault> {
    depth::check(piece.text).map_err(|(place, why)| source.fault(place.within(piece.place), why))?;
    let blame = |e| source.blame(piece, &e, &[]);
    let tokens = Tokenizer::new(&GenericDialect {}, piece.text).tokenize_with_location();
    let mut tokens = tokens.map_err(|e| blame(ParserError::from(e).into()))?;
    from_first::complete(&mut tokens);
    dialect::adapt_tokens(&mut tokens);
    let mut parser = DFParserBuilder::new(tokens).with_recursion_limit(RECURSION).build().map_err(blame)?;
    let mut statements = parser.parse_statements().map_err(blame)?;
    match (statements.pop_front(), statements.len()) {
        (Some(mut statement), 0) => {
            dialect::adapt(&mut statement);
            unsupported::check(&statement).map_err(|(word, why)| {
                let place = Source { name: None, text: piece.text }
                    .place_of(word)
                    .map_or(piece.place, |place| place.within(piece.place));
                source.fault(place, why)
            })?;
            Ok(statement)
        }
        _ => Err(source.fault(piece.place, "expected one statement")),
    }
}

fn reads(statement: &Statement) -> Result<BTreeSet<String>, String> {
    match statement {
        Statement::Statement(inner) if matches!(inner.as_ref(), ast::Statement::Query(_)) => tables_of(statement),
        _ => Err("a view must be one SELECT".to_owned()),
    }
}

/// The tables and views that a statement reads.
pub fn tables_of(statement: &Statement) -> Result<BTreeSet<String>, String> {
    let (tables, _) = resolve_table_references(statement, true).map_err(|e| one_line(&e.to_string()))?;
    Ok(tables.iter().map(TableReference::table).map(str::to_owned).collect())
}

/// Whether a name can be that of a view or of a reference table.
fn is_view_name(name: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    name.bytes().next().is_some_and(|b| b.is_ascii_lowercase()) && name.bytes().all(word)
}
