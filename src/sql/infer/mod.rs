//! Generates initial SQL files for records of any kind.
//!
//! Input: the first records of a topic or file. Output: `00_records.sql` with every field, `10_….sql` with a type for
//! each field inferred from its values, `20_slices.sql`, and a segmentation as a comment. The user edits them further.

mod column;
mod entity;
mod features;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

pub use column::MISSING;
use column::{Column, Kind, Mark};
pub use entity::Observed;
use serde_json::value::RawValue;
use tercile_kmeans::MAX_FEATURES;
use tercile_store::{json_text, record};

use super::files::SHIPPED;
use super::{RECORDS, identifier, literal};
use crate::files::fields;
use crate::printable::{is_unsafe, printable};

/// Maximum depth of nested fields that become columns, and maximum number of them.
const DEPTH: usize = 5;
const NESTED: usize = 200;
/// Names that a feature may not have, because they are columns of the answers.
const ANSWERS: [&str; 2] = ["cluster", "prediction"];

/// A field, or a field within a field, and what was seen of its values.
#[derive(Debug)]
struct Seen {
    path: Vec<String>,
    values: Column,
}

/// Fields inferred from the first records.
#[derive(Debug, Default)]
pub struct Inference {
    /// Top-level fields and nested ones, in the order of their first values.
    fields: Vec<Seen>,
    at: HashMap<Vec<String>, usize>,
    /// The user's texts for missing values, if there are some.
    missing: Option<Vec<String>>,
    entity: entity::Entity,
    /// The decimal mark, if the user names it.
    decimal: Option<char>,
    pub records: usize,
    pub unreadable: usize,
}

/// A column of the typed view.
struct Typed<'s> {
    name: String,
    /// The text of the value as SQL.
    text: String,
    kind: Kind,
    values: &'s Column,
    /// False for the text of a field as it came.
    nested: bool,
}

impl Inference {
    /// `missing`: the texts that stand for a missing value, instead of the usual ones.
    pub fn new(missing: Option<Vec<String>>) -> Self {
        Self { missing, ..Self::default() }
    }

    /// Names the fields of an entity's key, for a segmentation of entities.
    pub fn with_entity(self, names: Vec<String>) -> Self {
        Self { entity: entity::Entity::new(names), ..self }
    }

    /// Sets the decimal mark of numbers in text, which is inferred otherwise.
    #[must_use]
    pub fn with_decimal(self, decimal: Option<char>) -> Self {
        Self { decimal, ..self }
    }

    fn mark(&self) -> Mark {
        match self.decimal {
            Some(mark) => Mark::Given(mark),
            None if self.fields.iter().any(|field| field.values.shows_comma()) => Mark::CommaElsewhere,
            None => Mark::Open,
        }
    }

    /// Adds a record.
    pub fn see(&mut self, payload: &[u8]) {
        self.records += 1;
        self.entity.begin();
        match std::str::from_utf8(payload).ok().and_then(members) {
            Some(members) => self.see_object(&[], members),
            None => self.unreadable += 1,
        }
        self.entity.end();
    }

    fn see_object(&mut self, path: &[String], members: Vec<(Cow<'_, str>, &RawValue)>) {
        for (name, value) in members {
            let mut path = path.to_vec();
            path.push(name.into_owned());
            let nested = path.len() > 1;
            let at = match self.at.get(&path) {
                Some(at) => *at,
                None if nested && self.fields.iter().filter(|field| field.path.len() > 1).count() >= NESTED => continue,
                None => {
                    self.fields.push(Seen { path: path.clone(), values: Column::default() });
                    self.at.insert(path.clone(), self.fields.len() - 1);
                    self.fields.len() - 1
                }
            };
            let json = value.get();
            let text = match json.as_bytes().first() {
                Some(b'n') => continue,
                Some(b'"') => serde_json::from_str(json).unwrap_or_else(|_| json.to_owned()),
                _ => json.to_owned(),
            };
            self.fields[at].values.see(&text, self.missing.as_deref());
            if !self.missing.iter().flatten().any(|missing| *missing == text) {
                self.entity.see(&path, &text);
            }
            if json.starts_with('{')
                && path.len() < DEPTH
                && let Ok(members) = fields(json)
            {
                self.see_object(&path, members);
            }
        }
    }

    /// The fields that can be columns; the others stay in `_extra`.
    fn columns(&self) -> impl Iterator<Item = &Seen> {
        self.fields.iter().filter(|field| field.path.len() == 1 && why_no_column(&field.path[0]).is_none())
    }

    /// Fields that cannot be columns and stay in `_extra`, with the reason. The names are escaped for printing.
    pub fn left_in_extra(&self) -> impl Iterator<Item = (String, &'static str)> {
        let left = |field: &Seen| Some((printable(&field.path[0]).into_owned(), why_no_column(&field.path[0])?));
        self.fields.iter().filter(|field| field.path.len() == 1).filter_map(left)
    }

    /// Number of fields that can be columns.
    pub fn len(&self) -> usize {
        self.columns().count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The columns of the typed view: each field, followed by the fields within it.
    fn typed_columns(&self) -> Vec<Typed<'_>> {
        let mark = self.mark();
        let mut taken: HashSet<String> = self.columns().map(|field| field.path[0].clone()).collect();
        let mut columns = Vec::new();
        for field in self.columns() {
            let outer = identifier(&field.path[0]);
            // A key stays text: as a DOUBLE it would be no key, and a code would lose its zeros.
            let kind_of = |name: &str, values: &Column| match self.entity.has(name) {
                true => Kind::Text,
                false => values.kind(mark),
            };
            let kind = kind_of(&field.path[0], &field.values);
            columns.push(Typed {
                name: field.path[0].clone(),
                text: outer,
                kind,
                values: &field.values,
                nested: false,
            });
            let inner = |nested: &&Seen| nested.path.len() > 1 && nested.path[0] == field.path[0];
            for nested in self.fields.iter().filter(inner) {
                if nested.path.iter().any(|name| name.contains(is_unsafe)) {
                    continue;
                }
                let base = nested.path.join("_");
                let mut name = base.clone();
                for number in 2.. {
                    if taken.insert(name.clone()) {
                        break;
                    }
                    name = format!("{base}_{number}");
                }
                let kind = kind_of(&name, &nested.values);
                columns.push(Typed { name, text: path(&nested.path), kind, values: &nested.values, nested: true });
            }
        }
        columns
    }

    /// The names of the columns that are proposed as features, and the other columns of numbers with the reasons.
    pub fn features(&self) -> (Vec<String>, Vec<(String, &'static str)>) {
        let (mut proposed, mut others) = (Vec::new(), Vec::new());
        for column in self.typed_columns() {
            if matches!(column.kind, Kind::Number(_) | Kind::Integer(_)) {
                match features::unsuited(&column.name, column.values, &column.kind, self.records) {
                    Some(why) => others.push((column.name, why)),
                    None => proposed.push(column.name),
                }
            }
        }
        (proposed, others)
    }

    /// Values of the header line `-- timestamp:` for the fields that are times.
    pub fn times(&self) -> Vec<String> {
        let time = |column: Typed<'_>| match column.kind {
            Kind::Time(None) if !column.nested => Some(column.name),
            Kind::Time(Some(order)) if !column.nested => Some(format!("{} {}", column.name, order.name())),
            _ => None,
        };
        self.typed_columns().into_iter().filter_map(time).collect()
    }

    /// Facts about columns that the user must know, as name and text. Both are escaped for printing.
    pub fn notes(&self) -> Vec<(String, String)> {
        let mut notes = Vec::new();
        for Typed { name, text, kind, values, .. } in self.typed_columns() {
            if self.entity.has(&name) {
                continue;
            }
            let about = values.notes(&kind, self.records, &text, self.missing.is_some(), self.mark());
            notes.extend(about.into_iter().map(|note| (printable(&name).into_owned(), printable(&note).into_owned())));
        }
        notes
    }

    /// Names and contents of the files. `from` is the topic or file of the records.
    pub fn files(&self, from: &str) -> Vec<(String, String)> {
        let view = view_name(from);
        let slices = SHIPPED.iter().find(|(name, _)| *name == "20_slices.sql").map_or("", |(_, text)| text);
        let mut files = vec![
            ("00_records.sql".to_owned(), self.declared(from)),
            (format!("10_{view}.sql"), self.typed(from)),
            ("20_slices.sql".to_owned(), slices.replace("products", &identifier(&view))),
        ];
        match self.entity_names().is_empty() {
            true => files.extend(self.segmentation(&view)),
            false => files.extend(self.segmentation_of_entities(from)),
        }
        files
    }

    fn declared(&self, from: &str) -> String {
        let fields: Vec<String> =
            self.columns().map(|field| format!("  {} TEXT", identifier(&field.path[0]))).collect();
        let line = |time: String| format!("--   `-- timestamp: {}`\n", comment(&time));
        let lines: String = self.times().into_iter().map(line).collect();
        let times = match lines.is_empty() {
            true => String::new(),
            false => format!(
                "-- The time of a record is that of the topic. For that of a field, add one of these lines at the top, before the\n\
                 -- first record is stored:\n{lines}"
            ),
        };
        format!(
            "-- The fields of a record of {}, from the first {} of them. This file is read, not run: it names what becomes a\n\
             -- column of the store, all of it text, exactly as it came. What a record holds beside these fields is kept in\n\
             -- `_extra`.\n{times}\n\
             CREATE TABLE {RECORDS} (\n{}\n);\n",
            comment(from),
            self.records,
            fields.join(",\n")
        )
    }

    fn typed(&self, from: &str) -> String {
        let columns: Vec<String> = self
            .typed_columns()
            .into_iter()
            .map(|column| {
                let name = identifier(&column.name);
                match column.values.sql(&column.text, &column.kind, self.missing.is_some()) {
                    Some(typed) => format!("  {typed} AS {name}"),
                    None if column.nested => format!("  {} AS {name}", column.text),
                    None => format!("  {name}"),
                }
            })
            .collect();
        let notes: String =
            self.notes().into_iter().map(|(name, note)| format!("-- Column `{name}`: {note}\n")).collect();
        let notes = if notes.is_empty() { notes } else { format!("{notes}\n") };
        format!(
            "-- Reads records. Gives one typed row per record of {} that could be read. `tercile init` wrote it from the first\n\
             -- {} of them. Where a text is no number, or no time, to_number and to_datetime give NULL.\n\n\
             {notes}\
             SELECT\n  _partition, _offset, _timestamp,\n{}\nFROM {RECORDS}\nWHERE _error IS NULL\n",
            comment(from),
            self.records,
            columns.join(",\n")
        )
    }

    /// Name and content of a segmentation that is not active yet, if there are features.
    fn segmentation(&self, view: &str) -> Option<(String, String)> {
        let (features, _) = self.features();
        if features.is_empty() {
            return None;
        }
        let feature = |name: &String| match ANSWERS.contains(&name.as_str()) {
            true => format!("{} AS {}", identifier(name), identifier(&format!("{name}_value"))),
            false => identifier(name),
        };
        let listed: Vec<String> = features.iter().take(MAX_FEATURES).map(feature).collect();
        let text = format!(
            "-- k: 3\n\n\
             -- Reads slices. Gives the features of a segmentation; leave out those that should not decide. `tercile init`\n\
             -- proposed it as a comment: a file of comments alone is not used. Without the first `--` of each line it is.\n\n\
             SELECT _partition, _offset, _timestamp, _slice,\n  {}\nFROM slices\n",
            listed.join(",\n  ")
        );
        let inactive: Vec<String> = text.lines().map(|line| format!("-- {line}").trim_end().to_owned()).collect();
        Some((segmentation_file(view), inactive.join("\n") + "\n"))
    }
}

/// The name of the file with the proposed segmentation.
pub fn segmentation_file(view: &str) -> String {
    format!("30_{view}_segments.sql")
}

/// A path as an expression of text: `"user" -> 'address' ->> 'city'`.
fn path(names: &[String]) -> String {
    let Some((outer, inner)) = names.split_first() else { return String::new() };
    let mut text = identifier(outer);
    for (i, name) in inner.iter().enumerate() {
        text.push_str(if i + 1 == inner.len() { " ->> " } else { " -> " });
        text.push_str(&literal(name));
    }
    text
}

/// The members of a JSON text that is one object.
fn members(text: &str) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    // RawValue has no limit of nesting; the text of a record has.
    if json_text::too_deep(text, 0, record::MAX_DEPTH) { None } else { fields(text).ok() }
}

/// The view name for a source: `Our Customers.csv` becomes `our_customers`.
pub fn view_name(from: &str) -> String {
    /// Longest name; the files are named after it.
    const LONGEST: usize = 100;
    let stem = std::path::Path::new(from).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let name: String = stem.chars().map(word).take(LONGEST).collect();
    let name = name.trim_matches('_').trim_start_matches(|c: char| c.is_ascii_digit() || c == '_');
    match name {
        "" | "records" | "slices" => "things".to_owned(),
        // Names within 20_slices.sql.
        "one" | "two" => format!("{name}_rows"),
        name => name.to_owned(),
    }
}

/// The reason why a field cannot be a column; `None` if it can. A line break in a name could end a comment of the SQL
/// file or start a header line, and escape sequences or bidirectional overrides would display a different file.
fn why_no_column(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("its name is empty")
    } else if name.starts_with('_') {
        Some("names that begin with _ are tercile's own")
    } else if name.contains(is_unsafe) {
        Some("its name has control characters")
    } else {
        None
    }
}

/// A text that stays within one comment line.
fn comment(text: &str) -> String {
    printable(&text.split_whitespace().collect::<Vec<_>>().join(" ")).into_owned()
}

#[cfg(test)]
mod tests;
