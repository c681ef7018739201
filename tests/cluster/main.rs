//! A scheduler and executors (feature `distributed`).

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, unsafe_code, reason = "a test ends with a panic")]
#![cfg(feature = "distributed")]

#[path = "../common/mod.rs"]
mod common;

mod cancel;
mod engine;
mod hosts;
