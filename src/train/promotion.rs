//! The decision whether a new model serves (`--promote`).
//!
//! Input: a new model and its rows, the model that serves the slice, and the guard rules of the segmentation. Output: the new model
//! serves, or it is a candidate with the rules that it violates.

use super::Refusal;
use super::comparison::Versus;
use super::dataset::Prefix;
use crate::model::{Cluster, Model, ModelRegistry, Promote, ServingState, Violation};
use crate::printable::percent;
use crate::sql::Segmentation;
use crate::sql::guard::Rule;

/// Begin of the words of a violation that is that of an earlier candidate.
const INHERITED: &str = "it has the rows of version ";
/// New rows below which all rows count for [`Rule::Unlike`].
const FEW: u64 = 100;

/// The model of the current records and SQL. It may serve already.
pub(super) struct Case<'a> {
    pub segmentation: &'a Segmentation,
    pub model: &'a Model,
    /// The model that serves the slice, if it can be read.
    pub serving: Option<&'a Model>,
    pub registry: &'a ModelRegistry,
    /// The rows that the model was trained on.
    pub rows: &'a dyn Prefix,
}

impl Case<'_> {
    /// Lets the model serve, or makes it a candidate.
    ///
    /// # Errors
    /// If the rows cannot be read.
    pub fn decide(&self, promote: Promote, standing: &mut ServingState) -> Result<(), Refusal> {
        let version = self.model.version;
        if standing.version == Some(version) {
            // The SQL or the records are those of the serving model again.
            standing.candidate = None;
            return Ok(());
        }
        let rejected = standing.rejected.as_ref().is_some_and(|rejected| rejected.version == version);
        if rejected {
            // An operator's decision holds until there are other records or SQL.
            standing.candidate = None;
            return Ok(());
        }
        if promote == Promote::Auto {
            standing.promote(version);
            return Ok(());
        }
        let Some(serving) = self.serving.filter(|model| model.is_continued_by(self.segmentation)) else {
            let why = match (self.serving, standing.version) {
                (Some(other), _) => format!("version {} has other features or another k", other.version),
                (None, Some(lost)) => format!("version {lost}, which served, cannot be read"),
                (None, None) => "there is no model before it".to_owned(),
            };
            tracing::info!("{}: version {version} serves without a comparison, because {why}", self.name());
            standing.promote(version);
            return Ok(());
        };
        let mut violated = self.violated(serving)?;
        if violated.iter().all(|violation| violation.rule != Rule::Unlike) {
            violated.extend(self.inherited(standing));
        }
        if promote == Promote::Guarded && violated.is_empty() {
            standing.promote(version);
            return Ok(());
        }
        let words: Vec<&str> = violated.iter().map(|violation| violation.words.as_str()).collect();
        let by_hand = (promote == Promote::Manual).then_some("models are promoted by hand");
        let reason = by_hand.into_iter().chain(words).collect::<Vec<_>>().join("; ");
        standing.hold_back(version, violated, reason);
        Ok(())
    }

    /// The violation of [`Rule::Unlike`] by a candidate that nobody promoted and whose rows the model has too: more rows lower their
    /// share, and change nothing about them. Rows of entities are replaced, so that theirs are judged anew.
    fn inherited(&self, standing: &ServingState) -> Option<Violation> {
        self.segmentation.guard.limit(Rule::Unlike).filter(|_| self.segmentation.entity.is_empty())?;
        let candidate = standing.candidate.as_ref().map(|held| (held.version, &held.violated));
        let rejected = standing.rejected.as_ref().map(|no| (no.version, &no.violated));
        let (version, violated) = candidate.or(rejected)?;
        let violation = violated.iter().find(|violation| violation.rule == Rule::Unlike)?;
        let (then, now) = (&self.registry.model_of(version, self.model.slice).ok()?.receipt, &self.model.receipt);
        let has_its_rows = then.sql_hash == now.sql_hash && then.topic == now.topic;
        let words = match violation.words.starts_with(INHERITED) {
            true => violation.words.clone(),
            false => format!("{INHERITED}{version}, which was not promoted: {}", violation.words),
        };
        has_its_rows.then(|| Violation { words, ..violation.clone() })
    }

    fn name(&self) -> String {
        format!("{}@{}", self.segmentation.name, self.model.slice)
    }

    /// The guard rules that the model violates.
    fn violated(&self, serving: &Model) -> Result<Vec<Violation>, Refusal> {
        let guard = &self.segmentation.guard;
        let (model, before) = (self.model, serving.version);
        let mut violated = Vec::new();
        let mut check = |rule: Rule, value: f64, words: &dyn Fn() -> String| {
            let Some(limit) = guard.limit(rule) else { return };
            let at_least = matches!(rule, Rule::Rows | Rule::Share | Rule::Silhouette);
            if if at_least { value < limit } else { value > limit } {
                let bound = if at_least { "least" } else { "most" };
                let words = format!("{} (at {bound} {})", words(), percent(limit));
                violated.push(Violation { rule, value: Some(value), limit, words });
            }
        };
        let rows = part(model.rows, serving.rows);
        check(Rule::Rows, rows, &|| {
            format!("it has {} rows, {} of the {} of version {before}", model.rows, percent(rows), serving.rows)
        });
        if let Some(Cluster { cluster, description, size, .. }) = model.clusters.iter().min_by_key(|one| one.size) {
            let share = part(*size, model.rows);
            check(Rule::Share, share, &|| {
                format!("its cluster {cluster} ({description}) has {size} of {} rows, {}", model.rows, percent(share))
            });
        }
        if let (Some(now), Some(then)) = (model.silhouette, serving.silhouette) {
            let kept = kept(now, then);
            check(Rule::Silhouette, kept, &|| {
                format!("its silhouette is {now:.3}, and that of version {before} is {then:.3}")
            });
        }
        if guard.limit(Rule::Moved).or(guard.limit(Rule::Unlike)).is_none() {
            return Ok(violated);
        }
        let versus = Versus::new(self.registry, serving, model);
        let counts = match self.rows.compare(&versus) {
            Err(error @ (Refusal::Store(_) | Refusal::NoMembers(_))) => {
                // Members of the serving model are needed to tell which entities are new.
                let limit = guard.limit(Rule::Moved).unwrap_or(1.0);
                let words = format!("its rows cannot be compared with those of version {before}: {error}");
                violated.push(Violation { rule: Rule::Moved, value: None, limit, words });
                return Ok(violated);
            }
            counts => counts?,
        };
        let moved = part(counts.moved, counts.common);
        check(Rule::Moved, moved, &|| {
            format!("{} of {} common rows change their cluster", percent(moved), counts.common)
        });
        if versus.limits.is_none() && guard.limit(Rule::Unlike).is_some() {
            tracing::warn!(
                "{}: version {before} has no baseline, because an earlier tercile trained it; guard.unlike is not checked",
                self.name()
            );
        }
        let ((unlike, of), what) = match counts.new {
            0..FEW => ((counts.unlike, counts.rows), "rows"),
            new => ((counts.new_unlike, new), "new rows"),
        };
        let share = part(unlike, of);
        check(Rule::Unlike, share, &|| {
            format!("{} of its {of} {what} are unlike those of version {before}", percent(share))
        });
        Ok(violated)
    }
}

/// 0 of nothing.
fn part(some: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { some as f64 / all as f64 }
}

/// A silhouette as a share of an earlier one. Silhouettes can be negative: the loss is in units of the earlier one's size.
fn kept(now: f64, then: f64) -> f64 {
    match then == 0.0 {
        true if now < 0.0 => 0.0,
        true => 1.0,
        false => 1.0 + (now - then) / then.abs(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_of_silhouette_is_a_share_of_its_size() {
        assert!((kept(0.45, 0.5) - 0.9).abs() < 1e-12);
        assert!((kept(-0.22, -0.2) - 0.9).abs() < 1e-12);
        assert!(kept(0.1, -0.2) > 1.0);
        assert_eq!([kept(0.0, 0.0), kept(0.1, 0.0), kept(-0.1, 0.0)], [1.0, 1.0, 0.0]);
    }
}
