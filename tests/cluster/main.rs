//! A scheduler and executors (feature `distributed`).

#![cfg(feature = "distributed")]

#[path = "../common/mod.rs"]
mod common;

mod engine;
mod hosts;
