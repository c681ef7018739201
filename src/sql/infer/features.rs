//! Which columns of numbers are proposed as features: not identifiers, codes and constants.
//!
//! Input: a column's name and the counts of its values. Output: the reason why its numbers measure nothing, if there is
//! one. Names are English; a wrong guess costs the user one word in a file.

use super::column::{Column, Kind};

/// Last words of names of identifiers.
const IDENTIFIERS: [&str; 26] = [
    "id",
    "ids",
    "uuid",
    "guid",
    "key",
    "sku",
    "ean",
    "upc",
    "isbn",
    "iban",
    "ssn",
    "phone",
    "telephone",
    "mobile",
    "fax",
    "nr",
    "no",
    "number",
    "rownumber",
    "rownum",
    "index",
    "serial",
    "unnamed",
    "userid",
    "customerid",
    "productid",
];
/// Words in names of codes.
const CODES: [&str; 15] = [
    "code",
    "zip",
    "zipcode",
    "postcode",
    "postal",
    "postalcode",
    "pincode",
    "fips",
    "class",
    "pclass",
    "type",
    "category",
    "status",
    "flag",
    "label",
];
/// Fewest rows from which two values are a flag, and numbers without a gap those of the rows.
const ROWS: u64 = 10;
/// Fewest digits from which distinct numbers of the same length are taken for identifiers.
const DIGITS: usize = 6;

/// Why a column of numbers is not proposed as a feature.
pub fn unsuited(name: &str, column: &Column, kind: &Kind, rows: usize) -> Option<&'static str> {
    let words = words(name);
    let last = words.last().map(String::as_str).unwrap_or_default();
    if column.distinct() <= 1 {
        return Some("one value");
    }
    if matches!(kind, Kind::Integer(_)) {
        return Some("identifiers");
    }
    if column.present() * 2 < rows as u64 {
        return Some("missing in most rows");
    }
    if !column.is_whole() {
        return None;
    }
    // `number of rooms` is a count, `order number` is none; `index` alone numbers the rows, `price index` does not.
    let alone = |word: &str| matches!(word, "index" | "number" | "no" | "key");
    let first = words.first().map(String::as_str).unwrap_or_default();
    if IDENTIFIERS.contains(&last) && (!alone(last) || (words.len() > 1) != (last == "index")) || first == "unnamed" {
        return Some("identifiers");
    }
    if words.iter().any(|word| CODES.contains(&word.as_str())) {
        return Some("codes");
    }
    if column.distinct() == 2 && column.present() >= ROWS {
        return Some("two values");
    }
    if column.present() >= ROWS && column.numbers_the_rows() {
        return Some("numbers of the rows");
    }
    (column.present() >= ROWS && column.is_unique() && column.has_width(DIGITS)).then_some("identifiers")
}

/// The words of a name, in lower case: `PULocationID` is `pu`, `location`, `id`.
fn words(name: &str) -> Vec<String> {
    let chars: Vec<char> = name.chars().collect();
    let mut words: Vec<String> = Vec::new();
    let mut open = false;
    for (i, &c) in chars.iter().enumerate() {
        if !c.is_alphanumeric() {
            open = false;
            continue;
        }
        let after_small = i > 0 && (chars[i - 1].is_lowercase() || chars[i - 1].is_ascii_digit());
        let before_small = chars.get(i + 1).is_some_and(|next| next.is_lowercase());
        let begins = c.is_uppercase() && (after_small || i > 0 && chars[i - 1].is_uppercase() && before_small);
        match words.last_mut() {
            Some(word) if open && !begins => word.extend(c.to_lowercase()),
            _ => words.push(c.to_lowercase().collect()),
        }
        open = true;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_words() {
        assert_eq!(words("PULocationID"), ["pu", "location", "id"]);
        assert_eq!(words("Annual Income (k$)"), ["annual", "income", "k"]);
        assert_eq!(words("MSSubClass"), ["ms", "sub", "class"]);
        assert_eq!(words("customer_id"), ["customer", "id"]);
        assert_eq!(words("humid"), ["humid"]);
    }

    #[test]
    fn identifiers_codes_and_constants_are_no_features() {
        let why = |name: &str, values: &[&str]| {
            let mut column = Column::default();
            values.iter().for_each(|value| column.see(value, None));
            let kind = column.kind(super::super::column::Mark::Open);
            unsuited(name, &column, &kind, values.len())
        };
        let some = ["3", "5", "9", "3"];
        assert_eq!(why("Age", &some), None);
        assert_eq!(why("number_of_rooms", &some), None);
        assert_eq!(why("price_index", &some), None);
        assert_eq!(why("CustomerID", &some), Some("identifiers"));
        assert_eq!(why("Order Number", &some), Some("identifiers"));
        assert_eq!(why("index", &some), Some("identifiers"));
        assert_eq!(why("zip_code", &some), Some("codes"));
        assert_eq!(why("Pclass", &some), Some("codes"));
        assert_eq!(why("survived", &["0", "1", "1", "0", "1", "1", "0", "0", "1", "0"]), Some("two values"));
        assert_eq!(why("x", &["7", "7"]), Some("one value"));
        assert_eq!(why("x", &["1", "3", "", "", "", ""]), Some("missing in most rows"));
        let rows: Vec<String> = (5..25).map(|i: i32| i.to_string()).collect();
        assert_eq!(why("x", &rows.iter().map(String::as_str).collect::<Vec<_>>()), Some("numbers of the rows"));
        let long: Vec<String> = (0..20).map(|i: i32| (100_000 + i * 7919).to_string()).collect();
        assert_eq!(why("x", &long.iter().map(String::as_str).collect::<Vec<_>>()), Some("identifiers"));
        assert_eq!(why("x", &["9007199254740993", "1"]), Some("identifiers"));
    }
}
