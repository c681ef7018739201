//! Who gets notifications.

use std::path::PathBuf;

use clap::Args;
use tercile_store::Store;
use url::Url;

use crate::notify::{self, Format, Notifier, Roots, Secret, Webhook};

/// The receivers of events.
#[derive(Debug, Clone, Args)]
pub struct NotifyArgs {
    #[allow(rustdoc::bare_urls, reason = "it is read at a terminal")]
    /// URL that gets events by HTTP POST, as in https://hooks.example/tercile; may be repeated [default: none]
    #[arg(long, env = "TERCILE_NOTIFY", hide_env_values = true, value_name = "URL", value_delimiter = ',', value_parser = notify::url)]
    notify: Vec<Url>,
    /// What these URLs get: the event as JSON, or an alert of Alertmanager's API v2
    #[arg(long, env = "TERCILE_NOTIFY_FORMAT", value_name = "FORMAT", default_value = "tercile")]
    notify_format: Format,
    /// File with the secret that signs each message (HMAC-SHA256, header Tercile-Signature) [default: not signed]
    #[arg(long, env = "TERCILE_NOTIFY_SECRET_FILE", value_name = "FILE")]
    notify_secret_file: Option<PathBuf>,
}

/// The same for a process with an ingest.
#[derive(Debug, Clone, Args)]
pub struct IngestNotifyArgs {
    #[command(flatten)]
    pub notify: NotifyArgs,
    /// Number of records that the ingest may be behind its topic for a minute before --notify URLs are told; 0: never
    #[arg(long, env = "TERCILE_NOTIFY_LAG", value_name = "RECORDS", default_value_t = 100_000)]
    notify_lag: u64,
}

impl NotifyArgs {
    /// The receivers.
    ///
    /// # Errors
    /// If the secret cannot be read.
    pub fn webhooks(&self) -> anyhow::Result<Vec<Webhook>> {
        if self.notify.is_empty() {
            return Ok(Vec::new());
        }
        let secret = self.notify_secret_file.as_deref().map(Secret::open).transpose().map_err(anyhow::Error::msg)?;
        let roots = Roots::of_system();
        let webhook = |url| Webhook::new(url, self.notify_format, secret.clone(), &roots);
        let mut webhooks: Vec<Webhook> = self.notify.iter().map(webhook).collect();
        // A URL that stands twice gets each message once.
        let mut known = std::collections::BTreeSet::new();
        webhooks.retain(|webhook| known.insert(webhook.directory()));
        Ok(webhooks)
    }

    /// Starts to notify; `None` without a URL.
    ///
    /// # Errors
    /// If the secret cannot be read, or a thread cannot be started.
    pub fn start(&self, store: &Store) -> anyhow::Result<Option<Notifier>> {
        let webhooks = self.webhooks()?;
        if webhooks.is_empty() {
            return Ok(None);
        }
        Notifier::start(store, webhooks).map(Some)
    }
}

impl IngestNotifyArgs {
    /// Records behind the topic from which a lag is told; `None`: never.
    pub fn lag_limit(&self) -> Option<u64> {
        Some(self.notify_lag).filter(|limit| *limit > 0)
    }
}
