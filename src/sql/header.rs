//! The header of a SQL file: the `-- key: value` lines before its first blank line.
//!
//! A key is one word of lowercase letters, digits, `_` and `.`, immediately followed by the colon; any other comment
//! is prose. In `label.<feature>.<language>` the feature is spelled like its column, and the language is
//! a tag such as `en` or `pt-BR` (language.rs).

use std::collections::BTreeMap;

use tercile_kmeans::features::scaling::Scaling;

use super::guard::{Guard, Rule};
use super::language::{Labels, canonical};
use crate::scaling::{self, Given, ScaleMethod};

/// Maximum number of clusters of a segmentation.
pub const MAX_K: usize = 64;

/// The contents of a header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// The number of clusters. A view with `k` is a segmentation.
    pub k: Option<usize>,
    /// The words of each label are three or k.
    pub labels: Labels,
    /// By feature: how it is scaled, from `scale.<feature>` and `weight.<feature>`.
    pub scaling: BTreeMap<String, HeaderScaling>,
    /// The key columns of a segmentation of entities; empty for a segmentation of records.
    pub entity: Vec<String>,
    /// What a new model must keep to serve without an operator's decision.
    pub guard: Guard,
    /// The field that gives the time of a record, as written in `00_records.sql`, and its line.
    pub timestamp: Option<(String, usize)>,
}

/// The scaling of a feature and the line of its method, or of its weight if it has no line for a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderScaling {
    pub scaling: Scaling,
    pub line: usize,
}

/// A fault and its line, counted from 1.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    pub line: usize,
    pub why: String,
}

/// Parses the header of a view.
///
/// # Errors
/// At the first invalid header line.
pub fn parse(text: &str) -> Result<Header, Fault> {
    parse_as(text, false)
}

/// Parses the header of `00_records.sql`, which may have a `timestamp`.
///
/// # Errors
/// At the first invalid header line.
pub fn parse_records(text: &str) -> Result<Header, Fault> {
    parse_as(text, true)
}

/// The text without the guard rules of its header, which do not change the rows.
pub fn without_guard(text: &str) -> impl Iterator<Item = &str> {
    let mut in_header = true;
    text.split_inclusive('\n').filter(move |line| {
        in_header &= !line.trim().is_empty();
        !in_header || key_value(line).is_none_or(|(key, _)| !key.starts_with("guard."))
    })
}

fn parse_as(text: &str, is_records: bool) -> Result<Header, Fault> {
    let mut header = Header::default();
    let (mut label_lines, mut entity_line, mut guard_line) = (Vec::new(), None, None);
    let mut given: BTreeMap<String, (Given, usize)> = BTreeMap::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            break;
        }
        let fault = |why: String| Fault { line: i + 1, why };
        let Some((key, value)) = key_value(line) else { continue };
        if value.is_empty() {
            return Err(fault(format!("{key} has no value")));
        }
        if key == "k" {
            let k = value.parse().ok().filter(|k| (1..=MAX_K).contains(k));
            let k = k.ok_or_else(|| fault(format!("k must be a whole number from 1 to {MAX_K}, found {value}")))?;
            if header.k.replace(k).is_some() {
                return Err(fault("k stands twice".to_owned()));
            }
        } else if key == "entity" {
            if entity_line.replace(i + 1).is_some() {
                return Err(fault("entity stands twice".to_owned()));
            }
            header.entity = entity(value).map_err(fault)?;
        } else if let Some(rule) = key.strip_prefix("guard.") {
            header.guard.set(rule, value).map_err(fault)?;
            guard_line.get_or_insert(i + 1);
        } else if key == "timestamp" && is_records {
            if header.timestamp.replace((value.to_owned(), i + 1)).is_some() {
                return Err(fault("timestamp stands twice".to_owned()));
            }
        } else if key == "timestamp" {
            return Err(fault("timestamp is for 00_records.sql; a view returns _timestamp as a column".to_owned()));
        } else if let Some((feature, language)) = key.strip_prefix("label.").and_then(|rest| rest.rsplit_once('.')) {
            let Some(language) = canonical(language) else {
                return Err(fault(format!("{key} must end with a language tag such as en or pt-BR, found {language}")));
            };
            let words: Vec<String> = value.split('|').map(|word| word.trim().to_owned()).collect();
            if words.iter().any(String::is_empty) {
                return Err(fault(format!("{key} has an empty word")));
            }
            if let Some(word) = words.iter().enumerate().find(|(i, word)| words[..*i].contains(word)).map(|(_, w)| w) {
                return Err(fault(format!("{key} has the word {word} twice; each must tell clusters apart")));
            }
            label_lines.push((i + 1, words.len()));
            let languages = header.labels.entry(feature.to_owned()).or_default();
            if languages.insert(language, words).is_some() {
                return Err(fault(format!("{key} stands twice")));
            }
        } else if let Some(feature) = key.strip_prefix("scale.") {
            let method = value.parse::<ScaleMethod>().map_err(|why| fault(format!("{key}: {why}")))?;
            let (given, line) = given.entry(feature.to_owned()).or_default();
            if given.method.replace(method).is_some() {
                return Err(fault(format!("{key} stands twice")));
            }
            *line = i + 1;
        } else if let Some(feature) = key.strip_prefix("weight.") {
            let weight = scaling::weight(value).map_err(|why| fault(format!("{key}: {why}")))?;
            let (given, line) = given.entry(feature.to_owned()).or_insert((Given::default(), i + 1));
            if given.weight.replace(weight).is_some() {
                return Err(fault(format!("{key} stands twice")));
            }
            if given.method.is_none() {
                *line = i + 1;
            }
        } else {
            return Err(fault(format!(
                "unknown key {key}; known are k, entity, guard.<rule>, scale.<feature>, weight.<feature> and \
                 label.<feature>.<language>{}",
                if is_records { ", and timestamp" } else { "" }
            )));
        }
    }
    check_strays(text, is_records)?;
    if let (None, Some(line)) = (header.k, entity_line) {
        return Err(Fault { line, why: "an entity without k: only a segmentation has one".to_owned() });
    }
    if let (None, Some(line)) = (header.k, guard_line) {
        return Err(Fault { line, why: "a guard rule without k: only a segmentation has models".to_owned() });
    }
    if let (None, Some((_, line))) = (header.k, given.values().next()) {
        return Err(Fault { line: *line, why: "a scale or weight without k: only a segmentation has one".to_owned() });
    }
    let of_header = |(feature, (given, line)): (String, (Given, usize))| {
        (feature, HeaderScaling { scaling: given.scaling(), line })
    };
    header.scaling = given.into_iter().map(of_header).collect();
    for (line, words) in label_lines {
        match header.k {
            None => return Err(Fault { line, why: "a label without k: only a segmentation has labels".to_owned() }),
            Some(k) if words != 3 && words != k => {
                return Err(Fault { line, why: format!("a label needs three words, or k = {k}; found {words}") });
            }
            Some(_) => {}
        }
    }
    Ok(header)
}

/// The columns of `-- entity: a, b`, spelled like the columns of the view.
fn entity(value: &str) -> Result<Vec<String>, String> {
    let columns: Vec<String> = value.split(',').map(|name| name.trim().to_owned()).collect();
    if columns.iter().any(String::is_empty) {
        return Err("entity has an empty column name; write it as -- entity: a, b".to_owned());
    }
    match columns.iter().enumerate().find(|(i, name)| columns[..*i].contains(name)) {
        Some((_, name)) => Err(format!("entity names the column {name} twice")),
        None => Ok(columns),
    }
}

/// The line of the entity, counted from 1.
pub fn entity_line(text: &str) -> Option<usize> {
    let header = text.lines().take_while(|line| !line.trim().is_empty());
    let is_entity = |line: &str| key_value(line).is_some_and(|(key, _)| key == "entity");
    header.map(is_entity).position(|found| found).map(|line| line + 1)
}

/// The line of a feature's first label, counted from 1.
pub fn label_line(text: &str, feature: &str) -> Option<usize> {
    let labels = |line: &str| {
        let (key, _) = key_value(line)?;
        key.strip_prefix("label.")?.rsplit_once('.').map(|(labelled, _)| labelled == feature)
    };
    let header = text.lines().take_while(|line| !line.trim().is_empty());
    header.map(labels).position(|found| found == Some(true)).map(|line| line + 1)
}

/// Rejects lines that look like header lines but are not because of their case, a blank or their position. They would
/// be ignored silently.
fn check_strays(text: &str, is_records: bool) -> Result<(), Fault> {
    let mut header = true;
    for (i, line) in text.lines().enumerate() {
        header &= !line.trim().is_empty();
        let Some((key, _)) = line.trim_start().strip_prefix("--").and_then(|rest| rest.split_once(':')) else {
            continue;
        };
        let plain = key.trim().to_lowercase();
        let is_guard = plain.strip_prefix("guard.").is_some_and(|rule| Rule::named(rule).is_some());
        let is_timestamp = is_records && plain == "timestamp";
        let known = plain == "k" || plain == "entity" || is_timestamp || is_guard;
        let known = known || is_label(&plain) || is_scaling(&plain);
        if known && header && key_value(line).is_none() {
            return Err(Fault { line: i + 1, why: format!("write it as -- {plain}: with nothing before the colon") });
        }
        if known && !header {
            return Err(Fault {
                line: i + 1,
                why: format!("{plain} stands after a blank line, where the header has ended"),
            });
        }
    }
    Ok(())
}

fn key_value(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.trim_start().strip_prefix("--")?.split_once(':')?;
    let key = key.trim_start();
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '.';
    let is_key = !key.is_empty() && (key.chars().all(word) || is_label(key) || is_scaling(key));
    is_key.then_some((key, value.trim()))
}

/// True for keys of the form `label.<feature>.<language>`. The feature is spelled like its column: quoted names may
/// contain capitals, spaces and letters of any language. A key without a language counts only if the feature is one
/// word, and is then an error.
fn is_label(key: &str) -> bool {
    let Some(rest) = key.strip_prefix("label.") else { return false };
    let one_word = rest.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.');
    let with_language = |(feature, language): (&str, &str)| !feature.is_empty() && canonical(language).is_some();
    one_word || rest.rsplit_once('.').is_some_and(with_language)
}

/// True for keys of the form `scale.<feature>` and `weight.<feature>`, whose feature is spelled as in [`is_label`].
fn is_scaling(key: &str) -> bool {
    let feature = key.strip_prefix("scale.").or_else(|| key.strip_prefix("weight."));
    feature.is_some_and(|feature| !feature.is_empty() && feature == feature.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_has_a_scale_and_a_weight() {
        let of = |text: &str| parse(text).map_err(|f| format!("{}: {}", f.line, f.why));
        let header =
            of("-- k: 3\n-- weight.Net Price: 2\n-- scale.a: log\n-- scale.Net Price: robust\n\nSELECT 1").unwrap();
        let words: Vec<_> =
            header.scaling.iter().map(|(f, s)| (f.as_str(), scaling::words(s.scaling), s.line)).collect();
        let (price, a) = (Some("robust, weight 2".to_owned()), Some("log".to_owned()));
        assert_eq!(words, [("Net Price", price, 4), ("a", a, 3)]);
        assert_eq!(
            of("-- k: 3\n-- scale.a: logs").unwrap_err(),
            "2: scale.a: a scale is standard, log, robust or none, found logs"
        );
        for wrong in ["0", "-1", "NaN", "inf", "two"] {
            let why = format!("2: weight.a: a weight is a number above 0, such as 2 or 0.5, found {wrong}");
            assert_eq!(of(&format!("-- k: 3\n-- weight.a: {wrong}")).unwrap_err(), why);
        }
        assert_eq!(of("-- k: 3\n-- weight.a: 1\n-- weight.a: 2").unwrap_err(), "3: weight.a stands twice");
        assert_eq!(of("-- scale.a: log").unwrap_err(), "1: a scale or weight without k: only a segmentation has one");
        assert_eq!(
            of("-- k: 3\n\n-- scale.a: log").unwrap_err(),
            "3: scale.a stands after a blank line, where the header has ended"
        );
        assert_eq!(
            of("-- k: 3\n-- Scale.a: log").unwrap_err(),
            "2: write it as -- scale.a: with nothing before the colon"
        );
    }

    #[test]
    fn a_feature_with_spaces_has_labels_too() {
        let header = parse("-- k: 3\n-- label.actual price.en: Low | Mid | High\n\nSELECT 1").unwrap();
        assert_eq!(header.labels["actual price"]["en"], ["Low", "Mid", "High"]);
        assert_eq!(parse("-- k: 3\n-- label.Actual Price (\u{20b9}).id: a | b | c\n").unwrap().labels.len(), 1);
        // A malformed key that the header would lose, and prose that looks like a key.
        assert_eq!(parse("-- k: 3\n-- label.actual price.en : a | b | c\n").unwrap_err().line, 2);
        assert_eq!(parse("-- k: 3\n\n-- label.actual price.en: a | b | c\n").unwrap_err().line, 3);
        assert!(parse("-- k: 3\n-- label. is what words begin with: see above\n").unwrap().labels.is_empty());
    }

    #[test]
    fn a_header_is_read() {
        let header = parse("-- Prose: with a colon.\n-- k: 4\n-- label.a_b.en: w | x | y | z\n\n-- kk: 9\n").unwrap();
        assert_eq!(header.k, Some(4));
        assert_eq!(header.labels["a_b"]["en"], ["w", "x", "y", "z"]);
        let header =
            parse("-- k: 3\n-- label.Net Price.pt-br: Baixo | Médio | Alto\n-- label.a.de: a | b | c\n").unwrap();
        assert_eq!((header.labels["Net Price"]["pt-BR"].len(), header.labels["a"]["de"].len()), (3, 3));
        assert_eq!(parse("SELECT 1").unwrap(), Header::default());
    }

    #[test]
    fn an_entity_has_one_or_more_columns() {
        let of = |text: &str| parse(text).unwrap().entity;
        assert_eq!(of("-- k: 3\n-- entity: shop_id ,  Customer Id\n\nSELECT 1"), ["shop_id", "Customer Id"]);
        assert!(of("-- k: 3\n").is_empty());
        assert_eq!(entity_line("-- k: 3\n-- Prose.\n-- entity: a\n"), Some(3));
        assert_eq!(entity_line("-- k: 3\n\n-- entity: a\n"), None);
    }

    #[test]
    fn guard_rules_are_read() {
        let fault = |text: &str| parse(text).map_err(|f| format!("{}: {}", f.line, f.why)).unwrap_err();
        let guard = parse("-- k: 3\n-- guard.moved: 40 %\n-- guard.rows: off\n\nSELECT 1").unwrap().guard;
        assert_eq!(
            [Rule::Moved, Rule::Rows, Rule::Unlike].map(|rule| guard.limit(rule)),
            [Some(0.4), None, Some(0.05)]
        );
        assert!(fault("-- k: 3\n-- guard.size: 1").starts_with("2: there is no guard rule size; there are rows,"));
        assert_eq!(
            fault("-- k: 3\n-- guard.moved: 3"),
            "2: guard.moved must be a share from 0 to 1 such as 0.3 or 30 %, or off; found 3"
        );
        assert_eq!(fault("-- guard.rows: 0.5"), "1: a guard rule without k: only a segmentation has models");
        assert_eq!(fault("-- k: 3\n-- Guard.rows: 1"), "2: write it as -- guard.rows: with nothing before the colon");
        assert_eq!(
            fault("-- k: 3\n\n-- guard.rows: 1"),
            "3: guard.rows stands after a blank line, where the header has ended"
        );
    }

    #[test]
    fn faults_name_the_line() {
        let fault = |text: &str| parse(text).map_err(|f| format!("{}: {}", f.line, f.why)).unwrap_err();
        assert_eq!(fault("-- k: many"), "1: k must be a whole number from 1 to 64, found many");
        assert_eq!(fault("-- k: 0"), "1: k must be a whole number from 1 to 64, found 0");
        assert_eq!(fault("-- k: 3\n-- k: 3"), "2: k stands twice");
        assert_eq!(fault("-- k: 3\n\n-- k: 3"), "3: k stands after a blank line, where the header has ended");
        assert_eq!(fault("-- K: 3"), "1: write it as -- k: with nothing before the colon");
        assert_eq!(fault("-- k : 3"), "1: write it as -- k: with nothing before the colon");
        assert_eq!(fault("-- Label.a.en: x|y|z"), "1: write it as -- label.a.en: with nothing before the colon");
        assert_eq!(fault("-- k:"), "1: k has no value");
        assert_eq!(
            fault("-- K's\n-- kk: 3"),
            "2: unknown key kk; known are k, entity, guard.<rule>, scale.<feature>, weight.<feature> and label.<feature>.<language>"
        );
        assert_eq!(fault("-- label.a.en: x|y|z"), "1: a label without k: only a segmentation has labels");
        assert_eq!(
            fault("-- k: 3\n-- label.a.french: x|y|z"),
            "2: label.a.french must end with a language tag such as en or pt-BR, found french"
        );
        let twice = fault("-- k: 3\n-- label.a.pt-BR: x|y|z\n-- label.a.pt-br: x|y|z");
        assert_eq!(twice, "3: label.a.pt-br stands twice");
        assert_eq!(fault("-- k: 4\n-- label.a.en: x|y"), "2: a label needs three words, or k = 4; found 2");
        assert_eq!(fault("-- k: 3\n-- label.a.en: x||z"), "2: label.a.en has an empty word");
        assert_eq!(
            fault("-- timestamp: a"),
            "1: timestamp is for 00_records.sql; a view returns _timestamp as a column"
        );
        // Prose in a view.
        assert_eq!(parse("SELECT 1\n\n-- Timestamp: of the order\n").unwrap(), Header::default());
        assert_eq!(fault("-- entity: a"), "1: an entity without k: only a segmentation has one");
        assert_eq!(
            fault("-- k: 3\n-- entity: a, , b"),
            "2: entity has an empty column name; write it as -- entity: a, b"
        );
        assert_eq!(fault("-- k: 3\n-- entity: a, b, a"), "2: entity names the column a twice");
        assert_eq!(fault("-- k: 3\n-- entity: a\n-- entity: b"), "3: entity stands twice");
        assert_eq!(fault("-- k: 3\n-- Entity: a"), "2: write it as -- entity: with nothing before the colon");
        let twice = fault("-- k: 3\n-- label.a.en: x|y|z\n-- label.a.id: x|y| x");
        assert_eq!(twice, "3: label.a.id has the word x twice; each must tell clusters apart");
        assert_eq!(fault("-- k: 3\n-- label.a.en: x|y|z\n-- label.a.en: x|y|z"), "3: label.a.en stands twice");
    }

    #[test]
    fn the_fields_of_records_may_have_a_timestamp() {
        let fault = |text: &str| parse_records(text).map_err(|f| format!("{}: {}", f.line, f.why)).unwrap_err();
        let of = |text: &str| parse_records(text).unwrap().timestamp;
        assert_eq!(of("-- timestamp: Order Date dmy\n\nCREATE"), Some(("Order Date dmy".to_owned(), 1)));
        assert_eq!(of("-- Prose.\nCREATE"), None);
        assert_eq!(fault("-- timestamp: a\n-- timestamp: b"), "2: timestamp stands twice");
        assert_eq!(
            fault("CREATE\n\n-- timestamp: a"),
            "3: timestamp stands after a blank line, where the header has ended"
        );
        assert_eq!(fault("-- Timestamp: a"), "1: write it as -- timestamp: with nothing before the colon");
    }

    /// For any text, parsing the header ends without a panic.
    #[test]
    fn any_text_is_a_header_or_a_fault() {
        use rand_xoshiro::rand_core::{RngCore, SeedableRng};
        let mut rng = rand_xoshiro::Xoshiro256PlusPlus::seed_from_u64(1);
        let parts = ["-- ", "k", ":", " ", "3", "|", "label.", "a", ".en", "\n", "\n\n", "é", "--", "\u{0}", "."];
        for _ in 0..20_000 {
            let text: String = (0..rng.next_u32() % 20).map(|_| parts[rng.next_u32() as usize % parts.len()]).collect();
            let _ = parse(&text);
        }
    }
}
