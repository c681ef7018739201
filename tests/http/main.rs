//! The service: API, OpenAPI document, bulk requests, SQL over HTTP, dashboard, access, overload, model swaps.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, unsafe_code, reason = "a test ends with a panic")]

#[path = "../browser/mod.rs"]
mod browser;
#[path = "../common/mod.rs"]
mod common;

mod api;
mod api_sql;
mod bulk;
mod dashboard;
mod dashboard_members;
mod decoders;
mod document;
mod encodings;
mod guard;
mod members;
mod monitoring;
mod overload;
mod score;
mod slow;
mod swaps;
mod typed_operations;
