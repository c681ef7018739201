//! A set of row numbers, one bit each, and its text form.
//!
//! The text in `source.json` is a list of ranges, as in `0-499,600`, or, if that is shorter, the bits in base64 after `bits:`,
//! eight rows per byte, the first row in the lowest bit.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Prefix of a set in bit form.
const BITS: &str = "bits:";

/// A set of row numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RowSet {
    /// Without trailing zeros.
    words: Vec<u64>,
    len: u64,
}

impl RowSet {
    /// Adds a row; `false` if it was present.
    pub fn insert(&mut self, row: u64) -> bool {
        let (word, bit) = ((row / 64) as usize, 1 << (row % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let fresh = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += u64::from(fresh);
        fresh
    }

    /// Whether the set holds a row.
    pub fn contains(&self, row: u64) -> bool {
        self.words.get((row / 64) as usize).is_some_and(|word| word & (1 << (row % 64)) != 0)
    }

    /// Adds the rows of another set; `false` if all of them were present.
    pub fn add(&mut self, other: &Self) -> bool {
        let before = self.len;
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (own, word) in self.words.iter_mut().zip(&other.words) {
            *own |= word;
        }
        self.len = self.words.iter().map(|word| u64::from(word.count_ones())).sum();
        self.len > before
    }

    /// Number of rows.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the set holds no rows.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first and the last row of each run of rows.
    fn ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let rows = (0..).zip(&self.words).filter(|(_, word)| **word != 0);
        for row in
            rows.flat_map(|(i, word)| (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| i * 64 + bit))
        {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == row => *last = row,
                _ => ranges.push((row, row)),
            }
        }
        ranges
    }
}

impl From<RowSet> for String {
    fn from(set: RowSet) -> Self {
        let mut text = Self::new();
        let most = BITS.len() + set.words.len() * 8 * 4 / 3;
        for (first, last) in set.ranges() {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a `String` cannot fail.
            let _ = if first == last { write!(text, "{comma}{first}") } else { write!(text, "{comma}{first}-{last}") };
            if text.len() > most {
                let bytes: Vec<u8> = set.words.iter().flat_map(|word| word.to_le_bytes()).collect();
                return format!("{BITS}{}", STANDARD.encode(bytes));
            }
        }
        text
    }
}

impl TryFrom<String> for RowSet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut set = Self::default();
        let wrong = || format!("expected ranges of rows, found {:?}", text.chars().take(40).collect::<String>());
        if let Some(bits) = text.strip_prefix(BITS) {
            let bytes = STANDARD.decode(bits).map_err(|_| wrong())?;
            let (words, rest) = bytes.as_chunks::<8>();
            if !rest.is_empty() {
                return Err(wrong());
            }
            set.words = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
            while set.words.last() == Some(&0) {
                set.words.pop();
            }
            set.len = set.words.iter().map(|word| u64::from(word.count_ones())).sum();
            return Ok(set);
        }
        for range in text.split(',').filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| text.parse::<u64>().ok().filter(|row| *row < 1 << 32);
            let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
            for row in first..=last {
                set.insert(row);
            }
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_set_contains_the_inserted_rows() {
        let mut set = RowSet::default();
        assert!(set.is_empty());
        for row in [0, 63, 64, 1000] {
            assert!(set.insert(row));
            assert!(!set.insert(row));
        }
        assert_eq!(set.len(), 4);
        assert!([0, 63, 64, 1000].iter().all(|&row| set.contains(row)));
        assert!([1, 62, 65, 999, 1001, u64::MAX].iter().all(|&row| !set.contains(row)));
    }

    #[test]
    fn the_text_of_a_set_is_short_and_round_trips() {
        let of = |rows: &mut dyn Iterator<Item = u64>| {
            let mut set = RowSet::default();
            for row in rows {
                set.insert(row);
            }
            set
        };
        let dense = of(&mut (0..500).chain([600]).chain(1000..1002));
        assert_eq!(String::from(dense.clone()), "0-499,600,1000-1001");
        let sparse = of(&mut (0..100_000).step_by(2));
        assert!(String::from(sparse.clone()).len() < 17_000);
        for set in [dense.clone(), sparse.clone(), RowSet::default()] {
            assert_eq!(RowSet::try_from(String::from(set.clone())).unwrap(), set);
        }
        let mut both = dense.clone();
        assert!(both.add(&sparse) && !both.add(&sparse) && !both.add(&dense));
        assert_eq!(both.len(), 50_000 + 250 + 1);
        for wrong in ["a", "1-", "-1", "bits:a", "bits:AAAA", "1 2", "9999999999999-99999999999999"] {
            assert!(RowSet::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
