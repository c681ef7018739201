//! The Kafka key of a row: the text of one of its fields.

use std::sync::atomic::{AtomicU64, Ordering};

use tercile_store::record::{self, Fields};

use crate::files::{self, Fault, Options, Rows, Source};
use crate::printable::printable;

/// Field names in an error message.
const SHOWN: usize = 20;

/// The field whose text is the key of each record.
pub struct Key {
    field: Fields,
    /// Whether a row with a value in the field was seen before sending.
    checked: bool,
    keyless: AtomicU64,
}

impl Key {
    pub fn new(field: &str) -> Self {
        Self { field: Fields::new(vec![field.to_owned()]), checked: false, keyless: AtomicU64::new(0) }
    }

    fn name(&self) -> &str {
        self.field.names().first().map_or("", String::as_str)
    }

    /// The text of the field as the store keeps it; `None` if the row lacks the field, or if it is null or an empty text.
    fn text(&self, row: &str) -> Option<String> {
        let decoded = record::decode(Some(row.as_bytes()), &self.field).ok()?;
        decoded.values.into_iter().flatten().next().map(std::borrow::Cow::into_owned).filter(|text| !text.is_empty())
    }

    /// The key of a row that is sent. Rows without a key are counted.
    pub(super) fn of(&self, row: &str) -> Option<String> {
        let text = self.text(row);
        if text.is_none() {
            self.keyless.fetch_add(1, Ordering::Relaxed);
        }
        text
    }

    /// Checks that a row of the file has a value in the field.
    ///
    /// # Errors
    /// If none has, or the file cannot be read.
    pub fn checked(mut self, source: &Source, options: &Options) -> Result<Self, files::Error> {
        let mut rows = Rows::open(source, options)?;
        let (mut json, mut first) = (String::new(), None);
        while rows.next_row(&mut json)?.is_some() {
            if self.text(&json).is_some() {
                self.checked = true;
                return Ok(self);
            }
            first.get_or_insert_with(|| json.clone());
        }
        let names = rows.names().map_or_else(|| names(first.as_deref().unwrap_or("{}")), <[String]>::to_vec);
        let known = if names.iter().any(|name| name == self.name()) {
            String::new()
        } else {
            format!("; the fields are {}", shown(&names))
        };
        let what = format!("no row has a value in the field {}, which --key names{known}", printable(self.name()));
        Err(Fault::whole(what).at(rows.path()))
    }

    /// Checks the first row of a pipe, which cannot be read twice: it must have the field.
    pub(super) fn admit_first(&self, row: &str, line: u64) -> Result<(), Fault> {
        let names = names(row);
        if self.checked || names.iter().any(|name| name == self.name()) {
            return Ok(());
        }
        let name = printable(self.name());
        Err(Fault::line(
            line,
            format!("expected the field {name}, which --key names; the fields are {}", shown(&names)),
        ))
    }

    /// A sentence about the rows without a key, if there are any.
    pub fn keyless(&self) -> Option<String> {
        let rows = self.keyless.load(Ordering::Relaxed);
        (rows > 0).then(|| {
            let (rows, are) = if rows == 1 { ("1 row".to_owned(), "is") } else { (format!("{rows} rows"), "are") };
            format!("{rows} {are} without a key: no value in the field {}", printable(self.name()))
        })
    }
}

fn names(row: &str) -> Vec<String> {
    files::fields(row).unwrap_or_default().into_iter().map(|(name, _)| name.into_owned()).collect()
}

fn shown(names: &[String]) -> String {
    let more = if names.len() > SHOWN { ", …" } else { "" };
    let names: Vec<_> = names.iter().take(SHOWN).map(|name| printable(name)).collect();
    format!("{}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_text_that_the_store_keeps() {
        let key = Key::new("k");
        for (row, text) in [
            (r#"{"k":"a b\n\"ü"}"#, Some("a b\n\"ü")),
            (r#"{"k": 1.50e2}"#, Some("1.50e2")),
            (r#"{"k":9007199254740993}"#, Some("9007199254740993")),
            (r#"{"k":1,"k":"2"}"#, Some("2")),
            (r#"{"k":{"a": 1}}"#, Some(r#"{"a": 1}"#)),
            (r#"{"k":null}"#, None),
            (r#"{"k":""}"#, None),
            (r#"{"K":"1"}"#, None),
        ] {
            assert_eq!(key.of(row).as_deref(), text, "{row}");
        }
        assert_eq!(key.keyless().unwrap(), "3 rows are without a key: no value in the field k");
    }
}
