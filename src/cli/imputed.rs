//! Messages about missing values, printed below tables.

use std::collections::BTreeMap;

use super::thousands;
use crate::columns::Columns;
use crate::missing::{Example, Gaps};
use crate::model::Model;

/// One line per feature, in the order of `features`, whose mean replaced a missing value in at least one of `rows`
/// rows.
pub(super) fn lines(features: &[String], imputed: &BTreeMap<String, u64>, rows: u64) -> Vec<String> {
    let counts = features.iter().filter_map(|feature| Some((feature, *imputed.get(feature)?)));
    counts.filter(|(_, n)| *n > 0).map(|(feature, n)| line(feature, n, rows)).collect()
}

/// One line per feature of a model with imputed values, and one for rows without an entity key.
pub(super) fn of_model(model: &Model) -> Vec<String> {
    let mut lines = model.imputed.as_ref().map_or_else(Vec::new, |imputed| lines(&model.features, imputed, model.rows));
    if !model.entity.is_empty() && model.rows_left_out > 0 {
        let (rows, key) = (thousands(model.rows_left_out), model.entity.join(", "));
        lines.push(format!("{rows} rows of the view have no key ({key}) and were left out"));
    }
    lines
}

fn line(feature: &str, n: u64, rows: u64) -> String {
    format!("{feature} was missing in {} of {} rows and took the mean", thousands(n), thousands(rows))
}

/// The same lines for columns read from a file, plus the text values in them and the number of rows left out.
pub(super) fn of_file(features: &[String], columns: &Columns) -> String {
    let mut text = String::new();
    for (feature, gaps) in features.iter().zip(&columns.gaps).filter(|(_, gaps)| gaps.count() > 0) {
        text += &match columns.rows_left_out {
            0 => line(feature, gaps.count(), columns.rows as u64),
            n => {
                let all = columns.rows as u64 + n;
                format!("{feature} is missing in {} of the file's {} rows", thousands(gaps.count()), thousands(all))
            }
        };
        text += &not_numbers(gaps);
        text.push('\n');
    }
    if columns.rows_left_out > 0 {
        text += &format!("{} rows were left out\n", thousands(columns.rows_left_out));
    }
    text
}

/// The number of a feature's missing values that are text, in parentheses; empty if there are none.
pub(super) fn not_numbers(gaps: &Gaps) -> String {
    match &gaps.example {
        Some(Example { text, place }) => {
            format!(" ({} of them no number, such as `{text}` in {place})", thousands(gaps.invalid))
        }
        None => String::new(),
    }
}
