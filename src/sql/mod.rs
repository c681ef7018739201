//! The SQL files: which there are, what they are called, and what they stand on.
//!
//! Input: a directory, or the files inside the binary. Output: the declared fields, and views in name order. Cleaning,
//! slicing and features are written in those files and nowhere else; the engine room runs them.

pub mod header;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use datafusion::common::TableReference;
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast;
use sha2::{Digest, Sha256};

use crate::record::Fields;
use crate::rows::hex;
use header::Header;

/// The files of `sql/`, inside the binary.
const SHIPPED: [(&str, &str); 7] = [
    ("00_records.sql", include_str!("../../sql/00_records.sql")),
    ("10_products.sql", include_str!("../../sql/10_products.sql")),
    ("20_slices.sql", include_str!("../../sql/20_slices.sql")),
    ("30_price_rating.sql", include_str!("../../sql/30_price_rating.sql")),
    ("31_rating_count.sql", include_str!("../../sql/31_rating_count.sql")),
    ("32_discount.sql", include_str!("../../sql/32_discount.sql")),
    ("40_categories.sql", include_str!("../../sql/40_categories.sql")),
];

/// The name of the table that all else stands on.
pub const RECORDS: &str = "records";

/// What is wrong with the SQL files. `file` is a path, or a name with "built-in" before it.
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
    #[error("{file}, line {line}: {why}")]
    Header { file: String, line: usize, why: String },
    #[error("{file}: {why}")]
    Sql { file: String, why: String },
}

/// One view.
#[derive(Debug, Clone)]
pub struct View {
    /// The file's name without its number and ending.
    pub name: String,
    /// The file as errors name it.
    pub file: String,
    pub text: String,
    pub header: Header,
    /// The tables and views it reads.
    reads: BTreeSet<String>,
}

/// A view that makes clusters, with what its columns say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segmentation {
    pub name: String,
    /// The file as errors name it.
    pub file: String,
    /// The number of clusters.
    pub k: usize,
    /// Its columns beside the keys, in their order.
    pub features: Vec<String>,
    /// Feature to language to words, from low to high.
    pub labels: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// SHA-256 of the SQL that decides its rows.
    pub sql_hash: String,
}

/// All files of a directory.
#[derive(Debug, Clone)]
pub struct Files {
    pub fields: Fields,
    records: String,
    views: Vec<View>,
}

impl Files {
    /// The files of `dir` if one is given, else those of `sql/` if it is there, else those inside the binary.
    pub fn load(dir: Option<&Path>) -> Result<Self, Error> {
        match dir {
            Some(dir) => Self::read(dir),
            None if Path::new("sql").is_dir() => Self::read(Path::new("sql")),
            None => Self::shipped(),
        }
    }

    /// The files inside the binary.
    pub fn shipped() -> Result<Self, Error> {
        Self::parse(SHIPPED.iter().map(|(name, text)| File {
            name: (*name).to_owned(),
            shown: format!("built-in {name}"),
            text: (*text).to_owned(),
        }))
        .map(|files| files.unwrap_or_else(|| unreachable!("00_records.sql is shipped")))
    }

    fn read(dir: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: dir.to_owned(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.ends_with(".sql") && !name.starts_with('.') {
                let text = fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
                files.push(File { name: name.to_owned(), shown: path.display().to_string(), text });
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Self::parse(files.into_iter())?.ok_or_else(|| Error::NoRecords { dir: dir.to_owned() })
    }

    fn parse(files: impl Iterator<Item = File>) -> Result<Option<Self>, Error> {
        let mut declared = None;
        let mut views: Vec<View> = Vec::new();
        for File { name, shown, text } in files {
            let text = text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned);
            let view = view_name(&name).ok_or_else(|| Error::Name { file: shown.clone() })?.to_owned();
            let taken = views.iter().any(|v| v.name == view) || (view == RECORDS && declared.is_some());
            if taken {
                return Err(Error::Twice { file: shown, view });
            }
            let header =
                header::parse(&text).map_err(|f| Error::Header { file: shown.clone(), line: f.line, why: f.why })?;
            let statement = one_statement(&text).map_err(|why| Error::Sql { file: shown.clone(), why })?;
            if view == RECORDS {
                let fields = fields_of(&statement).map_err(|why| Error::Sql { file: shown, why })?;
                declared = Some((fields, text));
                continue;
            }
            let reads = reads(&statement).map_err(|why| Error::Sql { file: shown.clone(), why })?;
            views.push(View { name: view, file: shown, text, header, reads });
        }
        Ok(declared.map(|(fields, records)| Self { fields, records, views }))
    }

    /// The views, in name order.
    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// The views that are segmentations, in name order.
    pub fn segmentations(&self) -> impl Iterator<Item = (&View, usize)> {
        self.views.iter().filter_map(|view| view.header.k.map(|k| (view, k)))
    }

    /// SHA-256, in hex, of a view's text and of all that it stands on: what decides the rows it gives.
    pub fn hash(&self, view: &str) -> String {
        let mut wanted = BTreeSet::from([view.to_owned()]);
        let mut hasher = Sha256::new();
        // A view only reads what comes before it, so one walk from the last to the first finds all.
        for view in self.views.iter().rev() {
            if wanted.contains(&view.name) {
                wanted.extend(view.reads.iter().cloned());
                hasher.update(&view.text);
                hasher.update([0]);
            }
        }
        hasher.update(&self.records);
        hex(&hasher.finalize())
    }
}

struct File {
    name: String,
    shown: String,
    text: String,
}

/// `10_products.sql` is the view `products`.
fn view_name(file: &str) -> Option<&str> {
    let (number, name) = file.strip_suffix(".sql")?.split_once('_')?;
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let fine = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase()) && name.bytes().all(word);
    (digits && fine).then_some(name)
}

fn one_statement(text: &str) -> Result<Statement, String> {
    let mut statements = DFParser::parse_sql(text).map_err(|e| one_line(&e.to_string()))?;
    match (statements.pop_front(), statements.len()) {
        (Some(statement), 0) => Ok(statement),
        (None, _) => Err("it holds no statement".to_owned()),
        (Some(_), more) => Err(format!("it must hold one statement, and holds {}", more + 1)),
    }
}

/// The columns of the `CREATE TABLE` in `00_records.sql`.
fn fields_of(statement: &Statement) -> Result<Fields, String> {
    let table = match statement {
        Statement::Statement(inner) => match inner.as_ref() {
            ast::Statement::CreateTable(table) => table,
            _ => return Err("it must be a CREATE TABLE records (…)".to_owned()),
        },
        _ => return Err("it must be a CREATE TABLE records (…)".to_owned()),
    };
    if table.name.to_string() != RECORDS {
        return Err(format!("the table must be called records, not {}", table.name));
    }
    let mut names: Vec<String> = Vec::new();
    for column in &table.columns {
        let name = match column.name.quote_style {
            Some(_) => column.name.value.clone(),
            None => column.name.value.to_lowercase(),
        };
        let text =
            matches!(column.data_type, ast::DataType::Text | ast::DataType::Varchar(_) | ast::DataType::String(_));
        if !text {
            return Err(format!("the field {name} must be TEXT: values are kept as they come, and typed by the views"));
        }
        if name.starts_with('_') {
            return Err(format!("the field {name} begins with _, which is where the store's own columns live"));
        }
        if names.contains(&name) {
            return Err(format!("the field {name} stands twice"));
        }
        names.push(name);
    }
    if names.is_empty() {
        return Err("it declares no fields".to_owned());
    }
    Ok(Fields::new(names))
}

fn reads(statement: &Statement) -> Result<BTreeSet<String>, String> {
    match statement {
        Statement::Statement(inner) if matches!(inner.as_ref(), ast::Statement::Query(_)) => {}
        _ => return Err("a view must be one SELECT".to_owned()),
    }
    let (tables, _) = resolve_table_references(statement, true).map_err(|e| one_line(&e.to_string()))?;
    Ok(tables.iter().map(TableReference::table).map(str::to_owned).collect())
}

/// A message without its line ends, for the one line that users get.
pub fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    const RECORDS_SQL: (&str, &str) = ("00_records.sql", "CREATE TABLE records (a TEXT, \"B\" VARCHAR)");

    fn fault(files: &[(&str, &str)]) -> String {
        Files::load(Some(write(files).path())).unwrap_err().to_string().split('/').next_back().unwrap().to_owned()
    }

    #[test]
    fn shipped_files_are_those_of_the_directory() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
        let mut there: Vec<_> =
            fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        there.sort();
        assert_eq!(there, SHIPPED.map(|(name, _)| name));
        let (read, shipped) = (Files::load(Some(&dir)).unwrap(), Files::shipped().unwrap());
        assert_eq!(read.fields, shipped.fields);
        assert_eq!(read.hash("discount"), shipped.hash("discount"));
        let segmentations: Vec<_> = shipped.segmentations().map(|(view, k)| (view.name.as_str(), k)).collect();
        assert_eq!(segmentations, [("price_rating", 3), ("rating_count", 3), ("discount", 3)]);
    }

    #[test]
    fn a_hash_covers_what_a_view_stands_on_and_nothing_else() {
        let files = |report: &str, base: &str| {
            let dir =
                write(&[RECORDS_SQL, ("10_base.sql", base), ("30_s.sql", "SELECT * FROM base"), ("40_r.sql", report)]);
            Files::load(Some(dir.path())).unwrap().hash("s")
        };
        let one = files("SELECT 1", "SELECT a FROM records");
        assert_eq!(one, files("SELECT 2", "SELECT a FROM records"));
        assert_ne!(one, files("SELECT 1", "SELECT 'x' FROM records"));
    }

    #[test]
    fn fields_are_declared() {
        let dir = write(&[RECORDS_SQL]);
        assert_eq!(Files::load(Some(dir.path())).unwrap().fields.names(), ["a", "B"]);
        assert!(fault(&[("00_records.sql", "CREATE TABLE records (a INT)")]).contains("the field a must be TEXT"));
        assert!(fault(&[("00_records.sql", "CREATE TABLE records (_a TEXT)")]).contains("begins with _"));
        assert!(fault(&[("00_records.sql", "CREATE TABLE records (a TEXT, A TEXT)")]).contains("stands twice"));
        assert!(fault(&[("00_records.sql", "SELECT 1")]).contains("must be a CREATE TABLE"));
        assert!(fault(&[("10_x.sql", "SELECT 1")]).contains("holds no 00_records.sql"));
    }

    #[test]
    fn faults_name_the_file() {
        assert!(fault(&[RECORDS_SQL, ("x.sql", "SELECT 1")]).starts_with("x.sql: a SQL file is called"));
        assert!(fault(&[RECORDS_SQL, ("10_X.sql", "SELECT 1")]).starts_with("10_X.sql: a SQL file is called"));
        assert!(fault(&[RECORDS_SQL, ("10_a.sql", "SELECT 1"), ("11_a.sql", "SELECT 1")]).starts_with("11_a.sql"));
        assert!(fault(&[RECORDS_SQL, ("10_a.sql", "SELEC 1")]).starts_with("10_a.sql: "));
        assert!(fault(&[RECORDS_SQL, ("10_a.sql", "SELECT 1; SELECT 2")]).contains("holds 2"));
        assert!(fault(&[RECORDS_SQL, ("10_a.sql", "DROP TABLE records")]).contains("must be one SELECT"));
        assert!(
            fault(&[RECORDS_SQL, ("10_a.sql", "-- kk: 1\n\nSELECT 1")]).starts_with("10_a.sql, line 1: unknown key")
        );
    }
}
