//! Training and models: `fit`, `train`, `verify`, `models`, `predict`, and files below `models/` that are damaged.

#[path = "../common/mod.rs"]
mod common;

mod damaged_models;
mod fit;
mod missing;
mod plot;
mod predict;
mod registry;
mod truth;
