//! Names of topics on the command line.

use clap::Args;
use tercile_kafka::broker::{Cluster, Topics};
use tercile_store::Store;

/// Which topic.
#[derive(Debug, Clone, Args)]
pub struct TopicArgs {
    /// Name of the topic
    #[arg(long, env = "TERCILE_TOPIC", value_name = "NAME", default_value = "products", value_parser = topic)]
    pub topic: String,
    /// Number of partitions of a topic that is created
    #[arg(long, env = "TERCILE_PARTITIONS", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub partitions: i32,
}

/// Which topic feeds the store, or which topics that are read as one.
#[derive(Debug, Clone, Args)]
pub struct SourceArgs {
    /// Name of the topic; several, separated by commas or as a pattern like '^orders-.*', are read into one store
    #[arg(long, env = "TERCILE_TOPIC", value_name = "NAME", default_value = "products", value_parser = topics)]
    pub topic: String,
    /// Number of partitions of a topic that is created
    #[arg(long, env = "TERCILE_PARTITIONS", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub partitions: i32,
}

impl SourceArgs {
    /// Whether `--topic` names several topics, or a pattern.
    pub fn is_several(&self) -> bool {
        self.topic.contains([',', '^'])
    }

    /// The topic, or the topics separated by commas. A pattern is looked up among the topics of the cluster when the store begins; from
    /// then on the store has its topics.
    ///
    /// # Errors
    /// If the broker does not answer, or no topic matches the pattern.
    pub fn resolve(&self, cluster: &Cluster, store: &Store) -> anyhow::Result<String> {
        let Some(pattern) = self.topic.starts_with('^').then(|| regex::Regex::new(&self.topic)).transpose()? else {
            return Ok(self.topic.clone());
        };
        let mut matching = cluster.topics()?;
        matching.retain(|name| pattern.is_match(name));
        let Some(source) = store.source()? else {
            anyhow::ensure!(
                !matching.is_empty(),
                "no topic at {} matches {}; check --topic, and that the user may see the topics",
                cluster.servers,
                self.topic
            );
            return Ok(matching.join(","));
        };
        let fed = Topics::new(&source.topic);
        if let Some(other) = fed.names().iter().find(|name| !pattern.is_match(name)) {
            anyhow::bail!(
                "the store {} is fed from {}, and {other} does not match {}; choose another --store, or a pattern that matches it",
                store.root().display(),
                source.topic,
                self.topic
            );
        }
        matching.retain(|name| !fed.names().contains(name));
        if !matching.is_empty() {
            tracing::warn!(
                "not read: {} of {} match {}, too, and are newer than the store {}, which is fed from {}; read them into another --store",
                matching.join(", "),
                cluster.servers,
                self.topic,
                store.root().display(),
                source.topic
            );
        }
        Ok(source.topic)
    }
}

/// One topic, several topics separated by commas, or a pattern.
fn topics(names: &str) -> Result<String, String> {
    if names.starts_with('^') {
        regex::Regex::new(names).map_err(|error| {
            // The text before the last line shows the place in the pattern, over several lines.
            let why = error.to_string();
            let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("expected a regular expression: {why}")
        })?;
        return Ok(names.to_owned());
    }
    let mut all = names.split(',').map(|name| topic(name.trim())).collect::<Result<Vec<_>, _>>()?;
    // The order has no meaning, so that the same topics are the same source.
    all.sort();
    if let Some(twice) = all.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("the topic {} is named twice", twice[0]));
    }
    Ok(all.join(","))
}

/// Kafka's rule for topic names. The name is also a directory of the store.
pub fn topic(name: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.contains([',', '*', '?', '^', '$', '[', '(', '|']) {
        return Err(
            "expected one topic; ingest, up and doctor take several, separated by commas, or a pattern that begins with ^"
                .to_owned(),
        );
    }
    if name.is_empty() || name.len() > 249 || name == "." || name == ".." || !name.chars().all(fine) {
        return Err("a topic's name has 1 to 249 of the characters a-z A-Z 0-9 . _ -".to_owned());
    }
    Ok(name.to_owned())
}
