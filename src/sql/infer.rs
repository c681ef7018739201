//! Generates initial SQL files for records of any kind.
//!
//! Input: the first records of a topic or file. Output: `00_records.sql` with every field, `10_….sql` with a type for
//! each field inferred from its values, and `20_slices.sql`. The user edits them further.

use datafusion::sql::sqlparser::keywords::ALL_KEYWORDS;
use serde_json::Value;

use super::{RECORDS, SHIPPED};
use crate::printable::{is_unsafe, printable};

/// Currency symbols that may precede numbers.
const CURRENCIES: [char; 5] = ['$', '€', '£', '¥', '₹'];

/// The inferred type of a field's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Boolean,
    Timestamp,
    Number { money: bool, percent: bool, grouped: bool },
}

/// A field and its observed values.
#[derive(Debug)]
struct Seen {
    name: String,
    values: Vec<String>,
}

/// Fields inferred from the first records.
#[derive(Debug, Default)]
pub struct Inference {
    fields: Vec<Seen>,
    pub records: usize,
    pub unreadable: usize,
}

impl Inference {
    /// Adds a record.
    pub fn see(&mut self, payload: &[u8]) {
        self.records += 1;
        let Ok(Value::Object(object)) = serde_json::from_slice(payload) else {
            self.unreadable += 1;
            return;
        };
        for (name, value) in object {
            let text = match value {
                Value::Null => None,
                Value::String(text) => Some(text),
                other => Some(other.to_string()),
            };
            let text = text.filter(|text| !text.trim().is_empty());
            match self.fields.iter_mut().find(|field| field.name == name) {
                Some(field) => field.values.extend(text),
                None => self.fields.push(Seen { name, values: text.into_iter().collect() }),
            }
        }
    }

    /// The fields that can be columns; the others stay in `_extra`.
    fn columns(&self) -> impl Iterator<Item = &Seen> {
        self.fields.iter().filter(|field| why_no_column(&field.name).is_none())
    }

    /// Fields that cannot be columns and stay in `_extra`, with the reason. The names are escaped for printing.
    pub fn left_in_extra(&self) -> impl Iterator<Item = (String, &'static str)> {
        let left = |field: &Seen| Some((printable(&field.name).into_owned(), why_no_column(&field.name)?));
        self.fields.iter().filter_map(left)
    }

    /// Number of fields that can be columns.
    pub fn len(&self) -> usize {
        self.columns().count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numeric fields, with their names in the views.
    pub fn numbers(&self) -> Vec<String> {
        let numbers = self.columns().filter(|field| matches!(kind(&field.values), Kind::Number { .. }));
        numbers.map(|field| field.name.clone()).collect()
    }

    /// Names and contents of the files. `from` is the topic or file of the records.
    pub fn files(&self, from: &str) -> Vec<(String, String)> {
        let view = view_name(from);
        let slices = SHIPPED.iter().find(|(name, _)| *name == "20_slices.sql").map_or("", |(_, text)| text);
        vec![
            ("00_records.sql".to_owned(), self.declared(from)),
            (format!("10_{view}.sql"), self.typed(from)),
            ("20_slices.sql".to_owned(), slices.replace("products", &view)),
        ]
    }

    fn declared(&self, from: &str) -> String {
        let fields: Vec<String> = self.columns().map(|field| format!("  {} TEXT", identifier(&field.name))).collect();
        format!(
            "-- The fields of a record of {}, from the first {} of them. This file is read, not run: it names what becomes a\n\
             -- column of the store, all of it text, exactly as it came. What a record holds beside these fields is kept in\n\
             -- `_extra`.\n\n\
             CREATE TABLE {RECORDS} (\n{}\n);\n",
            comment(from),
            self.records,
            fields.join(",\n")
        )
    }

    fn typed(&self, from: &str) -> String {
        let (mut inner, mut outer) = (Vec::new(), Vec::new());
        for field in self.columns() {
            let name = identifier(&field.name);
            let typed = match kind(&field.values) {
                Kind::Text => None,
                Kind::Boolean => Some(format!("TRY_CAST(btrim({name}) AS BOOLEAN)")),
                Kind::Timestamp => Some(format!("TRY_CAST(btrim({name}) AS TIMESTAMP)")),
                Kind::Number { money, percent, grouped } => {
                    let mut number = format!("btrim({name})");
                    if money {
                        number = format!("btrim(ltrim({number}, '{}'))", String::from_iter(CURRENCIES));
                    }
                    if percent {
                        number = format!("rtrim({number}, ' %')");
                    }
                    if grouped {
                        number = format!("replace({number}, ',', '')");
                    }
                    Some(format!("TRY_CAST({number} AS DOUBLE)"))
                }
            };
            let finite = typed.as_ref().is_some_and(|typed| typed.ends_with("AS DOUBLE)"));
            inner.push(typed.map_or_else(|| format!("    {name}"), |typed| format!("    {typed} AS {name}")));
            outer.push(if finite {
                format!("  CASE WHEN abs({name}) < CAST('Infinity' AS DOUBLE) THEN {name} END AS {name}")
            } else {
                format!("  {name}")
            });
        }
        format!(
            "-- Reads records. Gives one typed row per record of {} that could be read. `tercile init` wrote it from the first\n\
             -- {} of them: what is no number, or none that is finite, is NULL.\n\n\
             WITH typed AS (\n  SELECT\n    _partition, _offset, _timestamp,\n{}\n  FROM {RECORDS}\n  WHERE _error IS NULL\n)\n\
             SELECT\n  _partition, _offset, _timestamp,\n{}\nFROM typed\n",
            comment(from),
            self.records,
            inner.join(",\n"),
            outer.join(",\n")
        )
    }
}

/// The view name for a source: `Our Customers.csv` becomes `our_customers`.
pub fn view_name(from: &str) -> String {
    let stem = std::path::Path::new(from).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let name: String = stem.chars().map(word).collect();
    let name = name.trim_matches('_').trim_start_matches(|c: char| c.is_ascii_digit() || c == '_');
    match name {
        "" | "records" | "slices" => "things".to_owned(),
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

/// An SQL identifier, quoted only if necessary.
fn identifier(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if plain && !ALL_KEYWORDS.contains(&name.to_ascii_uppercase().as_str()) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text that stays within one comment line.
fn comment(text: &str) -> String {
    printable(&text.split_whitespace().collect::<Vec<_>>().join(" ")).into_owned()
}

/// The type that fits all these values.
fn kind(values: &[String]) -> Kind {
    let all = |looks: &dyn Fn(&str) -> bool| !values.is_empty() && values.iter().all(|value| looks(value.trim()));
    if all(&|value| matches!(value.to_ascii_lowercase().as_str(), "true" | "false")) {
        return Kind::Boolean;
    }
    if all(&|value| number(value).is_some()) {
        let any =
            |pick: fn(&Looks) -> bool| values.iter().filter_map(|value| number(value.trim())).any(|looks| pick(&looks));
        return Kind::Number { money: any(|l| l.money), percent: any(|l| l.percent), grouped: any(|l| l.grouped) };
    }
    if all(&is_timestamp) { Kind::Timestamp } else { Kind::Text }
}

struct Looks {
    money: bool,
    percent: bool,
    grouped: bool,
}

/// The number format of a value; `None` if it is not a number. `007` is text.
fn number(value: &str) -> Option<Looks> {
    let bare = value.trim_start_matches(CURRENCIES).trim();
    let money = bare.len() < value.len();
    let digits = bare.strip_suffix('%').map_or(bare, str::trim_end);
    let percent = digits.len() < bare.len();
    let grouped = digits.contains(',');
    let plain = if grouped { without_groups(digits)? } else { digits.to_owned() };
    let unsigned = plain.trim_start_matches(['-', '+']);
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if unsigned.len() > 1 && unsigned.starts_with('0') && !unsigned.starts_with("0.") {
        return None;
    }
    plain.parse::<f64>().ok().filter(|number| number.is_finite())?;
    Some(Looks { money, percent, grouped })
}

/// `1,39,900.5` without its commas, if they group digits.
fn without_groups(text: &str) -> Option<String> {
    let whole = text.split('.').next()?;
    let groups: Vec<&str> = whole.trim_start_matches(['-', '+']).split(',').collect();
    let (first, rest) = groups.split_first()?;
    let (last, middle) = rest.split_last()?;
    let digits = |group: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&group.len()) && group.bytes().all(|b| b.is_ascii_digit())
    };
    let fine = digits(first, 1..=3) && middle.iter().all(|group| digits(group, 2..=3)) && digits(last, 3..=3);
    fine.then(|| text.replace(',', ""))
}

/// `2024-05-01`, optionally followed by a time.
fn is_timestamp(value: &str) -> bool {
    let Some((date, time)) = value.split_at_checked(10) else { return false };
    chrono::NaiveDate::parse_from_str(date, "%Y-%m-%d").is_ok()
        && (time.is_empty() || time.starts_with(['T', ' ']) && time[1..].starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_look_like_something() {
        let kind = |values: &[&str]| kind(&values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>());
        let number = |money, percent, grouped| Kind::Number { money, percent, grouped };
        assert_eq!(kind(&["1", " 2.5 ", "-3e4"]), number(false, false, false));
        assert_eq!(kind(&["₹1,39,900", "₹ 5"]), number(true, false, true));
        assert_eq!(kind(&["64%", "5 %"]), number(false, true, false));
        assert_eq!(kind(&["true", "False"]), Kind::Boolean);
        assert_eq!(kind(&["2024-05-01", "2024-05-01T10:00:00Z"]), Kind::Timestamp);
        for text in
            [&["007"][..], &["1", "x"], &["1,5"], &["nan"], &["inf"], &["1e999"], &[], &["%"], &["$"], &["12345-67-89"]]
        {
            assert_eq!(kind(text), Kind::Text, "{text:?}");
        }
    }

    #[test]
    fn names_are_views_and_columns() {
        assert_eq!(view_name("dir/Our Customers 2024.csv"), "our_customers_2024");
        assert_eq!(view_name("2024.csv"), "things");
        assert_eq!(view_name("records"), "things");
        assert_eq!(
            [identifier("age"), identifier("order"), identifier("Full \"Name\"")],
            ["age", "\"order\"", "\"Full \"\"Name\"\"\""]
        );
    }

    #[test]
    fn names_that_would_break_a_line_stay_in_extra() {
        let mut sketch = Inference::default();
        let names = [
            "a\n-- k: 3",
            "b\r\n-- label.x.en: a|b|c",
            "\u{1b}[2J",
            "\u{202e}gpj.exe",
            "c\u{85}d",
            "e\u{2028}f",
            "",
            "_x",
        ];
        let mut object: serde_json::Map<_, _> = names.iter().map(|name| ((*name).to_owned(), Value::from(1))).collect();
        object.insert("n".to_owned(), Value::from(2));
        sketch.see(Value::Object(object).to_string().as_bytes());
        assert_eq!(sketch.numbers(), ["n"]);
        let left: Vec<_> = sketch.left_in_extra().collect();
        assert_eq!(left.len(), names.len());
        assert_eq!(left[0], ("a\\n-- k: 3".to_owned(), "its name has control characters"));
        assert!(left.iter().all(|(name, _)| !name.contains(is_unsafe)));
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in sketch.files("x\n-- k: 3\u{202e}.csv") {
            assert!(!text.contains(|c| c != '\n' && is_unsafe(c)), "{text}");
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let files = super::super::Files::load(Some(dir.path())).unwrap();
        assert_eq!(files.fields.names(), ["n"]);
    }

    #[test]
    fn what_it_writes_is_what_the_files_may_hold() {
        let mut sketch = Inference::default();
        sketch.see(
            br#"{"id":"007","Spent $":"$1,200.50","since":"2024-01-02","member":true,"order":3,"_x":1,"a\"b":null}"#,
        );
        sketch.see(b"garbage");
        sketch.see(br#"{"late":[1],"order":"4.5"}"#);
        assert_eq!((sketch.records, sketch.unreadable, sketch.len()), (3, 1, 7));
        assert_eq!(sketch.numbers(), ["Spent $", "order"]);
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in sketch.files("shop\nx.csv") {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let files = super::super::Files::load(Some(dir.path())).unwrap();
        assert_eq!(files.fields.names(), ["id", "Spent $", "since", "member", "order", "a\"b", "late"]);
    }
}
