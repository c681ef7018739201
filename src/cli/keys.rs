//! `tercile keys`: creates, lists and revokes API keys.

use std::io::Write as _;

use chrono::TimeDelta;
use clap::{Args, Subcommand};

use super::{Done, table};
use crate::api::keys::{self, Scope};
use crate::config::StoreArgs;

/// Create, list and revoke API keys
///
/// The store keeps hashes of the keys. A running serve or up applies changes within a second.
#[derive(Args)]
pub struct Keys {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Create(Create),
    List(List),
    Revoke(Revoke),
}

/// Create a key and print it; it cannot be printed again
#[derive(Args)]
struct Create {
    /// Name of the key, in lists and in the log
    #[arg(value_name = "NAME")]
    name: String,
    /// Scope of the key; each scope includes those before it
    #[arg(long, env = "TERCILE_SCOPE", value_name = "SCOPE")]
    scope: Scope,
    /// Number of days until the key expires [default: none, it is valid until it is revoked]
    #[arg(long, env = "TERCILE_DAYS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    days: Option<u16>,
    /// Do nothing if a key of this name exists
    #[arg(long, env = "TERCILE_IF_MISSING", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    if_missing: bool,
    #[command(flatten)]
    store: StoreArgs,
}

/// List all keys, without the secrets
#[derive(Args)]
struct List {
    #[command(flatten)]
    store: StoreArgs,
}

/// Revoke a key
#[derive(Args)]
struct Revoke {
    /// Name of the key
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    store: StoreArgs,
}

impl Keys {
    pub fn run(self) -> anyhow::Result<Done> {
        match self.action {
            Action::Create(create) => create.run(),
            Action::List(list) => list.run(),
            Action::Revoke(revoke) => revoke.run(),
        }
    }
}

impl Create {
    fn run(self) -> anyhow::Result<Done> {
        let lifetime = self.days.map(|days| TimeDelta::days(days.into()));
        let key = match keys::create(&self.store.open()?, &self.name, self.scope, lifetime) {
            Err(keys::Error::Taken(name)) if self.if_missing => {
                tracing::info!("there is a key {name} already");
                return Ok(Done::Well);
            }
            created => created?,
        };
        writeln!(std::io::stdout(), "{key}")?;
        tracing::info!("keep it well: it is not shown again. A request brings it as Authorization: Bearer KEY");
        Ok(Done::Well)
    }
}

impl List {
    fn run(self) -> anyhow::Result<Done> {
        let keys = keys::list(&self.store.look()?)?;
        let row = |key: keys::Key| {
            let expired = if key.expired() { " (over)" } else { "" };
            let expires = key.expires_at.map_or_else(|| "never".to_owned(), |at| format!("{at}{expired}"));
            vec![key.name, key.scope.word().to_owned(), key.created_at, expires]
        };
        let rows: Vec<Vec<String>> = keys.into_iter().map(row).collect();
        let listed = table::render(&["name", "scope", "created", "expires"], &rows);
        std::io::stdout().write_all(listed.as_bytes())?;
        Ok(Done::Well)
    }
}

impl Revoke {
    fn run(self) -> anyhow::Result<Done> {
        keys::revoke(&self.store.look()?, &self.name)?;
        tracing::info!("{} is worth nothing from now on", self.name);
        Ok(Done::Well)
    }
}
