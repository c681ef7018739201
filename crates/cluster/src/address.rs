//! The address of a scheduler.

use std::fmt;
use std::num::NonZero;
use std::str::FromStr;

/// Port of a scheduler whose address has none.
const PORT: u16 = 50050;
/// Number of parts that the rows of a query are divided into, unless the address has another number. More than two machines have
/// cores for, so that a third has work; few enough that small queries do not consist of tasks alone.
const PARTS: NonZero<usize> = NonZero::new(16).unwrap();

/// The address of a scheduler, `df://HOST:PORT?parts=N`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Host name or IP address, the latter in brackets if it is an IPv6 address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Number of parts that the rows of a query are divided into.
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
    }
}
