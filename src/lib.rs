//! tercile: live segments out of a Kafka stream.
//!
//! The modules stand in the order in which data flows through them:
//!
//! ```text
//! producers ─▶ Kafka ─▶ ingest ─▶ Parquet ─▶ SQL files ─▶ slices ─▶ KMeans ─▶ model files ─▶ API
//! ```
//!
//! Each opens with its job, what goes in and what comes out. Arrows run one way: a module knows those above it, and
//! `cli` knows them all.

// Text that anybody may have written, on its way to a terminal.
pub mod printable;

// File names and the formats they stand for.
pub mod file_format;

// Rows on their way to a topic.
pub mod produce;
pub mod rows;

pub mod readable_times;

pub mod replay;

// The store on its way to models.
pub mod sql;

pub mod slices;

pub mod engine;

pub mod missing;

pub mod columns;
pub mod model;

pub mod train;

// Panics as log lines.
pub mod panics;

pub mod bulk;

pub mod fit;

pub mod suggest;

pub mod plot;

// Models on their way to people.
pub mod api;

pub mod config;

pub mod log;

pub mod process;

pub mod cli;
