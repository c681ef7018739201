//! A URL that gets messages by HTTP POST.
//!
//! Input: an event. Output: whether the receiver took it (a status from 200 to 299). Redirects are not followed: a receiver
//! decides nothing about where messages go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::crypto::ring;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use url::Url;

use super::alertmanager;
use super::event::Event;
use super::signature::Secret;
use crate::printable::hex;

/// Time limit of a request, from the look-up of the name to the head of the answer.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// What is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The event as JSON.
    #[default]
    Tercile,
    /// An alert of Alertmanager's API v2.
    Alertmanager,
}

/// A receiver.
#[derive(Debug, Clone)]
pub struct Webhook {
    url: Url,
    format: Format,
    secret: Option<Secret>,
    agent: ureq::Agent,
}

/// A message was taken.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    pub status: u16,
    pub took: Duration,
}

/// Parses a URL of `--notify`.
///
/// # Errors
/// What is expected instead.
pub fn url(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err("expected a URL such as https://hooks.example/tercile".to_owned()),
    }
}

impl Webhook {
    pub fn new(url: &Url, format: Format, secret: Option<Secret>, roots: &Roots) -> Self {
        let mut url = url.clone();
        if format == Format::Alertmanager && !url.path().trim_end_matches('/').ends_with(alertmanager::PATH) {
            url.set_path(&format!("{}/{}", url.path().trim_end_matches('/'), alertmanager::PATH));
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::clone(&roots.0)))
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()));
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // A connection that stood idle may be gone, and messages are rare.
            .max_idle_connections(0)
            .timeout_global(Some(TIMEOUT))
            .user_agent(concat!("tercile/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build());
        Self { url, format, secret, agent: config.build().into() }
    }

    /// The name of its directory in the queue. The URL itself may contain a secret, and is not stored.
    pub fn directory(&self) -> String {
        let mut digits = hex(&Sha256::digest(self.url.as_str()));
        digits.truncate(16);
        digits
    }

    /// The URL without what may be secret: user, path and query.
    pub fn shown(&self) -> String {
        let origin = self.url.origin().ascii_serialization();
        if self.url.path() == "/" && self.url.query().is_none() { origin } else { format!("{origin}/…") }
    }

    /// Sends an event. `at` is when the message was made.
    ///
    /// # Errors
    /// Why the receiver did not take it.
    pub fn send(&self, event: &Event, at: DateTime<Utc>) -> Result<Taken, String> {
        let body = match self.format {
            Format::Tercile => serde_json::to_vec(event),
            Format::Alertmanager => serde_json::to_vec(&alertmanager::body(event, at)),
        };
        let body = body.map_err(|error| error.to_string())?;
        let mut request = self
            .agent
            .post(self.url.as_str())
            .header("content-type", "application/json")
            .header("tercile-event", event.event.name())
            .header("tercile-id", &event.id);
        if let Some(secret) = &self.secret {
            request = request.header("tercile-signature", secret.sign(&body)?);
        }
        let began = Instant::now();
        let answer = request.send(&body[..]).map_err(|error| format!("cannot reach it: {error}"))?;
        let (status, took) = (answer.status(), began.elapsed());
        match status.as_u16() {
            200..=299 => Ok(Taken { status: status.as_u16(), took }),
            300..=399 => {
                Err(format!("it answered {status}, and redirects are not followed; give the URL that it names"))
            }
            _ => Err(format!("it answered {status}")),
        }
    }
}

/// The root certificates of the system (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others).
#[derive(Debug, Clone)]
pub struct Roots(Arc<Vec<Certificate<'static>>>);

impl Roots {
    /// Reads them. Certificates that cannot be read are reported in the log.
    pub fn of_system() -> Self {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!("root certificates for --notify: {error}");
        }
        Self(Arc::new(found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_and_shown_without_their_secrets() {
        for wrong in ["", "hooks.example", "ftp://hooks.example", "mailto:a@b", "https://"] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
        let none = Roots(Arc::default());
        let hook = |text: &str, format| Webhook::new(&url(text).unwrap(), format, None, &none);
        let slack = hook("https://user:word@hooks.example/T0/B0/token?key=1", Format::Tercile);
        assert_eq!(slack.shown(), "https://hooks.example/…");
        assert_eq!(slack.directory().len(), 16);
        for text in ["http://am:9093", "http://am:9093/", "http://am:9093/api/v2/alerts"] {
            assert_eq!(hook(text, Format::Alertmanager).url.as_str(), "http://am:9093/api/v2/alerts");
        }
        assert_eq!(hook("http://am/sub/", Format::Alertmanager).url.path(), "/sub/api/v2/alerts");
    }
}
