//! `up --enrich-to`: enriches the topic while it is stored.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use tercile_kafka::broker::Cluster;

use crate::api::State;
use crate::cli::{Usage, blocking, enrich};
use crate::config::{self, MaybeKafkaArgs, SourceArgs};
use crate::enrich::models::ModelSource;
use crate::enrich::{Control, Job, metrics};
use crate::model_cache::ModelCache;

/// Where enriched records go.
#[derive(Debug, Clone, Args)]
pub struct EnrichArgs {
    /// Topic of --bootstrap-servers that gets each record with its segments, as tercile enrich --to does
    #[arg(long, env = "TERCILE_ENRICH_TO", value_name = "TOPIC", value_parser = config::topic)]
    enrich_to: Option<String>,
}

/// An enrichment that is prepared, or runs.
pub struct Enriching {
    job: Option<Job>,
    control: Arc<Control>,
    began: Instant,
    running: Option<Running>,
}

type Running = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

impl EnrichArgs {
    pub fn check(&self, kafka: &MaybeKafkaArgs, topic: &SourceArgs) -> anyhow::Result<()> {
        let Some(to) = &self.enrich_to else { return Ok(()) };
        if topic.is_several() {
            let each = "--enrich-to is for one topic: name one with --topic, or run tercile enrich for each";
            return Err(Usage(each.to_owned()).into());
        }
        if !kafka.is_given()? {
            return Err(Usage(
                "--enrich-to is for a topic of a Kafka, and the embedded broker forgets records before they are enriched; add \
                 --bootstrap-servers"
                    .to_owned(),
            )
            .into());
        }
        Ok(enrich::Options::new(to).check_topics(&topic.topic)?)
    }

    /// Finds or makes the topics.
    pub async fn prepare(
        &self,
        cluster: &Cluster,
        topic: &str,
        live: &Arc<ModelCache>,
    ) -> anyhow::Result<Option<Enriching>> {
        let Some(to) = &self.enrich_to else { return Ok(None) };
        let (asked, name) = (cluster.clone(), topic.to_owned());
        let input = blocking(move || Ok(asked.topic(&name)?)).await?;
        let options = enrich::Options::new(to);
        let models = ModelSource::new(Arc::clone(live), options.choice());
        let job = options.job(cluster.clone(), input, models).await?;
        let control = Arc::new(Control::new()?);
        Ok(Some(Enriching { job: Some(job), control, began: Instant::now(), running: None }))
    }
}

impl Enriching {
    /// Adds its metrics to those of the API.
    pub fn register(&self, state: &State) -> anyhow::Result<()> {
        Ok(state.add_metrics(Box::new(metrics::Enriching::new(Arc::clone(&self.control))?))?)
    }

    pub fn start(mut self) -> anyhow::Result<Self> {
        if let Some(job) = self.job.take() {
            self.running = Some(Box::pin(enrich::spawn(job, &self.control)?));
        }
        Ok(self)
    }

    /// Completes when the enrichment ends by itself; never without one.
    pub async fn ended(enriching: &mut Option<Self>) -> anyhow::Result<()> {
        let Some(Self { running, .. }) = enriching else { return std::future::pending().await };
        let Some(run) = running else { return std::future::pending().await };
        let ended = run.await;
        *running = None;
        ended
    }

    /// Ends the enrichment after its batch in progress.
    pub async fn stop(enriching: Option<Self>) -> anyhow::Result<()> {
        let Some(mut enriching) = enriching else { return Ok(()) };
        enriching.control.stop();
        let ended = match enriching.running.take() {
            Some(running) => running.await,
            None => Ok(()),
        };
        enrich::report(&enriching.control.progress, enriching.began.elapsed().as_secs_f64());
        ended
    }
}
