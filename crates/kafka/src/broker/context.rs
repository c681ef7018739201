//! Client callbacks: log lines, connection errors, refused commits.
//!
//! librdkafka's error codes lack the reason ("timed out"). Its log lines have it ("Failed to resolve 'kafka-1:9092'"), but
//! arrive many times a second while a broker is unreachable. So they are logged only with `-v`, and the latest reason is kept
//! here for error messages and warnings.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

/// Reacts to rebalances of a consumer group.
pub(super) trait Rebalance: Send + Sync {
    /// Assigns or revokes the partitions of `list`.
    fn rebalance(&self, consumer: &BaseConsumer<Context>, change: RDKafkaRespErr, list: &mut TopicPartitionList);
}

/// Callbacks and their state for one client.
#[derive(Default)]
pub(super) struct Context {
    pub(super) failures: Failures,
    /// Of group members.
    pub(super) on_rebalance: Option<Arc<dyn Rebalance>>,
    /// librdkafka's text for the latest error.
    reason: Mutex<String>,
    /// Error code of the latest refused commit.
    commit: Mutex<Option<RDKafkaErrorCode>>,
}

impl Context {
    pub(super) fn new(failures: &Failures) -> Self {
        Self { failures: failures.clone(), ..Self::default() }
    }

    /// librdkafka's text for the error that it just returned.
    pub(super) fn reason(&self) -> String {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the error code of the latest refused commit.
    pub(super) fn refused_commit(&self) -> Option<RDKafkaErrorCode> {
        self.commit.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "FAIL" {
            self.failures.hear(message, false);
        }
        tracing::debug!(?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let denied = error.rdkafka_error_code() == Some(RDKafkaErrorCode::Authentication);
        self.failures.hear(reason, denied);
        reason.clone_into(&mut self.reason.lock().unwrap_or_else(PoisonError::into_inner));
        tracing::debug!(%error, "{reason}");
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, change: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if let Some(reaction) = &self.on_rebalance {
            reaction.rebalance(consumer, change, list);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(%error, "a commit failed");
            *self.commit.lock().unwrap_or_else(PoisonError::into_inner) = error.rdkafka_error_code();
        }
    }
}

/// The latest connection failures, shared by all clients of a cluster.
#[derive(Clone, Default)]
pub(super) struct Failures(Arc<Mutex<Latest>>);

#[derive(Default)]
struct Latest {
    /// Failure at an address given by the user.
    given: Option<Failure>,
    /// Failure at an address advertised by the cluster.
    advertised: Option<Failure>,
    /// Authentication failure.
    denied: Option<Failure>,
}

#[derive(Clone, Debug, PartialEq)]
struct Failure {
    /// host:port
    broker: String,
    what: String,
    at: Instant,
}

impl fmt::Debug for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Failures")
    }
}

impl Failures {
    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the failure in a log line or error, if it concerns a connection.
    pub(super) fn hear(&self, message: &str, denied: bool) {
        let Some((broker, given, what)) = parse(message) else { return };
        let hint = if was_in_use(message) { "" } else { protocol_hint(&what) };
        let failure = Failure { broker, what: format!("{what}{hint}"), at: Instant::now() };
        let mut latest = self.latest();
        if denied {
            latest.denied = Some(failure.clone());
        }
        *(if given { &mut latest.given } else { &mut latest.advertised }) = Some(failure);
    }

    /// The authentication failure, if one occurred `within` this time.
    pub(super) fn denied(&self, within: Duration) -> Option<String> {
        self.latest()
            .denied
            .as_ref()
            .filter(|failure| failure.at.elapsed() <= within)
            .map(|failure| failure.what.clone())
    }

    /// The connection failure, if one occurred `within` this time. `servers` are the addresses given by the user.
    pub(super) fn reason(&self, servers: &str, within: Duration) -> Option<String> {
        let latest = self.latest();
        let recent = |failure: &&Failure| failure.at.elapsed() <= within;
        let given = latest.given.as_ref().filter(recent);
        let advertised = latest.advertised.as_ref().filter(recent);
        let is_given = |broker: &str| servers.split(',').any(|server| host_and_port(server.trim()) == broker);
        let check = |what: &str| format!("{what}; check --bootstrap-servers and that the broker runs");
        match (given, advertised) {
            (None, None) => None,
            // librdkafka renames a bootstrap connection once the cluster identifies the broker.
            (_, Some(Failure { broker, what, .. })) if is_given(broker) => Some(check(what)),
            (Some(Failure { what, .. }), None) => Some(check(what)),
            (_, Some(Failure { broker, what, .. })) => Some(format!(
                "the cluster advertises a broker as {broker}, and that address fails: {what}; check advertised.listeners of the \
                 broker, and that this machine reaches that address"
            )),
        }
    }
}

/// Likely cause of a failure that its text does not mention.
fn protocol_hint(what: &str) -> &'static str {
    if what.contains("SSL connection closed") {
        " (the listener may not speak TLS: check security.protocol)"
    } else if ["connection closed by peer", "Invalid response size", "Broken pipe", "Connection reset"]
        .iter()
        .any(|words| what.contains(words))
    {
        // A broker closes a connection of the wrong protocol without a message.
        " (the listener may expect another security.protocol: SASL_PLAINTEXT, SSL or SASL_SSL)"
    } else {
        ""
    }
}

fn host_and_port(address: &str) -> &str {
    address.split_once("://").map_or(address, |(_, rest)| rest)
}

/// Splits `[thrd:…]: proto://host:port/bootstrap: reason (after …ms in state …)` into host:port, whether that is a bootstrap
/// address, and the reason. `None` for other messages.
fn parse(message: &str) -> Option<(String, bool, String)> {
    let message =
        message.strip_prefix("[thrd:").and_then(|rest| rest.split_once("]: ")).map_or(message, |(_, rest)| rest);
    let (mut name, mut what) = message.split_once(": ")?;
    if name == "GroupCoordinator" || name == "TxnCoordinator" {
        (name, what) = what.split_once(": ")?;
    }
    let (address, id) = name.rsplit_once('/').filter(|(_, id)| !id.contains(':')).unwrap_or((name, ""));
    let address = host_and_port(address);
    let port = address.rsplit_once(':')?.1;
    port.parse::<u16>().ok()?;
    let what = what.split(" (after ").next().unwrap_or(what).trim_end_matches(['.', ' ']);
    Some((address.to_owned(), id == "bootstrap", what.to_owned()))
}

/// Whether a closed connection had been in use, and so has the right protocol: librdkafka appends `(after 1234ms in state UP)`.
/// A listener that expects SASL answers the first request without it, and closes at the next one.
fn was_in_use(message: &str) -> bool {
    let state = message.rsplit_once("(after ").and_then(|(_, after)| after.split_once("ms in state UP)"));
    state.and_then(|(milliseconds, _)| milliseconds.parse().ok()).is_some_and(|lasted: u64| lasted >= 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn log_lines_about_connections_are_parsed() {
        let parsed = |message: &str| parse(message).map(|(broker, given, what)| format!("{broker} {given} {what}"));
        let refused = "[thrd:127.0.0.1:1/bootstrap]: 127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection \
                       refused (after 0ms in state CONNECT)";
        assert_eq!(
            parsed(refused).as_deref(),
            Some("127.0.0.1:1 true Connect to ipv4#127.0.0.1:1 failed: Connection refused")
        );
        let sasl = "sasl_ssl://[::1]:9094/7: SASL authentication error: no (after 5ms in state AUTH_REQ)";
        assert_eq!(parsed(sasl).as_deref(), Some("[::1]:9094 false SASL authentication error: no"));
        let coordinator = "GroupCoordinator: kafka-1:9092: Failed to resolve 'kafka-1:9092': Name or service not known";
        assert_eq!(
            parsed(coordinator).as_deref(),
            Some("kafka-1:9092 false Failed to resolve 'kafka-1:9092': Name or service not known")
        );
        for other in ["1/1 brokers are down", "Fatal error: Broker: no", "FindCoordinator response error: no", ""] {
            assert_eq!(parsed(other), None, "{other}");
        }
    }

    #[test]
    fn the_reason_distinguishes_given_and_advertised_addresses() {
        let failures = Failures::default();
        assert_eq!(failures.reason("a:1", LONG), None);
        failures.hear("a:1/bootstrap: Connection refused", false);
        assert_eq!(
            failures.reason("a:1", LONG).unwrap(),
            "Connection refused; check --bootstrap-servers and that the broker runs"
        );
        failures.hear("inner:9092/1: Failed to resolve 'inner:9092'", false);
        let reason = failures.reason("a:1", LONG).unwrap();
        assert!(
            reason.starts_with("the cluster advertises a broker as inner:9092, and that address fails: "),
            "{reason}"
        );
        assert!(reason.contains("advertised.listeners"), "{reason}");
        assert!(!failures.reason("x:1, ssl://inner:9092", LONG).unwrap().contains("advertises"));
        assert_eq!(failures.reason("a:1", Duration::ZERO), None, "what is long ago is no reason");
        let closed = |state: &str| {
            let failures = Failures::default();
            let words = format!("a:1/bootstrap: Disconnected: connection closed by peer (after {state})");
            failures.hear(&words, false);
            failures.reason("a:1", LONG).unwrap()
        };
        for early in ["3ms in state APIVERSION_QUERY", "90000ms in state APIVERSION_QUERY", "3ms in state UP"] {
            assert!(closed(early).contains("may expect another security.protocol"), "{early}");
        }
        assert!(!closed("90000ms in state UP").contains("security.protocol"));
        assert_eq!(failures.denied(LONG), None);
        failures.hear("sasl_plaintext://a:1/bootstrap: SASL authentication error: no", true);
        assert_eq!(failures.denied(LONG).as_deref(), Some("SASL authentication error: no"));
    }
}
