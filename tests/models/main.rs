//! Training and models: `fit`, `train`, `verify`, `models`, `predict`, and files below `models/` that are damaged.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, unsafe_code, reason = "a test ends with a panic")]

#[path = "../common/mod.rs"]
mod common;

mod candidates;
mod damaged_models;
mod entities;
mod fit;
mod members;
mod missing;
mod plot;
mod predict;
mod registry;
mod scaling;
mod truth;
