//! tercile: live segments from a Kafka stream.
//!
//! The modules are listed in the order of the data flow:
//!
//! ```text
//! producers ─▶ Kafka ─▶ ingest ─▶ Parquet ─▶ SQL files ─▶ slices ─▶ KMeans ─▶ model files ─▶ API
//! ```
//!
//! Each module starts with its purpose, input and output. A module imports only modules above it; `cli` imports all
//! of them.

// Text from untrusted sources, escaped for a terminal.
pub mod printable;

// File names and the formats they imply.
pub mod file_format;

// From rows to a topic.
pub mod produce;
pub mod rows;

pub mod readable_times;

pub mod replay;

// From the store to models.
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

// From models to users.
pub mod api;

pub mod config;

pub mod log;

pub mod process;

pub mod cli;
