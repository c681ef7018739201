//! tercile: live segments from a Kafka stream.
//!
//! The topic and the store are crates of their own (`tercile-kafka`, `tercile-store`, `tercile-kmeans`, `tercile-sample`), and so is
//! the HTTP server (`tercile-http`); the modules here follow the data:
//!
//! ```text
//! producers ─▶ Kafka ─▶ ingest ─▶ Parquet ─▶ SQL files ─▶ slices ─▶ KMeans ─▶ model files ─▶ API
//! ```
//!
//! Each module starts with its purpose, input and output. A module imports only modules above it; `cli` imports all
//! of them.

// Shared by all: text for a terminal, formats of files.
pub mod file_format;
mod parquet_types;
pub mod printable;

pub mod hints;

// What a text means: numbers and times.
pub mod value;

// The user's files: CSV, JSON, and what they are compressed with.
pub mod spool;

pub mod files;

// How features are scaled, in SQL files, flags and models.
pub mod scaling;

// SQL files and their errors.
pub mod sql;

// The process: panics as log lines, the log, child processes.
pub mod panics;

pub mod log;

pub mod process;

// From files to a topic.
pub mod produce;

// From the store to models.
pub mod slices;

pub mod missing;

pub mod model;

pub mod text_columns;

pub mod engine;

pub mod replay;

pub mod columns;

pub mod fit;

pub mod suggest;

pub mod plot;

pub mod train;

pub mod drift;

// Events of trainings, drift, ingest and store to webhooks.
pub mod notify;

// From models to users.
pub mod bulk;
pub mod scoring;

pub mod model_cache;

pub mod api;

// From a topic to a topic.
pub mod enrich;

pub mod config;

pub mod cli;
