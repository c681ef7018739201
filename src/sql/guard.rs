//! Guard rules of a segmentation: what a new model must keep to serve without an operator's decision.
//!
//! Input: header lines `-- guard.<rule>: value`. Output: a limit per rule. A limit is a share such as `0.3` or `30 %`; `off` turns a
//! rule off.

use std::fmt;

use poem_openapi::Enum;
use serde::{Deserialize, Serialize};

/// A property of a new model that is compared with the serving one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Enum)]
#[serde(rename_all = "lowercase")]
#[oai(rename_all = "lowercase", rename = "GuardRule")]
pub enum Rule {
    /// Its rows as a share of the rows of the serving model.
    Rows,
    /// The share of its rows in its smallest cluster.
    Share,
    /// Its silhouette as a share of that of the serving model.
    Silhouette,
    /// The share of the rows of both models that change their cluster.
    Moved,
    /// The share of its new rows that are farther from the centroids of the serving model than 999 of 1,000 rows of that model's
    /// training; of all rows if fewer than 100 are new.
    Unlike,
}

impl Rule {
    /// All rules with their default limits.
    pub const ALL: [(Self, f64); 5] =
        [(Self::Rows, 0.5), (Self::Share, 0.001), (Self::Silhouette, 0.9), (Self::Moved, 0.3), (Self::Unlike, 0.05)];

    /// The rule of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.map(|(rule, _)| rule).into_iter().find(|rule| rule.to_string() == name)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rows => "rows",
            Self::Share => "share",
            Self::Silhouette => "silhouette",
            Self::Moved => "moved",
            Self::Unlike => "unlike",
        })
    }
}

/// The limits of the rules.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Guard(Vec<(Rule, Option<f64>)>);

// Limits are finite.
impl Eq for Guard {}

impl Guard {
    /// The limit of a rule; `None` if it is off.
    pub fn limit(&self, rule: Rule) -> Option<f64> {
        match self.0.iter().find(|(of, _)| *of == rule) {
            Some((_, limit)) => *limit,
            None => Rule::ALL.iter().find(|(of, _)| *of == rule).map(|(_, limit)| *limit),
        }
    }

    /// Sets the limit of a rule from a header line.
    ///
    /// # Errors
    /// If there is no such rule, if it is set twice, or if the value is no share.
    pub fn set(&mut self, rule: &str, value: &str) -> Result<(), String> {
        let names = || Rule::ALL.map(|(rule, _)| rule.to_string()).join(", ");
        let rule = Rule::named(rule).ok_or_else(|| format!("there is no guard rule {rule}; there are {}", names()))?;
        if self.0.iter().any(|(of, _)| *of == rule) {
            return Err(format!("guard.{rule} stands twice"));
        }
        let limit = if value == "off" { None } else { Some(share(value).ok_or_else(|| wrong(rule, value))?) };
        self.0.push((rule, limit));
        Ok(())
    }
}

fn wrong(rule: Rule, value: &str) -> String {
    format!("guard.{rule} must be a share from 0 to 1 such as 0.3 or 30 %, or off; found {value}")
}

/// A share such as `0.3` or `30 %`.
fn share(value: &str) -> Option<f64> {
    let (number, unit) = match value.strip_suffix('%') {
        Some(percent) => (percent.trim_end(), 100.0),
        None => (value, 1.0),
    };
    let digits = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let share = number.parse::<f64>().ok().filter(|_| digits)? / unit;
    (0.0..=1.0).contains(&share).then_some(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shares_or_off() {
        let mut guard = Guard::default();
        assert_eq!(Rule::ALL.map(|(rule, _)| guard.limit(rule)), Rule::ALL.map(|(_, limit)| Some(limit)));
        guard.set("moved", "45 %").unwrap();
        guard.set("rows", "0.25").unwrap();
        guard.set("unlike", "off").unwrap();
        let limits = Rule::ALL.map(|(rule, _)| guard.limit(rule));
        assert_eq!(limits, [Some(0.25), Some(0.001), Some(0.9), Some(0.45), None]);
        assert_eq!(guard.set("rows", "0.5").unwrap_err(), "guard.rows stands twice");
        for wrong in ["", "much", "1.1", "-0.1", "101 %", "nan", "inf", "1e-3", "OFF", "30 percent"] {
            let why = guard.set("share", wrong).unwrap_err();
            assert!(why.contains(&format!("or off; found {wrong}")), "{why}");
        }
        let why = guard.set("size", "0.1").unwrap_err();
        assert_eq!(why, "there is no guard rule size; there are rows, share, silhouette, moved, unlike");
    }
}
