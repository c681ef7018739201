//! `tercile notify`: tries the receivers of notifications. Also the notifications of a process with a server or an ingest.

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use tercile_kafka::ingest::Summary;
use tokio::task::JoinHandle;

use super::{Done, Usage, count};
use crate::config::NotifyArgs;
use crate::notify::watch::{self, Watch};
use crate::notify::{Event, Notifier};

/// Time that the end of a process waits for its own notifications, unless it was asked to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Send a test message to the receivers of notifications
///
/// Sends a message to each --notify URL at once, past the queue, and prints the result of each. The exit code is 1 if one failed.
#[derive(Args)]
pub struct Notify {
    /// Send the message
    #[arg(long, env = "TERCILE_TEST", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    test: bool,
    #[command(flatten)]
    notify: NotifyArgs,
}

impl Notify {
    pub fn run(self) -> anyhow::Result<Done> {
        if !self.test {
            return Err(Usage("notify sends a test message: add --test".to_owned()).into());
        }
        let webhooks = self.notify.webhooks()?;
        if webhooks.is_empty() {
            return Err(Usage(
                "there is no receiver: name one with --notify URL, TERCILE_NOTIFY or tercile.toml".to_owned(),
            )
            .into());
        }
        let event = Event::test();
        let mut failed = 0;
        let mut out = std::io::stdout();
        for webhook in webhooks {
            let shown = webhook.shown();
            match webhook.send(&event, tercile_store::times::now()) {
                Ok(taken) => writeln!(out, "ok    {shown}  status {} in {:.0?}", taken.status, taken.took)?,
                Err(why) => {
                    failed += 1;
                    writeln!(out, "FAIL  {shown}  {why}")?;
                }
            }
        }
        Ok(if failed == 0 { Done::Well } else { Done::With(1) })
    }
}

/// The notifications of a process that runs until it is stopped: the notifier and its checks.
pub struct Notifying {
    pub notifier: Notifier,
    watch: Arc<Mutex<Watch>>,
    checks: JoinHandle<()>,
}

impl Notifying {
    /// Starts the checks of the store, and of an ingest if there is one.
    pub fn start(notifier: Notifier, ingest: Option<watch::Ingest>) -> Self {
        tracing::info!("events are told to {}", notifier.shown());
        let watch = Arc::new(Mutex::new(Watch::new(notifier.clone(), ingest)));
        let looking = Arc::clone(&watch);
        let checks = async move {
            loop {
                tokio::time::sleep(watch::INTERVAL).await;
                let watch = Arc::clone(&looking);
                let _ = tokio::task::spawn_blocking(move || look(&watch)).await;
            }
        };
        Self { notifier, watch, checks: tokio::spawn(checks) }
    }

    /// Ends the checks. `ingested` is how the ingest ended, unless the process was asked to end: that is told first.
    pub async fn end(self, ingested: Option<&anyhow::Result<Summary>>) {
        self.checks.abort();
        if let Some(Err(error)) = ingested {
            self.watch.lock().unwrap_or_else(PoisonError::into_inner).failed(error);
        }
        let is_told = ingested.is_some();
        let last = move || {
            if is_told {
                look(&self.watch);
                wait(&self.notifier);
            }
            self.notifier.stop();
        };
        let _ = tokio::task::spawn_blocking(last).await;
    }
}

fn look(watch: &Mutex<Watch>) {
    watch.lock().unwrap_or_else(PoisonError::into_inner).look(Instant::now());
}

/// Waits for the notifications of this process, and logs if some are left.
pub fn wait(notifier: &Notifier) {
    let left = notifier.wait(PATIENCE);
    if left > 0 {
        tracing::warn!(
            "{} not taken within {} s; up, serve and ingest with the same --notify send what is left in the store",
            count(left as u64, "notification"),
            PATIENCE.as_secs()
        );
    }
}
