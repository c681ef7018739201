//! The segmentation of entities that `init --entity` writes.
//!
//! Input: the key fields, and how often their values occur. Output: the SQL file: the latest record of each entity if there are
//! about as many entities as records, otherwise number of records, sums and recency.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use tercile_kmeans::MAX_FEATURES;

use super::column::Kind;
use super::{ANSWERS, Inference, Typed, comment, view_name};
use crate::sql::fault::nearest;
use crate::sql::identifier;

/// Names that neither a key nor a feature may have, beside those of all segmentations.
const MEMBER_COLUMNS: [&str; 3] = ["description", "distance", "previous"];
/// Records per entity from which on the records of an entity are counted and summed: below, the latest record of each is its
/// row. In tenths.
const COUNTED_FROM: u64 = 15;

/// The key fields, and the keys that were seen.
#[derive(Debug, Default)]
pub(super) struct Entity {
    names: Vec<String>,
    /// Hashes of distinct keys.
    keys: HashSet<u64>,
    /// Records with a key.
    records: u64,
    /// Records of which a key field is missing.
    without: u64,
    /// Records of which a key field is an empty text.
    empty: u64,
    /// Whether the current record is one of them.
    is_empty: bool,
    /// Hashes of the current record's values.
    current: Vec<Option<u64>>,
}

/// How many entities there are in the records that were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    pub entities: u64,
    /// Records with a key.
    pub records: u64,
    /// Records without a key.
    pub without: u64,
    /// Records whose key has an empty text.
    pub empty: u64,
}

impl Observed {
    /// Whether there are about as many entities as records.
    pub fn is_latest(self) -> bool {
        self.records * 10 < self.entities * COUNTED_FROM
    }

    /// `1351 entities in 1465 records, 1.1 records each`.
    pub fn words(self) -> String {
        let each = self.records as f64 / self.entities.max(1) as f64;
        format!("{} entities in {} records, {each:.1} records each", self.entities, self.records)
    }

    /// Messages about records whose key is missing or empty, with counts.
    pub fn notes(self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.without > 0 {
            notes.push(format!(
                "{} of {} records have no key and are left out",
                self.without,
                self.records + self.without
            ));
        }
        if self.empty > 0 {
            notes.push(format!(
                "{} records have an empty text as key, which is an entity like any other; nullif(…, '') in the view leaves them out",
                self.empty
            ));
        }
        notes
    }

    /// The rule, and what it decides here.
    pub fn rule(self) -> &'static str {
        match self.is_latest() {
            true => "below 1.5 records each a row is the latest record of an entity",
            false => "from 1.5 records each on a row has number of records, sums and recency of an entity",
        }
    }
}

impl Entity {
    pub fn new(names: Vec<String>) -> Self {
        Self { names, ..Self::default() }
    }

    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    pub fn begin(&mut self) {
        self.current = vec![None; self.names.len()];
        self.is_empty = false;
    }

    /// Adds a value of the current record.
    pub fn see(&mut self, path: &[String], text: &str) {
        let name = path.join("_");
        if let Some(at) = self.names.iter().position(|known| *known == name)
            && let Some(current) = self.current.get_mut(at)
        {
            self.is_empty |= text.trim().is_empty();
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            *current = Some(hasher.finish());
        }
    }

    /// Counts the key of the current record, if it has one.
    pub fn end(&mut self) {
        if self.names.is_empty() {
            return;
        }
        if self.current.iter().any(Option::is_none) {
            self.without += 1;
            return;
        }
        self.empty += u64::from(self.is_empty);
        let mut hasher = DefaultHasher::new();
        self.current.hash(&mut hasher);
        self.keys.insert(hasher.finish());
        self.records += 1;
    }
}

impl Inference {
    /// The key fields, separated by commas; empty if there are none.
    pub fn entity_names(&self) -> String {
        self.entity.names.join(", ")
    }

    /// How many entities there are, if key fields are named.
    ///
    /// # Errors
    /// If a named field does not exist, or no record has a key.
    pub fn observed(&self, from: &str) -> Result<Option<Observed>, String> {
        if self.entity.names.is_empty() {
            return Ok(None);
        }
        let names = &self.entity.names;
        if let Some((_, name)) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            return Err(format!("--entity names the field {name} twice"));
        }
        let known: Vec<String> = self.typed_columns().into_iter().map(|column| column.name).collect();
        if let Some(name) = names.iter().find(|name| !known.contains(name)) {
            let there = match nearest(name, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("it has {}", known.join(", ")),
            };
            return Err(format!("{from} has no field {name}; {there}"));
        }
        let Entity { records, without, empty, .. } = self.entity;
        let observed = Observed { entities: self.entity.keys.len() as u64, records, without, empty };
        if observed.records == 0 {
            return Err(format!("no record of {from} has {}; name other fields with --entity", self.entity_names()));
        }
        Ok(Some(observed))
    }

    /// Name and content of the segmentation, if it has features.
    pub(super) fn segmentation_of_entities(&self, from: &str) -> Option<(String, String)> {
        let observed = self.observed(from).ok()??;
        let view = view_name(from);
        let columns = self.typed_columns();
        // Names in the view: a key is spelled in the header, where a comma separates two.
        let mut taken = HashSet::new();
        let mut unused = |name: &str| {
            let reserved = ANSWERS.contains(&name) || MEMBER_COLUMNS.contains(&name) || name.contains(',');
            let name = if reserved { format!("{}_value", name.replace(',', "_")) } else { name.to_owned() };
            let mut found = name.clone();
            for number in 2.. {
                if taken.insert(found.clone()) {
                    break;
                }
                found = format!("{name}_{number}");
            }
            found
        };
        let aliased = |name: &String, alias: &str| match name == alias {
            true => identifier(name),
            false => format!("{} AS {}", identifier(name), identifier(alias)),
        };
        let keys: Vec<(&String, String)> = self.entity.names.iter().map(|name| (name, unused(name))).collect();
        let (features, _) = self.features();
        let key_columns: Vec<String> = keys.iter().map(|(name, alias)| aliased(name, alias)).collect();
        let header: Vec<&str> = keys.iter().map(|(_, alias)| alias.as_str()).collect();
        let by: Vec<String> = self.entity.names.iter().map(|name| identifier(name)).collect();
        let by = by.join(", ");
        let (gives, select) = if observed.is_latest() {
            if features.is_empty() {
                return None;
            }
            let features = features.iter().take(MAX_FEATURES).map(|name| aliased(name, &unused(name)));
            let columns: Vec<String> = key_columns.into_iter().chain(features).collect();
            let select = format!(
                "SELECT\n  {}\nFROM (\n  SELECT *, row_number() OVER (\n    PARTITION BY {by} ORDER BY _timestamp DESC NULLS LAST, \
                 _partition DESC, _offset DESC) AS nth\n  FROM {}\n)\nWHERE nth = 1\n",
                columns.join(",\n  "),
                identifier(&view)
            );
            ("the latest record of each".to_owned(), select)
        } else {
            let time = columns.iter().find(|column| matches!(column.kind, Kind::Time(_)));
            let (with, join, latest, last) = recency(&view, time);
            let mut listed = key_columns;
            let mut add = |expression: String, name: &str| listed.push(format!("{expression} AS {}", identifier(name)));
            add("CAST(count(*) AS DOUBLE)".to_owned(), &unused("record_count"));
            for name in features.iter().take(MAX_FEATURES - 2) {
                add(format!("sum({})", identifier(name)), &unused(&format!("{name}_sum")));
            }
            add(format!("date_part('epoch', {latest} - max({last})) / 86400"), &unused("days_since_last"));
            let select =
                format!("{with}SELECT\n  {}\nFROM {}{join}\nGROUP BY {by}\n", listed.join(",\n  "), identifier(&view));
            ("number of records, sums, and days since the last record of each".to_owned(), select)
        };
        let text = format!(
            "-- k: 3\n-- entity: {}\n\n\
             -- Reads {view}. Gives {gives},\n\
             -- as known at the end of the slice. Leave out features that should not decide, and take logarithms, log10(1 + x),\n\
             -- where few have most. `tercile init` saw {}:\n\
             -- {}.\n\n{select}",
            header.join(", "),
            comment(&observed.words()),
            observed.rule(),
        );
        Some((self.entity_file(&view), text))
    }

    /// The name of the file.
    fn entity_file(&self, view: &str) -> String {
        const LONGEST: usize = 60;
        let by: String = view_name(&self.entity.names.join("_")).chars().take(LONGEST).collect();
        format!("30_{view}_by_{by}.sql")
    }
}

/// How recency is measured: a WITH clause, a join, the last time of all, and the time of a record.
fn recency(view: &str, time: Option<&Typed<'_>>) -> (String, &'static str, &'static str, String) {
    let Some(time) = time else { return (String::new(), "", "slice_end()", "_timestamp".to_owned()) };
    let name = identifier(&time.name);
    let with = format!("WITH latest AS (SELECT max({name}) AS at FROM {})\n", identifier(view));
    (with, " CROSS JOIN latest", "max(latest.at)", name)
}
