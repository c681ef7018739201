//! Errors of talking to a broker, whether they are transient, and advice for the user.
//!
//! librdkafka and the brokers share one list of error codes. The lists here sort the codes that users meet into permanent ones,
//! which end a command with exit code 1, and transient ones, which cause a warning, and give advice for each.

use std::path::PathBuf;
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::place;

/// An error of talking to a broker.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No broker answered within the timeout. Transient.
    #[error("no answer from a broker at {servers} within {}s: {why}", timeout.as_secs_f64())]
    Unreachable {
        /// Bootstrap addresses.
        servers: String,
        /// The timeout.
        timeout: Duration,
        /// The reason.
        why: String,
    },
    /// Some partitions have no reachable leader; other partitions of the topic answered.
    #[error("{}{} cannot be reached: {why}", place(topic, *partition), others(*more))]
    Leaderless {
        /// Topic name.
        topic: String,
        /// Partition number.
        partition: i32,
        /// Number of further partitions without a leader.
        more: usize,
        /// The reason.
        why: String,
    },
    /// A Kafka setting is invalid or not allowed.
    #[error("the Kafka setting {key} {why}")]
    Setting {
        /// Name of the setting.
        key: String,
        /// The reason.
        why: String,
    },
    /// A properties file cannot be read.
    #[error("cannot read the Kafka settings in {path}: {why}", path = path.display())]
    SettingsFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The topic does not exist.
    #[error("the topic {topic} does not exist at {servers}; make it, or name another with --topic")]
    NoTopic {
        /// Topic name.
        topic: String,
        /// Bootstrap addresses.
        servers: String,
    },
    /// The broker refused to create the topic.
    #[error("cannot make the topic {topic} at {servers}: {why}")]
    CannotCreate {
        /// Topic name.
        topic: String,
        /// Bootstrap addresses.
        servers: String,
        /// The reason.
        why: String,
    },
    /// The broker refused the request. Permanent.
    #[error("cannot {action} at {servers}: {reason}{}", advised(*code))]
    Refused {
        /// The attempted action, with its object.
        action: String,
        /// Bootstrap addresses.
        servers: String,
        /// librdkafka's error code.
        code: Code,
        /// The broker's reason.
        reason: String,
    },
    /// Any other error of librdkafka's.
    #[error("cannot {action} at {servers}: {source}{}", source.rdkafka_error_code().map(advised).unwrap_or_default())]
    Kafka {
        /// The attempted action, with its object.
        action: String,
        /// Bootstrap addresses.
        servers: String,
        /// The cause.
        source: KafkaError,
    },
    /// A row exceeds the embedded broker's limit.
    #[error(
        "a row of {size} bytes with its headers is more than the embedded broker holds ({limit}); send it to a real Kafka"
    )]
    RowTooLarge {
        /// Bytes of the row with its headers.
        size: usize,
        /// Maximum bytes.
        limit: usize,
    },
    /// The embedded broker cannot start.
    #[error("cannot start the embedded broker: {0}")]
    Embedded(KafkaError),
    /// Records were deleted before they were read.
    #[error("{0}")]
    Gap(Gap),
    /// The topic is not the one from which a group has read, or was restored to an earlier state.
    #[error(
        "the topic {topic} at {servers} is not the one that the group {group} has read: {why}; give another --group, which begins where \
         --from says, or bring the topic back"
    )]
    OtherTopic {
        /// Topic name.
        topic: String,
        /// Bootstrap addresses.
        servers: String,
        /// The group whose positions are meant.
        group: String,
        /// The difference between the two topics.
        why: String,
    },
    /// Any other failure of the client, as text.
    #[error("{0}")]
    Client(String),
}

/// A gap: records that were deleted from the broker before they were read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{place}: the records from offset {expected} to {last} were gone before they could be read",
    place = place(topic, *partition),
    last = found - 1
)]
pub struct Gap {
    /// Topic name, or several ([`super::Topics`]).
    pub topic: String,
    /// Partition number.
    pub partition: i32,
    /// Offset of the next record to read.
    pub expected: i64,
    /// First offset that the broker still holds.
    pub found: i64,
}

fn others(more: usize) -> String {
    if more == 0 { String::new() } else { format!(", with {more} more,") }
}

impl Error {
    /// Whether the error may be transient: a broker that is unreachable or busy.
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
                        | Code::UnstableOffsetCommit
                )
            ),
            _ => false,
        }
    }

    /// Whether positions of a group are part of a transaction that is still open.
    pub fn is_unstable(&self) -> bool {
        matches!(self, Self::Kafka { source, .. } if source.rdkafka_error_code() == Some(Code::UnstableOffsetCommit))
    }

    /// Whether another process has taken the place of this one.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Refused { code: Code::FencedInstanceId | Code::Fenced | Code::ProducerFenced, .. })
    }

    /// Whether no broker answered at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Whether the same request fails until a setting is changed.
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

/// Whether a broker rejects a record for its own sake: others may be accepted.
pub(super) fn is_about_a_record(code: Code) -> bool {
    matches!(code, Code::MessageSizeTooLarge | Code::InvalidRecord | Code::InvalidTimestamp | Code::PolicyViolation)
}

/// Whether only the group is affected. A worker without a group commits offsets for information only and can ignore the error.
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

/// Whether the error concerns one connection: librdkafka reconnects by itself, and [`super::context::Failures`] has the reason.
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

/// librdkafka's description of a code: `Broker: Topic authorization failed`.
pub(super) fn meaning(code: Code) -> String {
    let text = code.to_string();
    text.split_once(" (").map_or(text.as_str(), |(_, inner)| inner.trim_end_matches(')')).to_owned()
}

/// Advice for the user on a code.
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

/// The advice as the end of a sentence; empty if there is none.
pub(super) fn advised(code: Code) -> String {
    advice(code).map_or_else(String::new, |advice| format!("; {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_reason_and_advice() {
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
    fn transient_codes_are_not_permanent() {
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
