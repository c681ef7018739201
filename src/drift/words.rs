//! The sentence of a drift report.

use super::{Direction, Drift, ENOUGH, FeatureDrift, Of, State};
use crate::model::Model;
use crate::model::baseline::Baseline;
use crate::printable::percent;

/// What changed: feature, direction, segment and start, or that there is too little data.
pub fn sentence(drift: &Drift, model: &Model, baseline: &Baseline, strange: bool) -> String {
    let what = match (drift.of, model.entity.is_empty()) {
        (Of::Api, _) => "rows of requests",
        (_, true) => "rows",
        (_, false) => "entities",
    };
    let since = drift.since.as_ref().map_or_else(String::new, |since| format!(" since {since}"));
    match drift.state {
        State::TooFew if baseline.rows < ENOUGH => {
            format!("too little data: the model was trained on {} {what}, and {ENOUGH} are needed", baseline.rows)
        }
        State::TooFew => format!("too little data: {} {what}{since}, and {ENOUGH} are needed", drift.read),
        State::Ok => {
            let most = greatest(drift).map_or_else(String::new, |most| format!("; {most}"));
            let (share, before) = (percent(drift.unlike), percent(drift.unlike_before));
            format!(
                "{} {what}{since} are distributed like those of the training: {share} are unlike them, {before} of the training{most}",
                drift.read
            )
        }
        State::Drifting => {
            let mut features: Vec<&FeatureDrift> = drift.features.iter().filter(|one| one.is_drifting()).collect();
            features.sort_by(|a, b| b.psi.total_cmp(&a.psi));
            let since = drift.began.as_ref().map_or(since, |began| format!(" since {began}"));
            let mut parts: Vec<String> = features.into_iter().map(|one| feature(one, &since)).collect();
            if strange {
                let (share, before) = (percent(drift.unlike), percent(drift.unlike_before));
                parts.push(format!("{share} of the {what} are unlike those of the training ({before} of which are)"));
            }
            let changed = |share: f64, before: f64| (share - before).abs();
            let cluster = drift
                .clusters
                .iter()
                .filter(|one| one.is_drifting())
                .max_by(|a, b| changed(a.share, a.share_before).total_cmp(&changed(b.share, b.share_before)));
            if let Some(one) = cluster {
                let (share, before) = (percent(one.share), percent(one.share_before));
                let verb = if one.share >= one.share_before { "grew" } else { "shrank" };
                parts.push(format!(
                    "cluster {} \"{}\" {verb} from {before} to {share} of the {what}",
                    one.cluster, one.description
                ));
            }
            if drift.features.iter().any(FeatureDrift::is_drifting) {
                return parts.join("; ");
            }
            // None changes enough by itself; the one that changes most is where to look first.
            format!(
                "{}{since}{}",
                parts.join("; "),
                greatest(drift).map_or_else(String::new, |most| format!("; {most}"))
            )
        }
    }
}

fn greatest(drift: &Drift) -> Option<String> {
    let most = drift.features.iter().max_by(|a, b| a.psi.total_cmp(&b.psi))?;
    Some(format!("the greatest PSI is {:.2}, of {}", most.psi, most.name))
}

fn feature(one: &FeatureDrift, since: &str) -> String {
    let FeatureDrift { name, psi, missing, missing_before, direction, .. } = one;
    if (missing - missing_before).abs() >= 0.1 {
        let (now, before) = (percent(*missing), percent(*missing_before));
        return format!("{name} is missing in {now} of the rows{since}, {before} before (PSI {psi:.2})");
    }
    let change = match direction {
        Direction::Up => "is higher",
        Direction::Down => "is lower",
        Direction::Spread | Direction::None => "is spread otherwise",
    };
    format!("{name} {change}{since} (PSI {psi:.2})")
}
