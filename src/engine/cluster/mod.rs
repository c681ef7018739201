//! Selects the engine that runs the queries: this process, or a Ballista cluster.
//!
//! Input: the value of `--engine`. Output: an [`Engine`], and a session that runs on it. The crate `tercile-cluster` is a dependency
//! only with the feature `distributed`, and `enabled.rs` adapts it. Without the feature, `disabled.rs` takes its place, and there
//! is no address.

#[cfg(not(feature = "distributed"))]
#[path = "disabled.rs"]
mod adapter;
#[cfg(feature = "distributed")]
#[path = "enabled.rs"]
mod adapter;

use std::str::FromStr;

pub use adapter::*;

/// The engine that runs the queries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Engine {
    /// This process.
    #[default]
    Local,
    /// The executors of this scheduler.
    Cluster(Address),
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "local" {
            return Ok(Self::Local);
        }
        Address::from_str(text).map(Self::Cluster).map_err(|why| format!("{why}, or local"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_needs_a_build_with_the_feature() {
        assert_eq!("local".parse(), Ok(Engine::Local));
        assert_eq!("df://a".parse::<Engine>().is_ok(), ENABLED);
        let error = "http://a".parse::<Engine>().unwrap_err();
        assert!(error.contains("df://") && error.ends_with(", or local"), "{error}");
    }
}
