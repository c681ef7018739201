//! The state of a server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tercile_http::Connections;
use tercile_kafka::ingest::Control;
use tercile_store::Store;

use super::budget::Budget;
use super::bulk::Bodies;
use super::cached_response::{Coalesced, ReadyAnswers};
use super::compute_permits::ComputePermits;
use super::metrics::Metrics;
use super::sandbox::Sandbox;
use super::status::{Shown, Watched};
use super::training::Jobs;
use super::{drift, drift_monitor, events, members};
use crate::model_cache::ModelCache;
use crate::notify::Notifier;
use crate::train::Trainer;

/// State shared by all requests.
pub struct State {
    pub store: Store,
    pub live: Arc<ModelCache>,
    /// Whether the first training of this process is still pending.
    pub warming: AtomicBool,
    /// Whether graceful shutdown has begun.
    pub draining: AtomicBool,
    /// The ingest of this process, if it has one.
    pub ingest: Option<Arc<Control>>,
    /// Runs SQL statements of requests, if enabled.
    pub sql: Option<Sandbox>,
    /// Limits of bulk bodies.
    pub bodies: Bodies,
    /// Trainings of this process: on request, and of `up`.
    pub trainer: Trainer,
    /// Memory of requests and responses.
    pub budget: Budget,
    /// Permits of CPU-bound work.
    pub(super) turns: ComputePermits,
    pub(super) watched: Watched,
    /// Serialised status.
    pub(super) shown: Coalesced<Option<Shown>>,
    /// Serialised metrics.
    pub(super) rendered: Coalesced<String>,
    pub(super) members: members::MemberCache,
    pub(super) points: ReadyAnswers,
    pub(super) reports: ReadyAnswers,
    pub(super) drift: drift::Reports,
    pub(super) drift_monitor: drift_monitor::DriftMonitor,
    /// Interval of comparing arriving records with the models; `None`: never.
    pub drift_interval: Option<Duration>,
    /// Tells events to webhooks, if there are any.
    pub(super) notifier: Option<Notifier>,
    pub(super) connections: Connections,
    pub(super) jobs: Arc<Jobs>,
    /// Tells event streams that a training has ended.
    pub(super) trained: Arc<events::Trained>,
    pub(super) metrics: Metrics,
}

impl State {
    /// Adds metrics of another part of the process to those that are served.
    ///
    /// # Errors
    /// If one of the same name exists.
    pub fn add_metrics(&self, collector: Box<dyn prometheus::core::Collector>) -> Result<(), prometheus::Error> {
        self.metrics.add(collector)
    }

    /// Tells events of this server to webhooks: trainings, drift, promotions.
    ///
    /// # Errors
    /// If the metrics of notifications exist already.
    pub fn notify(&mut self, notifier: &Notifier) -> Result<(), prometheus::Error> {
        self.trainer.subscribers.add(Arc::new(notifier.clone()));
        self.notifier = Some(notifier.clone());
        notifier.collectors().into_iter().try_for_each(|collector| self.add_metrics(collector))
    }

    /// The state of a server, whose parts learn of its trainings.
    pub fn new(
        store: &Store,
        live: Arc<ModelCache>,
        ingest: Option<Arc<Control>>,
        warming: bool,
        sql: Option<Sandbox>,
        bodies: Bodies,
        budget: Budget,
    ) -> anyhow::Result<Self> {
        let trainer = Trainer::new(store, live.sql().map(Path::to_owned));
        let (jobs, trained) = (Arc::<Jobs>::default(), Arc::<events::Trained>::default());
        // A job has ended when its models serve.
        trainer.subscribers.add(live.clone());
        trainer.subscribers.add(jobs.clone());
        trainer.subscribers.add(trained.clone());
        Ok(Self {
            store: store.clone(),
            live,
            warming: AtomicBool::new(warming),
            draining: AtomicBool::new(false),
            ingest,
            sql,
            bodies,
            trainer,
            budget,
            turns: ComputePermits::default(),
            watched: Watched::default(),
            shown: Coalesced::default(),
            rendered: Coalesced::default(),
            members: members::MemberCache::default(),
            points: ReadyAnswers::default(),
            reports: ReadyAnswers::default(),
            drift: drift::Reports::default(),
            drift_monitor: drift_monitor::DriftMonitor::default(),
            drift_interval: None,
            notifier: None,
            connections: Connections::default(),
            jobs,
            trained,
            metrics: Metrics::new()?,
        })
    }
}
