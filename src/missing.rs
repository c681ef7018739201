//! Missing and invalid values, and the policy for rows that contain them.
//!
//! A value is *missing* if it is absent: a NULL, an empty cell, only white space, an absent field of a JSON object, or a NaN.
//! It is *invalid* if it is present but not a finite number: other text (`24,269`, `yes`), an infinity, a number too large for
//! a double, and in JSON a string, a boolean, an array or an object. `fit`, `suggest-k` and `predict` share these definitions,
//! the policy ([`Missing`]) and the counts ([`Gaps`]).

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::sql::identifier;
use crate::value::number::{Format, unit_of};

/// What to do with a row whose feature is missing or invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Missing {
    /// Fail at the first such row, naming line and column
    Refuse,
    /// Skip the row: fit and suggest-k leave it out, predict returns it with empty cluster, description and distance
    Skip,
    /// Impute the mean: that of the file in fit and suggest-k, that of the model in predict
    Impute,
}

/// Policy for missing values and for invalid ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub missing: Missing,
    pub invalid: Missing,
}

impl Policy {
    /// Policy of a training on its views: missing values are imputed with the mean, an invalid value is an error.
    pub const FIT: Self = Self { missing: Missing::Impute, invalid: Missing::Refuse };
    /// Policy of a prediction: both are errors.
    pub const PREDICT: Self = Self::all(Missing::Refuse);

    /// The same choice for missing and invalid values.
    pub const fn all(choice: Missing) -> Self {
        Self { missing: choice, invalid: choice }
    }
}

/// Parsed content of a numeric cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'t> {
    /// A finite number.
    Number(f64),
    Missing,
    /// The text that is not a finite number.
    Invalid(&'t str),
}

impl<'t> Value<'t> {
    /// Parses a cell. Surrounding white space is ignored.
    pub fn of_text(text: &'t str) -> Self {
        let text = text.trim();
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Self::Number(number),
            Ok(number) if number.is_nan() => Self::Missing,
            Err(_) if text.is_empty() => Self::Missing,
            _ => Self::Invalid(text),
        }
    }
}

/// Position of a value in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Line of a text file, counted from 1 including the header.
    Line(u64),
    /// Row of a file without lines, or element of a JSON array, counted from 0.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// Counts of a feature's missing and invalid values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gaps {
    pub missing: u64,
    pub invalid: u64,
    /// The first invalid value.
    pub example: Option<Example>,
}

/// An invalid value and its position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Example {
    pub text: String,
    #[serde(flatten)]
    pub place: Place,
}

impl Gaps {
    pub fn count(&self) -> u64 {
        self.missing + self.invalid
    }

    pub fn add_invalid(&mut self, text: &str, place: Place) {
        self.invalid += 1;
        self.example.get_or_insert_with(|| Example { text: shortened(text), place });
    }

    /// Adds the counts of a later part of the file.
    pub fn add(&mut self, later: Self) {
        self.missing += later.missing;
        self.invalid += later.invalid;
        self.example = self.example.take().or(later.example);
    }
}

/// Invalid values of one feature, in machine-readable form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotNumbers {
    pub values: u64,
    pub example: Example,
}

/// Invalid values by feature; features without any are absent.
pub fn not_numbers(names: &[String], gaps: &[Gaps]) -> BTreeMap<String, NotNumbers> {
    let of = |(name, gaps): (&String, &Gaps)| {
        Some((name.clone(), NotNumbers { values: gaps.invalid, example: gaps.example.clone()? }))
    };
    names.iter().zip(gaps).filter_map(of).collect()
}

/// Text from a file, escaped and shortened for a message.
pub fn shortened(text: &str) -> String {
    const MOST: usize = 40;
    let start: String = text.chars().take(MOST).flat_map(escaped).collect();
    if text.chars().nth(MOST).is_some() { format!("{start}…") } else { start }
}

/// Escapes control characters, which must not reach a terminal.
fn escaped(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

/// SQL expression that converts the texts of a column to numbers, inferred from one sample `text`; `column` is the column's
/// name. `None` if `text` does not determine a conversion.
pub fn cleaning(column: &str, text: &str) -> Option<String> {
    let name = identifier(column);
    match text.to_ascii_lowercase().as_str() {
        "true" | "false" => return Some(format!("CAST({name} AS INT)")),
        "yes" | "no" => return Some(format!("CASE lower({name}) WHEN 'yes' THEN 1 WHEN 'no' THEN 0 END")),
        _ => {}
    }
    let unit = unit_of(text);
    let formats = ['.', ','].map(|mark| Format { mark, unit: unit.map(str::to_owned) });
    let format = formats.into_iter().find(|format| format.number(text).is_some())?;
    let conversion = format!("to_number({name}{})", format.arguments());
    // Other texts of the column may have a point, which a decimal comma does not read.
    let with_point = Format { mark: '.', ..format.clone() };
    Some(match format.mark {
        ',' => format!("coalesce({conversion}, to_number({name}{}))", with_point.arguments()),
        _ => conversion,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_cells_and_nan_are_missing_and_other_text_is_invalid() {
        for (text, value) in [
            ("1.5", Value::Number(1.5)),
            (" -2e3\t", Value::Number(-2000.0)),
            ("", Value::Missing),
            (" \u{a0}", Value::Missing),
            ("NaN", Value::Missing),
            ("24,269", Value::Invalid("24,269")),
            (" n/a ", Value::Invalid("n/a")),
            ("inf", Value::Invalid("inf")),
            ("1e999", Value::Invalid("1e999")),
            ("0x10", Value::Invalid("0x10")),
        ] {
            assert_eq!(Value::of_text(text), value, "{text:?}");
        }
    }

    #[test]
    fn the_suggested_sql_fits_the_text() {
        let of = |text| cleaning("n", text).unwrap_or_default();
        assert_eq!(of("24,269"), "to_number(n)");
        assert_eq!(of("1,39,900.50"), "to_number(n)");
        assert_eq!(of("1,5"), "coalesce(to_number(n, ','), to_number(n))");
        assert_eq!(of("1.234,56 €"), "coalesce(to_number(n, ',', '€'), to_number(n, '€'))");
        assert_eq!(of("₹1,099"), "to_number(n, '₹')");
        assert_eq!(of("64%"), "to_number(n, '%')");
        assert_eq!(of("true"), "CAST(n AS INT)");
        assert_eq!(cleaning("Is It", "Yes").unwrap(), "CASE lower(\"Is It\") WHEN 'yes' THEN 1 WHEN 'no' THEN 0 END");
        for text in ["n/a", "-", "abc", "1.2.3", "", "inf", "1,,2"] {
            assert_eq!(of(text), "", "{text}");
        }
    }

    #[test]
    fn text_of_a_file_moves_no_cursor() {
        assert_eq!(shortened("a\u{1b}[31m\n"), "a\\u{1b}[31m\\n");
        assert_eq!(shortened(&"x".repeat(41)), format!("{}…", "x".repeat(40)));
    }
}
