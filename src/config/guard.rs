//! Who may reach the API, how often, and how slowly.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::ensure;
use clap::Args;

use crate::api::guard::Guard;
use crate::api::keys::Keys;
use crate::api::limits::Limiter;
use crate::store::Store;

/// Requests a second that one caller may ask where strangers can ask too.
const RATE: u32 = 1000;
/// Requests of one caller that may run at once there.
const CONCURRENT: u32 = 256;

/// Keys and limits of the API.
#[derive(Debug, Clone, Args)]
pub struct GuardArgs {
    /// Serve without keys at an address that others can reach
    #[arg(long, env = "TERCILE_OPEN", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue, conflicts_with = "require_keys")]
    pub open: bool,
    /// Ask for keys on loopback as well; elsewhere they are asked for anyway
    #[arg(long, env = "TERCILE_REQUIRE_KEYS", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    pub require_keys: bool,
    /// A name in the Host header that is ours, beside loopback's; may be said more than once [default elsewhere: any]
    #[arg(long, env = "TERCILE_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',')]
    pub allowed_host: Vec<String>,
    /// An origin whose pages may use the API, as in https://shop.example, or *; may be said more than once [default: none]
    #[arg(long, env = "TERCILE_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub cors_origin: Vec<String>,
    /// Requests a second for each key, or each address without keys; 0: no limit [default: 1000, on loopback 0]
    #[arg(long, env = "TERCILE_RATE_LIMIT", value_name = "N")]
    pub rate_limit: Option<u32>,
    /// Requests at the same time for each key, or each address without keys; 0: no limit [default: 256, on loopback 0]
    #[arg(long, env = "TERCILE_MAX_CONCURRENT", value_name = "N")]
    pub max_concurrent: Option<u32>,
    /// Bytes of a request's line and headers, at most
    #[arg(long, env = "TERCILE_MAX_HEADER_BYTES", value_name = "N", default_value_t = 16_384,
          value_parser = clap::value_parser!(u32).range(256..=262_144))]
    pub max_header_bytes: u32,
}

impl GuardArgs {
    /// The guard of an API at this address.
    pub fn guard(&self, bind: SocketAddr, store: &Store) -> anyhow::Result<Guard> {
        let loopback = bind.ip().is_loopback();
        let keys = if self.require_keys || !(loopback || self.open) {
            let keys = Keys::open(store)?;
            ensure!(
                !keys.is_empty(),
                "nobody could use the API at {bind}: it asks for keys, and there is none; make one with `tercile keys \
                 create NAME --scope read --store {}`, or serve everybody with --open",
                store.root().display()
            );
            Some(Arc::new(keys))
        } else {
            None
        };
        if self.open && !loopback {
            tracing::warn!("--open: everybody who reaches {bind} may use the whole API, without a key");
        }
        let limit = |given: Option<u32>, elsewhere| match given {
            Some(0) => None,
            None => (!loopback).then_some(elsewhere),
            given => given,
        };
        let rate = limit(self.rate_limit, RATE);
        let concurrent = limit(self.max_concurrent, CONCURRENT);
        let hosts = (loopback || !self.allowed_host.is_empty()).then(|| self.allowed_host.clone());
        Ok(Guard {
            keys,
            hosts,
            origins: self.cors_origin.clone(),
            limiter: Limiter::new(rate, concurrent),
            max_header_bytes: self.max_header_bytes as usize,
        })
    }
}

fn origin(text: &str) -> Result<String, String> {
    let whole = url::Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text);
    if text == "*" || whole {
        Ok(text.to_owned())
    } else {
        Err("expected an origin such as https://shop.example, or *".to_owned())
    }
}
