//! Events as alerts of Alertmanager's API v2.

use chrono::{DateTime, Duration, SecondsFormat, Utc};
use serde_json::{Value, json};

use super::event::{Event, Kind, State};

/// The path of the API below the address of an Alertmanager.
pub const PATH: &str = "api/v2/alerts";
/// Alertmanager resolves an alert without an end five minutes after it was last sent. An episode is sent when it begins and when
/// it ends, so it has an end that is far away, until its end is sent.
const OPEN: Duration = Duration::days(365);
/// How long an event that happens at one moment is shown.
const SHOWN: Duration = Duration::minutes(5);

/// The body of a request. `at` is when the message was made.
pub fn body(event: &Event, at: DateTime<Utc>) -> Value {
    let since = DateTime::parse_from_rfc3339(&event.since).map_or(at, |since| since.with_timezone(&Utc)).min(at);
    let ends = match event.state {
        State::Resolved => at,
        State::Firing if event.event.is_episode() => at + OPEN,
        State::Firing => at + SHOWN,
    };
    let time = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Millis, true);
    let mut labels = json!({
        "alertname": format!("tercile.{}", event.event.name()), "event": event.event.name(), "severity": severity(event.event),
    });
    // An alert is known by its labels: they are the same when it ends, and have no figures.
    let mut label = |name: &str, value: String| labels[name] = Value::String(value);
    if let Some(segmentation) = &event.segmentation {
        label("segmentation", segmentation.clone());
    }
    if let Some(slice) = event.slice {
        label("slice", slice.to_string());
    }
    if let (Kind::Gap, Some(partition)) = (event.event, event.details.get("partition")) {
        label("partition", partition.to_string());
    }
    let annotations = json!({ "summary": event.sentence(), "id": event.id, "details": event.details.to_string() });
    json!([{ "labels": labels, "annotations": annotations, "startsAt": time(since), "endsAt": time(ends) }])
}

fn severity(kind: Kind) -> &'static str {
    match kind {
        Kind::TrainingDone | Kind::Promoted | Kind::Test => "info",
        Kind::Drift | Kind::HeldBack | Kind::TrainingRefused | Kind::Lag | Kind::Unreadable => "warning",
        Kind::Gap | Kind::StoreError => "critical",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_alert_has_the_labels_of_its_begin() {
        let at = DateTime::parse_from_rfc3339("2026-11-29T10:00:00Z").unwrap().with_timezone(&Utc);
        let mut begun = Event::training_failed("the SQL is wrong", false);
        begun.since = "2026-11-29T09:30:00.000Z".to_owned();
        let ended = begun.clone().resolved("trained".to_owned(), Value::Null);
        let (begun, ended) = (&body(&begun, at)[0], &body(&ended, at)[0]);
        assert_eq!(begun["labels"], ended["labels"]);
        assert_eq!(begun["startsAt"], "2026-11-29T09:30:00.000Z");
        assert_eq!(
            (&begun["endsAt"], &ended["endsAt"]),
            (&json!("2027-11-29T10:00:00.000Z"), &json!("2026-11-29T10:00:00.000Z"))
        );
        let promoted = &body(&Event::promoted("discount", 3, (2, Some(1)), "training"), at)[0];
        assert_eq!(promoted["endsAt"], "2026-11-29T10:05:00.000Z");
        assert_eq!((&promoted["labels"]["slice"], &promoted["labels"]["severity"]), (&json!("3"), &json!("info")));
    }
}
