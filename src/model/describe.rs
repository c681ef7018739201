//! Descriptions of clusters: one word per feature, chosen by the part that contains the cluster.
//!
//! Input: the clusters' shapes, the words of the SQL file, and the predecessor. Output: words and descriptions by language, and
//! the changes against the predecessor. Parts are decided once (parts.rs), and words are looked up per language.
//! `docs/descriptions.md` defines the rule.

use std::collections::BTreeMap;
use std::fmt;

use poem_openapi::Object;
use serde::{Deserialize, Serialize};

use super::parts::{History, Pair, Parts, Shapes, parts};
use super::{Cluster, METHOD, Model};
use crate::sql::language::{FALLBACK, Labels, offered};

/// Feature to language to word. A feature that the description omits is absent.
pub type Words = BTreeMap<String, BTreeMap<String, String>>;

/// The words and descriptions of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub words: Words,
    /// Language to the words of all features, joined by commas.
    pub descriptions: BTreeMap<String, String>,
}

/// A word that differs from the predecessor's for the same cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Object)]
#[oai(rename = "WordChange")]
pub struct WordChange {
    /// The cluster's number, in both models.
    pub cluster: u32,
    /// The feature. Absent where the whole description is compared, as the predecessor keeps no words by feature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub feature: Option<String>,
    /// The predecessor's word in English. Absent if its description left the feature out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub from: Option<String>,
    /// The new word in English. Absent if the description leaves the feature out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub to: Option<String>,
    /// The same by language, for those in which it differs.
    pub languages: BTreeMap<String, FromTo>,
}

/// Formats `rating was "Mid Rating", is "High Rating"`, in English unless only other languages differ.
impl fmt::Display for WordChange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let english = self.languages.get_key_value("en");
        let Some((language, FromTo { from, to })) = english.or(self.languages.iter().next()) else { return Ok(()) };
        let word =
            |word: &Option<String>| word.as_ref().map_or_else(|| "left out".to_owned(), |word| format!("\"{word}\""));
        let what = self.feature.as_deref().unwrap_or("its description");
        write!(out, "{what} was {}, is {}", word(from), word(to))?;
        if language == "en" { Ok(()) } else { write!(out, " (in {language})") }
    }
}

/// A word of the predecessor, and the one that takes its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Object)]
#[oai(rename = "FromTo")]
pub struct FromTo {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub to: Option<String>,
}

/// The clusters of the predecessor that continue in the new model.
#[derive(Debug, Clone)]
pub struct Before<'a> {
    /// By number; `None` for a number whose cluster is new.
    clusters: Vec<Option<&'a Cluster>>,
    /// True if the predecessor's words follow the rule of this module. The words of another method, such as the ranks of method
    /// 1, are compared with the new words but do not influence them.
    same_rule: bool,
}

impl<'a> Before<'a> {
    /// `new` states for each cluster of the new model whether it differs from the predecessor's cluster of the same number.
    pub fn new(predecessor: &'a Model, new: &[bool]) -> Self {
        let continued = |(cluster, new): (&'a Cluster, &bool)| (!new).then_some(cluster);
        let same_rule = predecessor.receipt.method == METHOD
            && predecessor.clusters.iter().all(|cluster| !cluster.words.is_empty());
        Self { clusters: predecessor.clusters.iter().zip(new).map(continued).collect(), same_rule }
    }

    fn pair(&self, feature: &str, a: usize, b: usize) -> Option<Pair> {
        let (a, b) = (self.clusters[a]?, self.clusters[b]?);
        self.same_rule.then(|| Pair {
            same_word: a.words.get(feature) == b.words.get(feature),
            first_above: a.centroid.get(feature) > b.centroid.get(feature),
        })
    }
}

/// Words and descriptions of each cluster, in the order of the cluster numbers.
pub fn describe(
    shapes: &Shapes<'_>,
    features: &[String],
    labels: &Labels,
    before: Option<&Before<'_>>,
) -> Vec<Described> {
    let history: &History<'_> = &|feature, a, b| before?.pair(&features[feature], a, b);
    let found = parts(shapes, history);
    (0..shapes.sizes.len()).map(|cluster| described(cluster, &found, features, labels)).collect()
}

fn described(cluster: usize, parts: &[Parts], features: &[String], labels: &Labels) -> Described {
    let (mut words, mut descriptions) = (Words::new(), BTreeMap::new());
    for language in offered(labels) {
        let mut list = Vec::with_capacity(features.len());
        for (feature, parts) in features.iter().zip(parts) {
            let scale = Scale::new(feature, language, labels);
            if let Some(word) = scale.word(parts.part[cluster], parts.count) {
                list.push((feature, word));
            }
        }
        if list.is_empty() {
            let feature = &features[0];
            list.push((feature, Scale::new(feature, language, labels).lowest()));
        }
        let text: Vec<&str> = list.iter().map(|(_, word)| word.as_str()).collect();
        descriptions.insert(language.to_owned(), text.join(", "));
        for (feature, word) in list {
            words.entry(feature.clone()).or_default().insert(language.to_owned(), word);
        }
    }
    Described { words, descriptions }
}

/// The words of a feature in one language.
struct Scale<'a> {
    feature: &'a str,
    language: &'a str,
    /// From low to high; `None` for words built from the feature's name.
    words: Option<&'a [String]>,
}

impl<'a> Scale<'a> {
    fn new(feature: &'a str, language: &'a str, labels: &'a Labels) -> Self {
        let words = labels.get(feature).and_then(|languages| languages.get(language).or(languages.get(FALLBACK)));
        Self { feature, language, words: words.map(Vec::as_slice) }
    }

    /// The number of words.
    fn len(&self) -> usize {
        self.words.map_or(3, <[String]>::len)
    }

    /// The word of a part out of `parts`; `None` if the feature is omitted because it has one part and no middle word.
    fn word(&self, part: usize, parts: usize) -> Option<String> {
        let last = self.len() - 1;
        match parts {
            1 if self.len().is_multiple_of(2) => None,
            1 => Some(self.at(last / 2)),
            // part · last / (parts - 1), rounded half up.
            _ if parts <= self.len() => Some(self.at((2 * part * last + parts - 1) / (2 * (parts - 1)))),
            _ => {
                let of = if self.language == "id" { "dari" } else { "of" };
                Some(format!("{} {} {of} {parts}", self.feature, part + 1))
            }
        }
    }

    fn lowest(&self) -> String {
        self.at(0)
    }

    fn at(&self, word: usize) -> String {
        let Self { feature, language, words } = self;
        match words {
            Some(words) => words[word].clone(),
            None if *language == "id" => format!("{feature} {}", ["Rendah", "Sedang", "Tinggi"][word]),
            None => format!("{} {feature}", ["Low", "Mid", "High"][word]),
        }
    }
}

/// The differences from the predecessor by cluster and feature. A new cluster has no differences.
pub fn words_changed(described: &[Described], features: &[String], before: &Before<'_>) -> Vec<WordChange> {
    let mut changes = Vec::new();
    for (cluster, (new, old)) in described.iter().zip(&before.clusters).enumerate() {
        let Some(old) = old else { continue };
        let mut compare = |feature: Option<&String>, from: Option<&BTreeMap<_, _>>, to: Option<&BTreeMap<_, _>>| {
            // A language that the SQL file has got or lost since is no change.
            let common = old.descriptions.keys().filter(|language| new.descriptions.contains_key(*language));
            let differing = common.filter_map(|language| {
                let word = |of: Option<&BTreeMap<String, String>>| of?.get(language).cloned();
                let change = FromTo { from: word(from), to: word(to) };
                (change.from != change.to).then(|| (language.clone(), change))
            });
            let languages: BTreeMap<String, FromTo> = differing.collect();
            if !languages.is_empty() {
                let english = |of: Option<&BTreeMap<String, String>>| of?.get("en").cloned();
                let (cluster, feature) = (cluster as u32, feature.cloned());
                changes.push(WordChange { cluster, feature, from: english(from), to: english(to), languages });
            }
        };
        if old.words.is_empty() {
            compare(None, Some(&old.descriptions), Some(&new.descriptions));
        } else {
            features.iter().for_each(|name| compare(Some(name), old.words.get(name), new.words.get(name)));
        }
    }
    changes
}

/// Features whose words cannot be used because they have more parts than words.
pub fn short_of_words<'a>(described: &[Described], features: &'a [String], labels: &'a Labels) -> Vec<Shortage<'a>> {
    let shortage = |feature: &'a String| {
        let words = labels.get(feature)?.values().map(Vec::len).min()?;
        let used: std::collections::BTreeSet<_> = described.iter().map(|one| one.words.get(feature)).collect();
        (used.len() > words).then_some(Shortage { feature, parts: used.len(), words })
    };
    features.iter().filter_map(shortage).collect()
}

/// A feature whose clusters fall into more parts than it has words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortage<'a> {
    pub feature: &'a str,
    pub parts: usize,
    pub words: usize,
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    fn labels(en: &[&str], id: &[&str]) -> Labels {
        let list = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let mut languages = BTreeMap::from([("en".to_owned(), list(en))]);
        if !id.is_empty() {
            languages.insert("id".to_owned(), list(id));
        }
        BTreeMap::from([("price".to_owned(), languages)])
    }

    fn names(features: &[&str]) -> Vec<String> {
        features.iter().map(|&feature| feature.to_owned()).collect()
    }

    /// Clusters of ten rows each, with a standard deviation of 1.
    fn of(centroids: &Array2<f64>, features: &[&str], labels: &Labels, before: Option<&Before<'_>>) -> Vec<Described> {
        let (spread, sizes) = (Array2::ones(centroids.dim()), vec![10; centroids.nrows()]);
        let shapes = Shapes { centroids: centroids.view(), spread: spread.view(), sizes: &sizes };
        describe(&shapes, &names(features), labels, before)
    }

    fn texts(described: &[Described], language: &str) -> Vec<String> {
        described.iter().map(|one| one.descriptions[language].clone()).collect()
    }

    fn english(centroids: &[f64], labels: &Labels) -> Vec<String> {
        let centroids = Array2::from_shape_fn((centroids.len(), 1), |(c, _)| centroids[c]);
        texts(&of(&centroids, &["price"], labels, None), "en")
    }

    #[test]
    fn a_part_takes_the_word_at_its_place() {
        let three = labels(&["Low Price", "Mid Price", "High Price"], &[]);
        assert_eq!(english(&[5.0], &three), ["Mid Price"]);
        assert_eq!(english(&[9.0, 5.0], &three), ["High Price", "Low Price"]);
        assert_eq!(english(&[9.0, 5.0, 7.0], &three), ["High Price", "Low Price", "Mid Price"]);
        assert_eq!(english(&[1.0, 3.0, 5.0, 7.0], &three)[1], "price 2 of 4", "more parts than words");
        let four = labels(&["a", "b", "c", "d"], &[]);
        assert_eq!(english(&[1.0, 3.0, 5.0, 7.0], &four), ["a", "b", "c", "d"]);
        let six = labels(&["a", "b", "c", "d", "e", "f"], &[]);
        assert_eq!(english(&[1.0, 3.0, 5.0], &six), ["a", "d", "f"], "halves are rounded up");
        assert_eq!(english(&[5.0], &four), ["a"], "no word is in the middle, and it is the only feature");
        assert_eq!(english(&[5.0], &labels(&["x"], &[])), ["x"]);
    }

    #[test]
    fn a_feature_that_says_nothing_is_left_out_where_no_word_is_in_the_middle() {
        let centroids = array![[5.0, 1.0], [5.1, 9.0]];
        let two = labels(&["Cheap", "Dear"], &["Murah", "Sedang", "Mahal"]);
        let found = of(&centroids, &["price", "b"], &two, None);
        assert_eq!(texts(&found, "en"), ["Low b", "High b"]);
        assert_eq!(texts(&found, "id"), ["Sedang, b Rendah", "Sedang, b Tinggi"], "by the same parts");
        assert!(!found[0].words["price"].contains_key("en"));
        let same = of(&array![[5.0], [5.0]], &["price"], &two, None);
        assert_eq!(texts(&same, "en"), ["Cheap", "Cheap"]);
    }

    #[test]
    fn features_without_words_are_named_by_themselves() {
        let found = of(&array![[1.0, 3.0], [2.0, 2.0]], &["a", "b"], &Labels::new(), None);
        assert_eq!(
            (texts(&found, "en")[0].as_str(), texts(&found, "id")[0].as_str()),
            ("Low a, High b", "a Rendah, b Tinggi")
        );
    }

    /// A model with these clusters.
    fn model(centroids: &Array2<f64>, features: &[&str], described: Vec<Described>) -> Model {
        let text = include_str!("../../tests/corpus/model/price_rating");
        let mut model = Model::parse(text.as_bytes()).unwrap();
        let template = model.clusters[0].clone();
        let cluster = |(i, one): (usize, Described)| Cluster {
            cluster: i as u32,
            description: one.descriptions["en"].clone(),
            descriptions: one.descriptions,
            words: one.words,
            centroid: names(features).into_iter().zip(centroids.row(i).iter().copied()).collect(),
            ..template.clone()
        };
        model.clusters = described.into_iter().enumerate().map(cluster).collect();
        model.features = names(features);
        model.receipt.method = METHOD;
        model
    }

    #[test]
    fn words_hold_and_changes_are_listed() {
        let three = labels(&["Low", "Mid", "High"], &["Rendah", "Sedang", "Tinggi"]);
        let (first, features) = (array![[0.0], [1.0], [5.0]], ["price"]);
        let described = of(&first, &features, &three, None);
        assert_eq!(texts(&described, "en"), ["Low", "Mid", "High"]);
        let old = model(&first, &features, described);
        let changes = |next: &Array2<f64>, new: [bool; 3], old: &Model| {
            let before = Before::new(old, &new);
            let described = of(next, &features, &three, Some(&before));
            words_changed(&described, &names(&features), &before)
        };
        assert_eq!(changes(&first, [false; 3], &old), []);
        assert_eq!(changes(&array![[0.0], [0.6], [5.0]], [false; 3], &old), [], "0.6 is enough to keep a word");
        // The lower two clusters swapped their order and differ enough to get different words.
        let swapped = changes(&array![[1.0], [0.0], [5.0]], [false; 3], &old);
        let shown: Vec<_> = swapped.iter().map(|c| (c.cluster, c.from.as_deref(), c.to.as_deref())).collect();
        assert_eq!(shown, [(0, Some("Low"), Some("Mid")), (1, Some("Mid"), Some("Low"))]);
        assert_eq!(swapped[0].to_string(), "price was \"Low\", is \"Mid\"");
        assert_eq!(swapped[0].languages["id"].to.as_deref(), Some("Sedang"));
        assert_eq!(
            changes(&array![[1.0], [0.0], [5.0]], [true, true, false], &old),
            [],
            "new clusters have no words yet"
        );
        // A model of an earlier version has no words per feature: it does not influence the words and is compared as a whole.
        let mut older = old.clone();
        older.clusters.iter_mut().for_each(|cluster| cluster.words.clear());
        let found = changes(&array![[0.0], [6.0], [5.5]], [false; 3], &older);
        let shown: Vec<_> = found.iter().map(|c| (c.cluster, c.feature.as_deref(), c.to.as_deref())).collect();
        assert_eq!(shown, [(1, None, Some("High")), (2, None, Some("Mid"))]);
    }

    #[test]
    fn more_parts_than_words_are_noticed() {
        let three = labels(&["Low", "Mid", "High"], &[]);
        let found = of(&array![[1.0], [3.0], [5.0], [7.0]], &["price"], &three, None);
        let short = [Shortage { feature: "price", parts: 4, words: 3 }];
        assert_eq!(short_of_words(&found, &names(&["price"]), &three), short);
        let found = of(&array![[1.0], [3.0], [5.0]], &["price"], &three, None);
        assert_eq!(short_of_words(&found, &names(&["price"]), &three), []);
    }
}
