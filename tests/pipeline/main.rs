//! From a topic or file to records, slices and answers of SQL files: ingest, the store, faults, object stores.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, unsafe_code, reason = "a test ends with a panic")]

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "object-stores")]
#[path = "../proxy/mod.rs"]
mod proxy;

mod another_shop;
mod broker;
mod damaged_compaction;
mod damaged_members;
mod damaged_store;
mod drift;
mod encoding;
mod enrich;
mod enrich_faults;
mod entities;
mod faults;
mod golden;
mod init;
mod kafka;
mod members_topic;
mod mixed_ingest;
mod model_drift;
mod notify;
mod objects;
mod orders;
mod several_topics;
mod slices;
mod store_sources;
mod topic_restored;
mod topics;
mod up;
mod what_can_go_wrong;
