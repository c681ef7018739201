//! Which engine runs the queries: this process, or a Ballista cluster.
//!
//! Input: what `--engine` says. Output: an [`Engine`], and a session that runs on it. Ballista is in the tree only with the
//! feature `distributed`; without it `disabled.rs` stands in, and an address is refused before anything else happens.

use std::fmt;
use std::num::NonZero;
use std::str::FromStr;

#[cfg(feature = "distributed")]
mod client_pool;
#[cfg(not(feature = "distributed"))]
mod disabled;
#[cfg(feature = "distributed")]
mod enabled;
#[cfg(feature = "distributed")]
mod error_message;
#[cfg(feature = "distributed")]
mod jobs;
#[cfg(feature = "distributed")]
mod places;
#[cfg(feature = "distributed")]
mod plan;
#[cfg(feature = "distributed")]
mod scheduler;
#[cfg(feature = "distributed")]
pub mod serve;
#[cfg(feature = "distributed")]
mod tasks;
#[cfg(feature = "distributed")]
mod watch;

#[cfg(not(feature = "distributed"))]
pub(super) use disabled::session;
#[cfg(feature = "distributed")]
pub(super) use enabled::session;

/// The port of a scheduler whose address names none.
const PORT: u16 = 50050;
/// Parts that the rows of a query are dealt into, where the address asks for no other number. More than two machines have cores for,
/// so that a third finds work; few enough that small queries don't drown in tasks.
const PARTS: NonZero<usize> = NonZero::new(16).unwrap();

/// What runs the queries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Engine {
    /// This process.
    #[default]
    Local,
    /// The executors of this scheduler.
    Cluster(Address),
}

/// Where a scheduler listens, and into how many parts its executors deal the rows of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
    pub parts: NonZero<usize>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "df://{}:{}", self.host, self.port)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("expected df://HOST:PORT, as in df://scheduler:{PORT} or df://scheduler:{PORT}?parts=64");
        let url = url::Url::parse(text).map_err(|_| wrong())?;
        let parts = match url.query() {
            None => PARTS,
            Some(query) => query.strip_prefix("parts=").and_then(|n| n.parse().ok()).ok_or_else(wrong)?,
        };
        let plain = matches!(url.path(), "" | "/") && url.username().is_empty();
        match url.host_str() {
            Some(host) if url.scheme() == "df" && plain => {
                Ok(Self { host: host.to_owned(), port: url.port().unwrap_or(PORT), parts })
            }
            _ => Err(wrong()),
        }
    }
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "local" {
            return Ok(Self::Local);
        }
        let address = Address::from_str(text).map_err(|why| format!("{why}, or local"))?;
        match cfg!(feature = "distributed") {
            true => Ok(Self::Cluster(address)),
            false => Err("this tercile was built for one machine; build it with cargo build --release --features \
                          distributed"
                .to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_a_scheduler() {
        let address = |host: &str, port, parts| Ok(Address { host: host.to_owned(), port, parts });
        assert_eq!("df://scheduler:50051".parse(), address("scheduler", 50051, PARTS));
        assert_eq!("df://[::1]".parse(), address("[::1]", PORT, PARTS));
        assert_eq!("df://a?parts=64".parse(), address("a", PORT, NonZero::new(64).unwrap()));
        for wrong in [
            "scheduler:50050",
            "http://scheduler:50050",
            "df://",
            "df://a:b",
            "df://a/b",
            "df://u@a",
            "df://a?parts=0",
            "df://a?parts=",
            "df://a?cores=2",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
        assert_eq!("local".parse(), Ok(Engine::Local));
        assert_eq!("df://a".parse::<Engine>().is_ok(), cfg!(feature = "distributed"));
    }
}
