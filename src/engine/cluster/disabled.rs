//! Takes the place of `tercile-cluster` in a build without the feature `distributed`.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use datafusion::error::Result;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::{SessionConfig, SessionContext};

/// Whether this build can use a cluster.
pub const ENABLED: bool = false;

/// The address of a scheduler, which does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(Infallible);

impl fmt::Display for Address {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {}
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(_: &str) -> std::result::Result<Self, String> {
        Err("this tercile was built for one machine; for df://HOST:PORT build it with cargo build --release --features \
             distributed"
            .to_owned())
    }
}

pub fn session(_: SessionConfig, _: Arc<RuntimeEnv>, address: &Address) -> Result<SessionContext> {
    match address.0 {}
}
