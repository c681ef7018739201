//! Which Kafka, and how to talk to it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tercile_kafka::broker::{self, Cluster, Plugins, Settings};

use super::seconds;

/// Which Kafka, for commands that must have one.
#[derive(Debug, Clone, Args)]
pub struct KafkaArgs {
    /// Addresses of Kafka brokers, host:port, separated by commas [default: bootstrap.servers of --kafka-config]
    #[arg(long, env = "TERCILE_BOOTSTRAP_SERVERS", value_name = "ADDRESSES", required_unless_present = "kafka_config")]
    pub bootstrap_servers: Option<String>,
    #[command(flatten)]
    pub client: ClientArgs,
}

impl KafkaArgs {
    pub fn cluster(&self) -> anyhow::Result<Cluster> {
        let cluster = self.client.cluster(self.bootstrap_servers.as_deref())?;
        cluster.ok_or_else(|| anyhow::anyhow!("--kafka-config has no bootstrap.servers; say --bootstrap-servers"))
    }
}

/// Which Kafka, for commands that write to a topic if asked to.
#[derive(Debug, Clone, Args)]
pub struct TargetKafkaArgs {
    /// With --to: addresses of Kafka brokers, host:port, separated by commas [default: bootstrap.servers of --kafka-config]
    #[arg(long, env = "TERCILE_BOOTSTRAP_SERVERS", value_name = "ADDRESSES")]
    pub bootstrap_servers: Option<String>,
    #[command(flatten)]
    pub client: ClientArgs,
}

impl TargetKafkaArgs {
    pub fn cluster(&self) -> anyhow::Result<Cluster> {
        let cluster = self.client.cluster(self.bootstrap_servers.as_deref())?;
        cluster.ok_or_else(|| {
            anyhow::anyhow!("say which Kafka: --bootstrap-servers, or bootstrap.servers in --kafka-config")
        })
    }
}

/// Which Kafka, for commands that can do without.
#[derive(Debug, Clone, Args)]
pub struct MaybeKafkaArgs {
    /// Addresses of Kafka brokers, host:port, separated by commas [default: bootstrap.servers of --kafka-config, or an
    /// embedded broker]
    #[arg(long, env = "TERCILE_BOOTSTRAP_SERVERS", value_name = "ADDRESSES")]
    pub bootstrap_servers: Option<String>,
    #[command(flatten)]
    pub client: ClientArgs,
}

impl MaybeKafkaArgs {
    pub fn cluster(&self) -> Result<Option<Cluster>, broker::Error> {
        self.client.cluster(self.bootstrap_servers.as_deref())
    }

    /// Whether a Kafka is named, by a flag or in the file of settings.
    pub fn is_given(&self) -> Result<bool, broker::Error> {
        Ok(self.bootstrap_servers.is_some() || self.client.settings()?.servers().is_some())
    }
}

impl MaybeKafkaArgs {
    /// The flags that name this cluster, for a printed command line, and the keys of settings that are left out because
    /// they may be secrets.
    pub fn flags(&self) -> (Vec<String>, Vec<&str>) {
        let (mut flags, mut secrets) = (Vec::new(), Vec::new());
        if let Some(servers) = &self.bootstrap_servers {
            flags.extend(["--bootstrap-servers".to_owned(), servers.clone()]);
        }
        if let Some(path) = &self.client.kafka_config {
            flags.extend(["--kafka-config".to_owned(), path.display().to_string()]);
        }
        for (key, value) in &self.client.settings {
            let is_secret = ["password", "secret", "pem", "oauth", "jaas"].iter().any(|word| key.contains(word));
            match is_secret {
                true => secrets.push(key.as_str()),
                false => flags.extend(["-X".to_owned(), format!("{key}={value}")]),
            }
        }
        if self.client.allow_plugins {
            flags.push("--allow-plugins".to_owned());
        }
        (flags, secrets)
    }
}

/// Connection settings of Kafka clients.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// A file of settings, key=value: librdkafka's, or the client.properties of a Java client
    #[arg(long, env = "TERCILE_KAFKA_CONFIG", value_name = "FILE")]
    pub kafka_config: Option<PathBuf>,
    /// One librdkafka setting; may be repeated, and overrides the file
    #[arg(short = 'X', value_name = "KEY=VALUE", value_parser = key_value)]
    pub settings: Vec<(String, String)>,
    /// Accept settings that load libraries or run commands: plugin.library.paths, ssl.engine.*, ssl.providers,
    /// sasl.kerberos.kinit.cmd
    #[arg(long, env = "TERCILE_ALLOW_PLUGINS")]
    pub allow_plugins: bool,
    /// Seconds to wait for a broker's first answer
    #[arg(long, alias = "timeout", env = "TERCILE_BROKER_TIMEOUT", value_name = "SECONDS", default_value = "10",
          value_parser = seconds)]
    pub broker_timeout: Duration,
}

impl ClientArgs {
    /// The settings of the file and of the flags.
    fn settings(&self) -> Result<Settings, broker::Error> {
        let plugins = if self.allow_plugins { Plugins::Allowed } else { Plugins::Refused };
        let read = |path: &PathBuf| Settings::read(path, plugins);
        let mut settings = self.kafka_config.as_ref().map_or_else(|| Ok(Settings::new(plugins)), read)?;
        for (key, value) in &self.settings {
            settings.add(key, value)?;
        }
        Ok(settings)
    }

    /// The cluster at `servers`, otherwise at those of the file, if there is either.
    fn cluster(&self, servers: Option<&str>) -> Result<Option<Cluster>, broker::Error> {
        let settings = self.settings()?;
        let Some(servers) = servers.or(settings.servers()).map(str::to_owned) else { return Ok(None) };
        for unused in settings.unused() {
            tracing::warn!("{unused}");
        }
        Ok(Some(Cluster::new(&servers, self.broker_timeout, settings)))
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}
