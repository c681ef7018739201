//! The SQL files: their list, names and dependencies.
//!
//! Input: a directory, or the built-in files. Output: the declared fields, and views in the order of their names.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tercile_store::event_time::EventTime;
use tercile_store::record::Fields;

use super::fault::{Fault, Source};
use super::fields::fields_of;
use super::header::{self, Header};
use super::piece::{Piece, Place};
use super::reference::{self, Reference};
use super::script;
use super::timestamp::Timestamp;
use super::{Error, RECORDS, View, is_view_name, parse, reads};
use crate::printable::hex;

/// The files of `sql/`, included in the binary.
pub(super) const SHIPPED: [(&str, &str); 7] = [
    ("00_records.sql", include_str!("../../sql/00_records.sql")),
    ("10_products.sql", include_str!("../../sql/10_products.sql")),
    ("20_slices.sql", include_str!("../../sql/20_slices.sql")),
    ("30_price_rating.sql", include_str!("../../sql/30_price_rating.sql")),
    ("31_rating_count.sql", include_str!("../../sql/31_rating_count.sql")),
    ("32_discount.sql", include_str!("../../sql/32_discount.sql")),
    ("40_categories.sql", include_str!("../../sql/40_categories.sql")),
];

/// All SQL files of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    pub fields: Fields,
    timestamp: Option<Timestamp>,
    records: String,
    views: Vec<View>,
    /// All files, unparsed.
    read: Vec<File>,
    /// The reference tables, in the order of their names.
    pub references: Vec<Reference>,
}

impl Files {
    /// The files of `dir` if given, otherwise those of `sql/` if it exists, otherwise the built-in files.
    ///
    /// # Errors
    /// If a file cannot be read or does not parse.
    pub fn load(dir: Option<&Path>) -> Result<Self, Error> {
        match dir {
            Some(dir) => Self::read(dir),
            None if Path::new("sql").is_dir() => Self::read(Path::new("sql")),
            None => Self::shipped(),
        }
    }

    /// The built-in files.
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
        let (mut files, mut references) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if reference::is_reference(&path) {
                references.push(path);
                continue;
            }
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.ends_with(".sql") && !name.starts_with('.') {
                let text = fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
                files.push(File { name: name.to_owned(), shown: path.display().to_string(), text });
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let files = Self::parse(files.into_iter())?.ok_or_else(|| Error::NoRecords { dir: dir.to_owned() })?;
        let references = reference::read(references, |name| name == RECORDS || files.view(name).is_some())?;
        Ok(Self { references, ..files })
    }

    fn parse(files: impl Iterator<Item = File>) -> Result<Option<Self>, Error> {
        let mut declared = None;
        let mut views: Vec<View> = Vec::new();
        let mut read = Vec::new();
        for file in files {
            read.push(file.clone());
            let File { name, shown, text } = file;
            let text = text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned);
            let view = view_name(&name).ok_or_else(|| Error::Name { file: shown.clone() })?.to_owned();
            let taken = views.iter().any(|v| v.name == view) || (view == RECORDS && declared.is_some());
            if taken {
                return Err(Error::Twice { file: shown, view });
            }
            let source = Source { name: Some(&shown), text: &text };
            let parse_header = if view == RECORDS { header::parse_records } else { header::parse };
            let header =
                parse_header(&text).map_err(|f| Error::Sql(source.fault(Place { line: f.line, column: 1 }, f.why)))?;
            if view != RECORDS && header == Header::default() && is_comment(&text) {
                continue;
            }
            let piece = one_piece(&source).map_err(Error::Sql)?;
            let statement = parse(&source, &piece).map_err(Error::Sql)?;
            if view == RECORDS {
                let fields = fields_of(&source, &piece, &statement).map_err(Error::Sql)?;
                let timestamp = match &header.timestamp {
                    Some((value, line)) => Some(
                        Timestamp::of(value, &fields)
                            .map_err(|why| Error::Sql(source.fault(Place { line: *line, column: 1 }, why)))?,
                    ),
                    None => None,
                };
                declared = Some((fields, timestamp, text));
                continue;
            }
            let reads = reads(&statement).map_err(|why| Error::Sql(source.fault(piece.place, why)))?;
            views.push(View { name: view, file: shown, text, header, reads });
        }
        Ok(declared.map(|(fields, timestamp, records)| {
            let references = Vec::new();
            Self { fields, timestamp, records, views, read, references }
        }))
    }

    /// The views, in the order of their names.
    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// The field that gives the time of a record, if `00_records.sql` names one.
    pub fn event_time(&self) -> Option<EventTime> {
        self.timestamp?.event_time(&self.fields)
    }

    /// The view with this name.
    pub fn view(&self, name: &str) -> Option<&View> {
        self.views.iter().find(|view| view.name == name)
    }

    /// The views that are segmentations, in the order of their names.
    pub fn segmentations(&self) -> impl Iterator<Item = (&View, usize)> {
        self.views.iter().filter_map(|view| view.header.k.map(|k| (view, k)))
    }

    /// These files without and with an edited file, and the name of its view. If the edited file is one of the loaded
    /// files, it is compared with the built-in file of the same name.
    pub fn with_edited(&self, path: &Path) -> Result<(Self, Self, String), Error> {
        let shown = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let view = view_name(&name).filter(|view| *view != RECORDS).map(str::to_owned);
        let view = view.ok_or_else(|| Error::Name { file: shown.clone() })?;
        let same = |file: &File| match (fs::canonicalize(&file.shown), fs::canonicalize(path)) {
            (Ok(a), Ok(b)) => a == b,
            _ => false,
        };
        let shipped = SHIPPED.iter().find(|(shipped, _)| *shipped == name);
        let before = match (self.read.iter().any(same), shipped) {
            (true, Some((_, text))) => {
                self.with(File { shown: format!("built-in {name}"), name: name.clone(), text: (*text).to_owned() })?
            }
            _ => self.clone(),
        };
        let after = self.with(File { name, shown, text })?;
        Ok((before, after, view))
    }

    /// These files, with one file added or replaced.
    fn with(&self, file: File) -> Result<Self, Error> {
        let mut files: Vec<File> = self.read.iter().filter(|read| read.name != file.name).cloned().collect();
        files.push(file);
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let files = Self::parse(files.into_iter())?.unwrap_or_else(|| self.clone());
        Ok(Self { references: self.references.clone(), ..files })
    }

    /// SHA-256, in hex, of a view's text and of all its dependencies, reference tables included. The hash determines the view's rows, which
    /// guard rules do not change.
    pub fn hash(&self, view: &str) -> String {
        let mut wanted = BTreeSet::from([view.to_owned()]);
        let mut hasher = Sha256::new();
        // A view reads only earlier views, so one backward pass finds all dependencies.
        for view in self.views.iter().rev() {
            if wanted.contains(&view.name) {
                wanted.extend(view.reads.iter().cloned());
                header::without_guard(&view.text).for_each(|line| hasher.update(line));
                hasher.update([0]);
            }
        }
        hasher.update(&self.records);
        for reference in self.references.iter().filter(|reference| wanted.contains(&reference.name)) {
            hasher.update([0]);
            hasher.update(&reference.name);
            hasher.update([0]);
            hasher.update(&reference.hash);
        }
        hex(&hasher.finalize())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    name: String,
    shown: String,
    text: String,
}

/// `10_products.sql` is the view `products`.
fn view_name(file: &str) -> Option<&str> {
    let (number, name) = file.strip_suffix(".sql")?.split_once('_')?;
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (digits && is_view_name(name)).then_some(name)
}

/// Whether a text is a comment and nothing else. Such a file without a header is not used: `init` writes a segmentation in this form.
fn is_comment(text: &str) -> bool {
    let script = script::split(text);
    script.pieces.is_empty() && !script.open && !text.trim().is_empty()
}

/// The single statement of one of these files.
pub(super) fn one_piece<'a>(source: &Source<'a>) -> Result<Piece<'a>, Fault> {
    let pieces = script::complete(source)?.pieces;
    match pieces.as_slice() {
        [] => Err(source.fault_somewhere("it holds no statement")),
        [piece] if piece.dot => Err(source.fault(piece.place, "a dot command is no SQL; it is for the shell")),
        [piece] => Ok(*piece),
        [_, second, ..] => {
            let why = format!("it must hold one statement, and holds {}", pieces.len());
            Err(source.fault(second.place, why))
        }
    }
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
        assert!(fault(&[RECORDS_SQL, ("10_a.sql", "SELEC 1")]).starts_with("10_a.sql, line 1, column 1: "));
        assert!(fault(&[RECORDS_SQL, ("10_a.sql", "SELECT 1; SELECT 2")]).contains("holds 2"));
        assert!(fault(&[RECORDS_SQL, ("10_a.sql", "DROP TABLE records")]).contains("must be one SELECT"));
        assert!(
            fault(&[RECORDS_SQL, ("10_a.sql", "-- kk: 1\n\nSELECT 1")])
                .starts_with("10_a.sql, line 1, column 1: unknown key")
        );
    }
}
