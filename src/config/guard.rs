//! Access control of the API: keys, rate limits, TLS and timeouts.

#![allow(unsafe_code, reason = "getrlimit and setrlimit have no safe wrapper in the standard library")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use tercile_http::{Settings, Timeouts, Tls};
use tercile_store::Store;

use super::{seconds, seconds_or_none};
use crate::api::base_path::{self, BasePath};
use crate::api::guard::Guard;
use crate::api::keys::Keys;
use crate::api::rate_limit::Limiter;
use crate::printable::shell_word;

/// Default requests per second of one caller, if the API is reachable from other hosts.
const RATE: u32 = 1000;
/// Default concurrent requests of one caller, if the API is reachable from other hosts.
const CONCURRENT: u32 = 256;

/// Keys and limits of the API.
#[derive(Debug, Clone, Args)]
pub struct GuardArgs {
    /// Serve without API keys at an address that other machines can reach
    #[arg(long, env = "TERCILE_OPEN", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue, conflicts_with = "require_keys")]
    pub open: bool,
    /// Require API keys on loopback, too; at other addresses they are always required
    #[arg(long, env = "TERCILE_REQUIRE_KEYS", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    pub require_keys: bool,
    /// Accepted value of the Host header, in addition to loopback names; may be repeated [default at other addresses: any]
    #[arg(long, env = "TERCILE_ALLOWED_HOST", value_name = "NAME", value_delimiter = ',')]
    pub allowed_host: Vec<String>,
    #[allow(rustdoc::bare_urls, reason = "it is read at a terminal")]
    /// Origin whose pages may use the API (CORS), as in https://shop.example, or *; may be repeated [default: none]
    #[arg(long, env = "TERCILE_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub cors_origin: Vec<String>,
    /// Path under which a reverse proxy shows the API, as in /shop, whether or not the proxy removes it from requests
    #[arg(long, env = "TERCILE_BASE_PATH", value_name = "PATH", default_value = "/", hide_default_value = true,
          value_parser = base_path::parse)]
    pub base_path: String,
    /// Take that path from the header X-Forwarded-Prefix, if a request has it: only behind a proxy that sets or removes the header
    #[arg(long, env = "TERCILE_TRUST_FORWARDED_PREFIX", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    pub trust_forwarded_prefix: bool,
    /// Maximum requests per second for each key, or for each address without keys; 0: no limit [default: 1000, on loopback 0]
    #[arg(long, env = "TERCILE_RATE_LIMIT", value_name = "N")]
    pub rate_limit: Option<u32>,
    /// Maximum concurrent requests for each key, or for each address without keys; 0: no limit [default: 256, on loopback 0]
    #[arg(long, env = "TERCILE_MAX_CONCURRENT", value_name = "N")]
    pub max_concurrent: Option<u32>,
    /// Maximum size in bytes of the request line and headers
    #[arg(long, env = "TERCILE_MAX_HEADER_BYTES", value_name = "N", default_value_t = 16_384,
          value_parser = clap::value_parser!(u32).range(256..=262_144))]
    pub max_header_bytes: u32,
    /// Timeout in seconds for the request line and headers
    #[arg(long, env = "TERCILE_HEADER_TIMEOUT", value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub header_timeout: Duration,
    /// Timeout in seconds for a request body that arrives at less than 4 KB per second
    #[arg(long, env = "TERCILE_BODY_TIMEOUT", value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub body_timeout: Duration,
    /// Idle timeout of a connection in seconds, between requests or while a response is not read
    #[arg(long, env = "TERCILE_IDLE_TIMEOUT", value_name = "SECONDS", default_value = "8", value_parser = seconds)]
    pub idle_timeout: Duration,
    /// Maximum number of connections; beyond it the longest-idle connections are closed
    #[arg(long, env = "TERCILE_MAX_CONNECTIONS", value_name = "N", default_value_t = 8192,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// Seconds after SIGTERM during which readiness is 503 and requests are still accepted, so that load balancers notice
    #[arg(long, env = "TERCILE_DRAIN_NOTICE", value_name = "SECONDS", default_value = "0", value_parser = seconds_or_none)]
    pub drain_notice: Duration,
    /// Grace period in seconds for running requests after that
    #[arg(long, env = "TERCILE_DRAIN", value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub drain: Duration,
    /// Certificate chain in PEM, for HTTPS; it is read again when it changes
    #[arg(long, env = "TERCILE_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key in PEM
    #[arg(long, env = "TERCILE_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Timeout of a TLS handshake in seconds
    #[arg(long, env = "TERCILE_HANDSHAKE_TIMEOUT", value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub handshake_timeout: Duration,
}

impl GuardArgs {
    /// The guard of an API that listens on `bind`.
    pub fn guard(&self, bind: SocketAddr, store: &Store) -> anyhow::Result<Guard> {
        let loopback = bind.ip().is_loopback();
        let keys = if self.asks_for_keys(bind) {
            let keys = Keys::open(store)?;
            ensure!(
                !keys.is_empty(),
                "nobody could use the API at {bind}: it asks for keys, and there is none; make one with `tercile keys \
                 create NAME --scope read --store {}`, or serve everybody with --open",
                shell_word(&store.root().display().to_string())
            );
            Some(Arc::new(keys))
        } else {
            None
        };
        if self.open && !loopback {
            tracing::warn!("--open: everybody who reaches {bind} may use the whole API, without a key");
        }
        if keys.is_none() && self.cors_origin.iter().any(|origin| origin == "*") {
            tracing::warn!(
                "--cors-origin '*' without keys: every web page that is open on a machine that reaches {bind} may use the \
                 whole API; name the origins, or add --require-keys"
            );
        }
        let limit = |given: Option<u32>, elsewhere| match given {
            Some(0) => None,
            None => (!loopback).then_some(elsewhere),
            given => given,
        };
        let rate = limit(self.rate_limit, RATE);
        let concurrent = limit(self.max_concurrent, CONCURRENT);
        let hosts = (loopback || !self.allowed_host.is_empty()).then(|| self.allowed_host.clone());
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(Arc::new(Tls::open(cert, key)?)),
            _ => None,
        };
        let server = Settings {
            timeouts: Timeouts {
                handshake: self.handshake_timeout,
                header: self.header_timeout,
                body: self.body_timeout,
                idle: self.idle_timeout,
            },
            max_connections: descriptors(self.max_connections as usize),
            max_header_bytes: self.max_header_bytes as usize,
            tls,
            drain_notice: self.drain_notice,
            drain: self.drain,
            ..Settings::default()
        };
        Ok(Guard {
            keys,
            hosts,
            origins: self.cors_origin.clone(),
            limiter: Limiter::new(rate, concurrent),
            max_header_bytes: self.max_header_bytes as usize,
            base_path: BasePath { path: self.base_path.clone(), trust_forwarded: self.trust_forwarded_prefix },
            server,
        })
    }

    /// Whether an API that listens on `bind` asks for keys.
    pub fn asks_for_keys(&self, bind: SocketAddr) -> bool {
        self.require_keys || !(bind.ip().is_loopback() || self.open)
    }

    /// The URL scheme of the API.
    pub fn scheme(&self) -> &'static str {
        if self.tls_cert.is_some() { "https" } else { "http" }
    }
}

/// Raises the file descriptor limit for this number of connections and returns the number of connections that it
/// allows.
fn descriptors(connections: usize) -> usize {
    /// File descriptors of the store, the broker and the SQL processes.
    const OTHERS: u64 = 256;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls access only this struct.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    let wanted = connections as u64 + OTHERS;
    if known && limit.rlim_cur < wanted {
        let more = libc::rlimit { rlim_cur: wanted.min(limit.rlim_max), ..limit };
        // SAFETY: as above.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const more) } == 0 {
            limit = more;
        }
    }
    let room = limit.rlim_cur.saturating_sub(OTHERS).max(limit.rlim_cur / 2);
    if known && room < connections as u64 {
        tracing::warn!(
            "at most {room} connections, not {connections}: the limit of open files (ulimit -n) allows no more"
        );
        return room as usize;
    }
    connections
}

fn origin(text: &str) -> Result<String, String> {
    let whole = url::Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text);
    if text == "*" || whole {
        Ok(text.to_owned())
    } else {
        Err("expected an origin such as https://shop.example, or *".to_owned())
    }
}
