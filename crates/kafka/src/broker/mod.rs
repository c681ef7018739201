//! Access to brokers; the only module that uses rdkafka: topics, a consumer, a producer, and an embedded broker.
//!
//! Input: addresses and topics. Output: messages with partition, offset and timestamp; acknowledged records. The rest of the
//! program knows a Kafka, external or embedded, as a [`Cluster`].

mod admin;
mod batches;
mod cluster;
mod consumer;
mod context;
mod delivery;
pub mod embedded;
mod error;
mod headers;
mod membership;
mod offsets;
mod probe;
mod producer;
mod queue;
mod settings;
mod topic_id;
mod topics;

pub use batches::{BatchError, BatchProducer, Outgoing, batch_limit};
pub use cluster::{Asker, Cluster, Topic};
pub use consumer::{Committed, Consumer, Event, Group, Member, Reading, Trouble};
pub use embedded::Embedded;
pub use error::{Error, Gap};
pub use membership::{NotNow, Resolve, Start};
pub use offsets::Bound;
pub use producer::{Acknowledged, Failure, Producer, Row};
pub use queue::{CHUNK, Item, Message, Queue};
pub use settings::{Plugins, Settings};
pub use topics::{Topics, place};
