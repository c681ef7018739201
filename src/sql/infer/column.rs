//! What the values of one field have in common, and the type that follows.
//!
//! Input: the values, one at a time; only counts and examples are kept. Output: a type with its SQL, and notes for the
//! user: why a column is text, and what was taken for a missing value.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::super::literal;
use crate::value::number::{Format, unit_of};
use crate::value::time::{self, Order};
use crate::value::trimmed;

/// Texts that stand for a missing value in a column of numbers or times, in lower case.
pub const MISSING: [&str; 15] =
    ["na", "n/a", "n.a.", "nan", "null", "none", "nil", "?", "-", "--", "\u{2013}", "\u{2014}", ".", "#n/a", "#null!"];
/// The largest whole number up to which a DOUBLE is exact.
const EXACT: u128 = 1 << 53;
/// Maximum number of distinct values that are counted.
const DISTINCT: usize = 20_000;
/// Maximum number of different texts that are kept as examples.
const EXAMPLES: usize = 4;

/// The start of a text, for a message.
fn shortened(text: &str) -> String {
    const MOST: usize = 40;
    let start: String = text.chars().take(MOST).collect();
    if start.len() < text.len() { format!("{start}…") } else { start }
}

/// The type of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Text,
    Boolean,
    Time(Option<Order>),
    Number(Format),
    /// Whole numbers that a DOUBLE would round.
    Integer(Format),
}

/// What is known of the decimal mark beside a column's own values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Open,
    /// Other columns of the source have a decimal comma, which decides what `1.234` means.
    CommaElsewhere,
    /// `.` or `,`, by the user.
    Given(char),
}

/// Counts of values that are numbers with one decimal mark.
#[derive(Debug, Default)]
struct Marked {
    numbers: u64,
    wholes: u64,
    least: f64,
    most: f64,
    /// The first value that is a number with the other mark only.
    only_other: Option<String>,
}

/// Counts of the values of a field.
#[derive(Debug, Default)]
pub struct Column {
    /// Values that are neither blank nor [`MISSING`].
    present: u64,
    /// Texts that stand for missing values.
    missing: BTreeMap<String, u64>,
    booleans: u64,
    /// With a decimal point, and with a decimal comma.
    marked: [Marked; 2],
    /// Whether a value is another number with the other mark.
    differ: bool,
    /// Whole numbers beyond [`EXACT`], and the first with too many digits for `to_integer`.
    large: u64,
    endless: Option<String>,
    units: BTreeMap<String, u64>,
    zeros: (u64, Option<String>),
    times: u64,
    ordered: [u64; 2],
    compact: u64,
    /// Dates whose order of day and month is open, and the first one.
    open: (u64, Option<String>),
    /// Values that are neither numbers nor times.
    others: BTreeMap<String, u64>,
    other: u64,
    first_other: Option<String>,
    distinct: HashSet<u64>,
    /// The number of digits of all values, if it is the same.
    width: Option<usize>,
    widths_differ: bool,
}

impl Column {
    /// Adds a value. `listed` are the user's texts for missing values, if there are some.
    pub fn see(&mut self, text: &str, listed: Option<&[String]>) {
        let bare = trimmed(text);
        if bare.is_empty() {
            return;
        }
        let stands_for_none = match listed {
            // As btrim of SQL has it.
            Some(listed) => listed.iter().any(|listed| listed == text.trim_matches(' ')),
            None => MISSING.contains(&bare.to_lowercase().as_str()),
        };
        if stands_for_none {
            *self.missing.entry(bare.to_owned()).or_default() += 1;
            return;
        }
        self.present += 1;
        if self.distinct.len() < DISTINCT {
            let mut hasher = DefaultHasher::new();
            bare.hash(&mut hasher);
            self.distinct.insert(hasher.finish());
        }
        let width = Some(bare.len());
        self.widths_differ |= self.width.is_some() && self.width != width;
        self.width = width;
        self.booleans += u64::from(matches!(text.trim_matches(' ').to_ascii_lowercase().as_str(), "true" | "false"));
        let number = self.see_number(bare);
        let time = self.see_time(bare);
        if !number && !time {
            self.other += 1;
            self.first_other.get_or_insert_with(|| bare.to_owned());
            if self.others.len() < EXAMPLES || self.others.contains_key(bare) {
                *self.others.entry(bare.to_owned()).or_default() += 1;
            }
        }
    }

    fn see_number(&mut self, text: &str) -> bool {
        let unit = unit_of(text);
        let formats = ['.', ','].map(|mark| Format { mark, unit: unit.map(str::to_owned) });
        let values = formats.each_ref().map(|format| format.number(text));
        for (i, (format, value)) in formats.iter().zip(values).enumerate() {
            let marked = &mut self.marked[i];
            let Some(value) = value else {
                if values[1 - i].is_some() {
                    marked.only_other.get_or_insert_with(|| text.to_owned());
                }
                continue;
            };
            let first = marked.numbers == 0;
            marked.numbers += 1;
            marked.least = if first { value } else { marked.least.min(value) };
            marked.most = if first { value } else { marked.most.max(value) };
            if let Some(whole) = format.integer(text) {
                marked.wholes += 1;
                self.large += u64::from(i == 0 && whole.unsigned_abs() > EXACT);
            } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
                self.endless.get_or_insert_with(|| text.to_owned());
            }
        }
        self.differ |= values[0] != values[1];
        let number = values.iter().any(Option::is_some);
        if let Some(unit) = unit.filter(|_| number)
            && (self.units.len() <= EXAMPLES || self.units.contains_key(unit))
        {
            *self.units.entry(unit.to_owned()).or_default() += 1;
        }
        let digits = text.trim_start_matches(['-', '+']);
        if !number && digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            self.zeros.0 += 1;
            self.zeros.1.get_or_insert_with(|| text.to_owned());
            return true;
        }
        number
    }

    fn see_time(&mut self, text: &str) -> bool {
        if time::time(text, None).is_some() {
            self.times += 1;
            self.compact += u64::from(time::is_compact_date(text));
            self.ordered.iter_mut().for_each(|count| *count += 1);
            return true;
        }
        let fits = [Order::DayFirst, Order::MonthFirst].map(|order| time::time(text, Some(order)).is_some());
        for (count, fits) in self.ordered.iter_mut().zip(fits) {
            *count += u64::from(fits);
        }
        if fits == [true, true] {
            self.open.0 += 1;
            self.open.1.get_or_insert_with(|| text.to_owned());
        }
        fits.contains(&true)
    }

    fn all(&self, count: u64) -> bool {
        self.present > 0 && count == self.present
    }

    /// The unit of all values that have one; `Err` if there are several.
    fn unit(&self) -> Result<Option<String>, ()> {
        match self.units.len() {
            0 => Ok(None),
            1 => Ok(self.units.keys().next().cloned()),
            _ => Err(()),
        }
    }

    /// Whether these are numbers with a decimal comma, and no others.
    pub fn shows_comma(&self) -> bool {
        self.unit().is_ok() && self.all(self.marked[1].numbers) && !self.all(self.marked[0].numbers)
    }

    /// The type that fits all values.
    pub fn kind(&self, mark: Mark) -> Kind {
        if self.all(self.booleans) {
            return Kind::Boolean;
        }
        if self.all(self.compact) {
            return Kind::Time(None);
        }
        if let (Ok(unit), None) = (self.unit(), &self.endless) {
            let fits = [0, 1].map(|i| self.all(self.marked[i].numbers));
            let mark = match (fits, mark) {
                ([point, _], Mark::Given('.')) => point.then_some('.'),
                ([_, comma], Mark::Given(mark)) => comma.then_some(mark),
                ([true, true], Mark::CommaElsewhere) if self.differ => Some(','),
                ([true, _], _) => Some('.'),
                ([false, true], _) => Some(','),
                _ => None,
            };
            let format = mark.map(|mark| Format { mark, unit });
            match format {
                Some(format) if self.large > 0 && self.all(self.marked_as(&format).wholes) => {
                    return Kind::Integer(format);
                }
                Some(format) => return Kind::Number(format),
                None => {}
            }
        }
        if self.all(self.times) {
            return Kind::Time(None);
        }
        match self.ordered.map(|count| self.all(count)) {
            [true, false] => Kind::Time(Some(Order::DayFirst)),
            [false, true] => Kind::Time(Some(Order::MonthFirst)),
            _ => Kind::Text,
        }
    }

    fn marked_as(&self, format: &Format) -> &Marked {
        &self.marked[usize::from(format.mark == ',')]
    }

    /// The expression of this type for `text`, an SQL expression; `None` for text that stays as it is. `given`: the user
    /// has listed the texts for missing values.
    pub fn sql(&self, text: &str, kind: &Kind, given: bool) -> Option<String> {
        // A text that is listed as missing, and would otherwise be a value.
        let is_value = |missing: &&String| match kind {
            Kind::Text => given,
            Kind::Boolean => false,
            Kind::Time(order) => time::time(missing, *order).is_some(),
            Kind::Number(format) | Kind::Integer(format) => format.number(missing).is_some(),
        };
        let values: Vec<String> = self.missing.keys().filter(is_value).map(|text| literal(text)).collect();
        let bare = match values.is_empty() {
            true => None,
            false => Some(format!("CASE WHEN btrim({text}) NOT IN ({}) THEN {text} END", values.join(", "))),
        };
        let text = bare.as_deref().unwrap_or(text);
        let call = |function: &str, format: &Format| Some(format!("{function}({text}{})", format.arguments()));
        match kind {
            Kind::Text => bare,
            Kind::Boolean => {
                Some(format!("CASE lower(btrim({text})) WHEN 'true' THEN TRUE WHEN 'false' THEN FALSE END"))
            }
            Kind::Time(None) => Some(format!("to_datetime({text})")),
            Kind::Time(Some(order)) => Some(format!("to_datetime({text}, '{}')", order.name())),
            Kind::Number(format) => call("to_number", format),
            Kind::Integer(format) => call("to_integer", format),
        }
    }

    /// Facts about the column that its user must know. `rows` is the number of records, `sql` the text as SQL.
    pub fn notes(&self, kind: &Kind, rows: usize, sql: &str, given: bool, mark: Mark) -> Vec<String> {
        let of_rows = |count: u64| format!("in {count} of {rows} {}", if rows == 1 { "row" } else { "rows" });
        let quoted = |text: &str| format!("`{}`", shortened(text));
        let mut notes = Vec::new();
        let example = |text: &Option<String>| quoted(text.as_deref().unwrap_or_default());
        match kind {
            Kind::Text => notes.extend(self.why_text(&of_rows, sql, mark)),
            Kind::Number(format) | Kind::Integer(format) => {
                if format.mark == ',' {
                    let shown = example(&self.marked[0].only_other);
                    notes.push(match self.marked[0].only_other {
                        Some(_) => format!("a decimal comma, as in {shown}"),
                        None if matches!(mark, Mark::Given(_)) => "a decimal comma, as --decimal says".to_owned(),
                        None => "a decimal comma, as in other columns".to_owned(),
                    });
                }
                let with: u64 = self.units.values().sum();
                if let (Some(unit), true) = (&format.unit, with < self.present) {
                    notes.push(format!("{} is absent {}", quoted(unit), of_rows(self.present - with)));
                }
                if matches!(kind, Kind::Integer(_)) {
                    notes.push(format!("whole numbers that a DOUBLE would round {}, kept exact", of_rows(self.large)));
                } else if self.large > 0 {
                    notes.push(format!("whole numbers that a DOUBLE rounds {}", of_rows(self.large)));
                }
            }
            Kind::Boolean | Kind::Time(_) => {}
        }
        if *kind != Kind::Text || given {
            let missing = self.missing.iter().map(|(text, count)| format!("{} {}", quoted(text), of_rows(*count)));
            let missing: Vec<String> = missing.collect();
            if !missing.is_empty() {
                notes.push(format!("{}, treated as missing", missing.join(", ")));
            }
        }
        notes
    }

    /// Why this is text, if most values are numbers or times.
    fn why_text(&self, of_rows: &dyn Fn(u64) -> String, sql: &str, mark: Mark) -> Option<String> {
        let quoted = |text: &str| format!("`{}`", shortened(text));
        let example = |text: &Option<String>| quoted(text.as_deref().unwrap_or_default());
        let most = |count: u64| self.present > 0 && count * 2 >= self.present;
        if self.present == 0 {
            return Some("text: no value in any row".to_owned());
        }
        if self.booleans > 0 && most(self.booleans) {
            return Some("text: not every value is true or false".to_owned());
        }
        if let Some(endless) = &self.endless {
            return Some(format!("text: {} has more digits than a number can hold", quoted(endless)));
        }
        let numbers = self.marked[0].numbers.max(self.marked[1].numbers);
        let times = self.ordered[0].max(self.ordered[1]);
        if self.zeros.0 > 0 && most(numbers + self.zeros.0) && self.other == 0 {
            return Some(format!("text: digits with leading zeros ({}) are a code", example(&self.zeros.1)));
        }
        if most(times) && times >= numbers {
            if self.other == 0 && self.ordered.map(|count| self.all(count)) == [true, true] {
                return Some(format!(
                    "text: {} may have the day or the month first; to_datetime({sql}, 'dmy') or to_datetime({sql}, 'mdy') \
                     reads it",
                    example(&self.open.1)
                ));
            }
            return Some(match &self.first_other {
                Some(_) => format!("text: {} no time", self.failed(of_rows)),
                None => "text: dates in several orders, or beside numbers".to_owned(),
            });
        }
        if !most(numbers) {
            return None;
        }
        Some(match &self.first_other {
            Some(_) => format!("text: {} no number; list it with --na if it is a missing value", self.failed(of_rows)),
            None if self.units.len() > 1 => {
                let units: Vec<String> = self.units.keys().map(|unit| quoted(unit)).collect();
                format!("text: several units, {}", units.join(", "))
            }
            None if times > 0 => "text: times beside numbers".to_owned(),
            None if self.zeros.0 > 0 => {
                format!("text: digits with leading zeros ({}) are a code", example(&self.zeros.1))
            }
            None if let Mark::Given(given) = mark => {
                let index = usize::from(given == ',');
                format!(
                    "text: {} is no number with the `{given}` of --decimal",
                    example(&self.marked[index].only_other)
                )
            }
            None => format!(
                "text: two decimal marks, {} and {}",
                example(&self.marked[1].only_other),
                example(&self.marked[0].only_other)
            ),
        })
    }

    /// `` `a`, `b` in 3 of 200 rows is `` for values that are neither numbers nor times.
    fn failed(&self, of_rows: &dyn Fn(u64) -> String) -> String {
        let mut shown: Vec<String> = self.others.keys().take(3).map(|text| format!("`{}`", shortened(text))).collect();
        if self.others.len() > 3 {
            shown.push("…".to_owned());
        }
        format!("{} {} {}", shown.join(", "), of_rows(self.other), if self.other == 1 { "is" } else { "are" })
    }

    /// Number of values that are present.
    pub fn present(&self) -> u64 {
        self.present
    }

    /// Number of distinct values, up to a limit.
    pub fn distinct(&self) -> usize {
        self.distinct.len()
    }

    /// Whether all values are whole numbers.
    pub fn is_whole(&self) -> bool {
        self.all(self.marked[0].wholes)
    }

    /// Whether no value occurs twice, as far as they were counted.
    pub fn is_unique(&self) -> bool {
        self.distinct.len() as u64 == self.present.min(DISTINCT as u64)
    }

    /// Whether the values are distinct whole numbers without a gap.
    pub fn numbers_the_rows(&self) -> bool {
        let span = self.marked[0].most - self.marked[0].least + 1.0;
        self.is_whole() && self.is_unique() && span == self.present as f64
    }

    /// Whether all values have the same number of characters, at least `least`.
    pub fn has_width(&self, least: usize) -> bool {
        !self.widths_differ && self.width.is_some_and(|width| width >= least)
    }
}
