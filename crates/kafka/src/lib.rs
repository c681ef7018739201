//! Kafka: connections, consumer, producer, an embedded broker, and the loop that writes a topic to a store.
//!
//! Only this crate uses rdkafka. [`broker`] talks to brokers; [`ingest`] reads partitions, decodes and batches their records,
//! writes them as Parquet and publishes the files in a [`tercile_store::Store`].

#![warn(missing_docs)]

pub mod broker;
pub mod ingest;
