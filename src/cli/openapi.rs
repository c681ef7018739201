//! `tercile openapi`: prints the OpenAPI document.

use std::io::Write as _;

use clap::Args;

use super::Done;
use crate::api;

/// Print the OpenAPI document
#[derive(Args)]
pub struct Openapi {}

impl Openapi {
    pub async fn run(self) -> anyhow::Result<Done> {
        std::io::stdout().write_all(api::spec().await?.as_bytes())?;
        Ok(Done::Well)
    }
}
