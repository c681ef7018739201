//! What can go wrong between tercile and a broker: whether it may pass, and what to do about it.
//!
//! librdkafka and the brokers share one list of error codes. The lists here sort those that users meet into permanent ones, which end
//! a command with exit code 1, and transient ones, which are a warning, and say what to do about each.

use std::path::PathBuf;
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// What went wrong between us and a broker.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no answer from a broker at {servers} within {}s: {why}", timeout.as_secs_f64())]
    Unreachable { servers: String, timeout: Duration, why: String },
    /// Other partitions of the topic answered.
    #[error("partition {partition} of {topic}{} cannot be reached: {why}", others(*more))]
    Leaderless { topic: String, partition: i32, more: usize, why: String },
    #[error("the Kafka setting {key} {why}")]
    Setting { key: String, why: String },
    #[error("cannot read the Kafka settings in {path}: {why}", path = path.display())]
    SettingsFile { path: PathBuf, why: String },
    #[error("the topic {topic} does not exist at {servers}; make it, or name another with --topic")]
    NoTopic { topic: String, servers: String },
    #[error("cannot make the topic {topic} at {servers}: {why}")]
    CannotCreate { topic: String, servers: String, why: String },
    /// The broker will not do this however often it is asked.
    #[error("cannot {action} at {servers}: {reason}{}", advised(*code))]
    Refused { action: String, servers: String, code: Code, reason: String },
    #[error("cannot {action} at {servers}: {source}{}", source.rdkafka_error_code().map(advised).unwrap_or_default())]
    Kafka { action: String, servers: String, source: KafkaError },
    #[error(
        "a row of {size} bytes with its headers is more than the embedded broker holds ({limit}); send it to a real Kafka"
    )]
    RowTooLarge { size: usize, limit: usize },
    #[error("cannot start the embedded broker: {0}")]
    Embedded(KafkaError),
    #[error("{0}")]
    Gap(Gap),
    #[error("{0}")]
    Client(String),
}

/// Records that were gone before they could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "partition {partition} of {topic}: the records from offset {expected} to {last} were gone before they could be read",
    last = found - 1
)]
pub struct Gap {
    pub topic: String,
    pub partition: i32,
    /// The offset we stood at.
    pub expected: i64,
    /// The first offset that is left.
    pub found: i64,
}

fn others(more: usize) -> String {
    if more == 0 { String::new() } else { format!(", with {more} more,") }
}

impl Error {
    /// Whether a broker that is away, or busy with itself, may be all that is wrong.
    pub fn passes(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Leaderless { .. } => true,
            Self::Kafka { source, .. } => matches!(
                source.rdkafka_error_code(),
                Some(
                    Code::LeaderNotAvailable
                        | Code::NotLeaderForPartition
                        | Code::RequestTimedOut
                        | Code::UnknownPartition
                        | Code::ReplicaNotAvailable
                        | Code::OffsetNotAvailable
                        | Code::CoordinatorNotAvailable
                        | Code::CoordinatorLoadInProgress
                        | Code::BrokerNotAvailable
                        | Code::NotController
                        | Code::NetworkException
                        | Code::ThrottlingQuotaExceeded
                        | Code::KafkaStorageError
                )
            ),
            _ => false,
        }
    }

    /// Whether no broker answered at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Whether the same request gets the same answer until somebody changes a setting.
pub(super) fn is_permanent(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::DelegationTokenAuthorizationFailed
            | Code::DelegationTokenExpired
            | Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::IllegalSASLState
            | Code::SecurityDisabled
            | Code::InvalidSessionTimeout
            | Code::InconsistentGroupProtocol
            | Code::UnknownProtocol
            | Code::InvalidGroupId
            | Code::GroupMaxSizeReached
            | Code::FencedInstanceId
            | Code::UnsupportedAssignor
            | Code::InvalidTopic
            | Code::InvalidConfig
            | Code::InvalidArgument
            | Code::PolicyViolation
            | Code::UnsupportedVersion
            | Code::UnsupportedFeature
            | Code::UnsupportedForMessageFormat
            | Code::UnsupportedCompressionType
    )
}

/// Whether only the group is concerned. A worker that reads alone commits its position as advice to others, and can do without.
pub(super) fn is_about_groups(code: Code) -> bool {
    matches!(
        code,
        Code::GroupAuthorizationFailed
            | Code::InvalidGroupId
            | Code::CoordinatorNotAvailable
            | Code::CoordinatorLoadInProgress
            | Code::NotCoordinator
    )
}

/// Whether it is about one connection: librdkafka connects again by itself, and [`super::context::Failures`] has the reason.
pub(super) fn is_about_a_connection(code: Code) -> bool {
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::Resolve
            | Code::SSL
            | Code::Authentication
            | Code::TimedOutQueue
            | Code::WaitingForCoordinator
    )
}

/// What a code means, in librdkafka's words: `Broker: Topic authorization failed`.
pub(super) fn meaning(code: Code) -> String {
    let text = code.to_string();
    text.split_once(" (").map_or(text.as_str(), |(_, inner)| inner.trim_end_matches(')')).to_owned()
}

/// What to do about it.
pub(super) fn advice(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::TopicAuthorizationFailed => {
            "the user needs Describe and Read on the topic to ingest, Describe and Write to produce"
        }
        Code::GroupAuthorizationFailed => "the user needs Read on the group; grant it, or choose another --group",
        Code::ClusterAuthorizationFailed => {
            "the user needs Write on the topic to produce, Create on the cluster or the topic to make one"
        }
        Code::Authentication | Code::SaslAuthenticationFailed | Code::IllegalSASLState => {
            "check sasl.username, sasl.password and sasl.mechanism"
        }
        Code::UnsupportedSASLMechanism => "choose another sasl.mechanism",
        Code::InvalidSessionTimeout => {
            "choose a --session-timeout between the broker's group.min.session.timeout.ms (6 seconds by default) and \
             group.max.session.timeout.ms (30 minutes)"
        }
        Code::InconsistentGroupProtocol | Code::UnknownProtocol | Code::UnsupportedAssignor => {
            "members of this group assign partitions in another way than cooperative-sticky; stop them, or choose another --group"
        }
        Code::InvalidGroupId => "choose another --group",
        Code::GroupMaxSizeReached => "the group has as many members as the broker allows (group.max.size)",
        Code::FencedInstanceId => "another worker has the same --instance-id",
        Code::InvalidTopic => "a name has up to 249 letters, digits, dots, underscores and hyphens",
        Code::UnsupportedVersion | Code::UnsupportedFeature => "the broker is too old for this, or forbids it",
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => {
            "make the row smaller, or raise max.message.bytes of the topic"
        }
        Code::InvalidRecord => "a compacted topic takes only records with a key, and rows are sent without one",
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
            "fewer replicas are in sync than min.insync.replicas of the topic demands"
        }
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            "the topic, or one of its partitions, is gone"
        }
        Code::PollExceeded => "the store or this machine is slow; raise --max-poll-interval",
        Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress | Code::NotCoordinator => {
            "the brokers are still choosing who coordinates the group"
        }
        _ => return None,
    })
}

/// The same, as the end of a sentence.
pub(super) fn advised(code: Code) -> String {
    advice(code).map_or_else(String::new, |advice| format!("; {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_reason_and_what_to_do() {
        let error = Error::Refused {
            action: "join the group g".to_owned(),
            servers: "kafka:9092".to_owned(),
            code: Code::GroupAuthorizationFailed,
            reason: meaning(Code::GroupAuthorizationFailed),
        };
        assert_eq!(
            error.to_string(),
            "cannot join the group g at kafka:9092: Broker: Group authorization failed; the user needs Read on the group; \
             grant it, or choose another --group"
        );
        assert!(!error.passes());
    }

    #[test]
    fn codes_that_pass_are_not_permanent() {
        for code in [Code::LeaderNotAvailable, Code::CoordinatorLoadInProgress, Code::RequestTimedOut] {
            let error = Error::Kafka {
                action: "read".to_owned(),
                servers: "s".to_owned(),
                source: KafkaError::MetadataFetch(code),
            };
            assert!(error.passes() && !is_permanent(code), "{code:?}");
        }
        assert!(is_permanent(Code::InvalidSessionTimeout) && is_permanent(Code::InconsistentGroupProtocol));
        assert!(is_about_groups(Code::GroupAuthorizationFailed) && !is_about_groups(Code::TopicAuthorizationFailed));
    }
}
