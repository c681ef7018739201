//! Words for clusters, from where their centroids stand.

use std::collections::BTreeMap;

use ndarray::ArrayView2;

use crate::sql::header::LANGUAGES;

/// Feature to language to words, from low to high.
pub type Labels = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// Language to description, for each centroid (rows, in original units).
pub fn describe(centroids: ArrayView2<'_, f64>, features: &[String], labels: &Labels) -> Vec<BTreeMap<String, String>> {
    let ranks: Vec<Ranks> = centroids.columns().into_iter().map(|column| Ranks::of(column.iter())).collect();
    let words_of = |cluster: usize, language: &str| {
        let words = features.iter().zip(&ranks).map(|(feature, ranks)| {
            let words = labels.get(feature).and_then(|languages| languages.get(language).or(languages.get("en")));
            word(feature, language, words, ranks.rank[cluster], ranks.distinct, centroids.nrows())
        });
        words.collect::<Vec<_>>().join(", ")
    };
    (0..centroids.nrows())
        .map(|cluster| LANGUAGES.iter().map(|&language| (language.to_owned(), words_of(cluster, language))).collect())
        .collect()
}

/// Where each cluster's value stands among the distinct ones, from 0.
struct Ranks {
    rank: Vec<usize>,
    distinct: usize,
}

impl Ranks {
    /// Values count as equal when they agree to nine significant digits.
    fn of<'a>(values: impl Iterator<Item = &'a f64>) -> Self {
        let rounded: Vec<f64> = values.map(|value| format!("{:.8e}", value + 0.0).parse().unwrap_or(*value)).collect();
        let mut distinct = rounded.clone();
        distinct.sort_by(f64::total_cmp);
        distinct.dedup();
        let rank = rounded.iter().map(|value| distinct.partition_point(|d| d < value)).collect();
        Self { rank, distinct: distinct.len() }
    }
}

fn word(feature: &str, language: &str, words: Option<&Vec<String>>, rank: usize, distinct: usize, k: usize) -> String {
    if let Some(words) = words {
        if words.len() == k && distinct == k && k != 3 {
            return words[rank].clone();
        }
        if words.len() == 3 && distinct <= 3 {
            return words[three(rank, distinct)].clone();
        }
    } else if distinct <= 3 {
        let generic = match language {
            "id" => ["Rendah", "Sedang", "Tinggi"],
            _ => ["Low", "Mid", "High"],
        };
        let word = generic[three(rank, distinct)];
        return if language == "id" { format!("{feature} {word}") } else { format!("{word} {feature}") };
    }
    let of = if language == "id" { "dari" } else { "of" };
    format!("{feature} {} {of} {distinct}", rank + 1)
}

/// Which of low, mid and high: one value is mid, two are low and high.
fn three(rank: usize, distinct: usize) -> usize {
    match (rank, distinct) {
        (_, 1) => 1,
        (0, _) => 0,
        (1, 3) => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    fn labels(words: &[&str]) -> Labels {
        let words = words.iter().map(|&w| w.to_owned()).collect();
        BTreeMap::from([("price".into(), BTreeMap::from([("en".into(), words)]))])
    }

    fn english(centroids: &Array2<f64>, features: &[&str], labels: &Labels) -> Vec<String> {
        let features: Vec<String> = features.iter().map(|&f| f.to_owned()).collect();
        describe(centroids.view(), &features, labels).into_iter().map(|d| d["en"].clone()).collect()
    }

    #[test]
    fn one_two_three_or_more_values() {
        let three = labels(&["Low Price", "Mid Price", "High Price"]);
        assert_eq!(english(&array![[5.0]], &["price"], &three), ["Mid Price"]);
        assert_eq!(english(&array![[9.0], [5.0]], &["price"], &three), ["High Price", "Low Price"]);
        assert_eq!(english(&array![[9.0], [5.0], [7.0]], &["price"], &three), ["High Price", "Low Price", "Mid Price"]);
        assert_eq!(english(&array![[9.0], [5.0], [5.000_000_000_1]], &["price"], &three)[2], "Low Price");
        let four = array![[1.0], [2.0], [3.0], [4.0]];
        assert_eq!(english(&four, &["price"], &three)[1], "price 2 of 4");
        assert_eq!(english(&four, &["price"], &labels(&["a", "b", "c", "d"]))[1], "b");
    }

    #[test]
    fn features_without_words_are_named_by_themselves() {
        let centroids = array![[1.0, 3.0], [2.0, 2.0]];
        let described = describe(centroids.view(), &["a".into(), "b".into()], &Labels::new());
        assert_eq!(described[0]["en"], "Low a, High b");
        assert_eq!(described[0]["id"], "a Rendah, b Tinggi");
    }
}
