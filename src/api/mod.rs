//! HTTP API: typed requests and responses.
//!
//! Input: a listener and the store. Output: JSON, problem+json for every error, and an OpenAPI document of exactly the served
//! operations. Requests read the models through the cache in model_cache.rs.

mod access;
mod asked;
pub mod base_path;
pub mod budget;
mod buffered_body;
mod bulk;
mod cached_response;
mod candidates;
mod compression;
mod compute_permits;
mod dashboard;
pub mod declared;
mod document;
mod document_pages;
mod drift;
pub mod drift_monitor;
mod etag;
mod events;
pub mod example_request;
pub mod guard;
mod health;
pub mod ingest_metrics;
mod k_report;
pub mod keys;
mod language;
mod member_rows;
mod members;
mod memory;
mod memory_charge;
mod metrics;
mod middleware;
mod named_schemas;
mod negotiation;
pub mod posted;
mod predict;
mod predictions;
mod problem;
mod promotion;
pub mod rate_limit;
mod rows;
pub mod sandbox;
mod score;
mod segments;
mod sql;
mod status;
mod streaming_body;
mod training;
mod typed_operations;
mod unreadable;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use budget::Budget;
pub use bulk::Bodies;
use cached_response::{Coalesced, ReadyAnswers};
use compute_permits::ComputePermits;
use document_pages::{Documents, Form};
use guard::Guard;
use metrics::Metrics;
use middleware::Front;
use poem::endpoint::make;
use poem::{Endpoint, EndpointExt as _, Request, Route, get};
use poem_openapi::{LicenseObject, OpenApiService, Tags as TagsDerive};
use problem::Problem;
use sandbox::Sandbox;
use status::{Shown, Watched};
use tercile_http::Connections;
use tercile_kafka::ingest::Control;
use tercile_store::Store;
use training::Jobs;

use self::declared::Operations;
use crate::model_cache::ModelCache;
use crate::notify::Notifier;
use crate::sql::Files;
use crate::train::Trainer;

#[derive(TagsDerive)]
enum Tags {
    /// Which segment is a row in?
    Predictions,
    /// Which segmentations, models and records are there?
    Segments,
    /// Which segment is an entity in?
    Members,
    /// Make new models.
    Training,
    /// Ask in SQL.
    Sql,
    /// How is the service?
    Health,
}

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
    turns: ComputePermits,
    watched: Watched,
    /// Serialised status.
    shown: Coalesced<Option<Shown>>,
    /// Serialised metrics.
    rendered: Coalesced<String>,
    members: members::MemberCache,
    points: ReadyAnswers,
    reports: ReadyAnswers,
    drift: drift::Reports,
    drift_monitor: drift_monitor::DriftMonitor,
    /// Interval of comparing arriving records with the models; `None`: never.
    pub drift_interval: Option<Duration>,
    /// Tells events to webhooks, if there are any.
    notifier: Option<Notifier>,
    connections: Connections,
    jobs: Arc<Jobs>,
    /// Tells event streams that a training has ended.
    trained: Arc<events::Trained>,
    metrics: Metrics,
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

type Apis = (
    (predict::PredictApi, score::ScoreApi),
    (segments::SegmentsApi, drift::DriftApi),
    k_report::KReportApi,
    unreadable::UnreadableApi,
    training::TrainingApi,
    sql::SqlApi,
    (promotion::ServingApi, candidates::CandidatesApi),
    (members::MembersApi, status::StatusApi, events::EventsApi, health::HealthApi),
);

fn service() -> OpenApiService<Apis, ()> {
    let apis: Apis = (
        (predict::PredictApi, score::ScoreApi),
        (segments::SegmentsApi, drift::DriftApi),
        k_report::KReportApi,
        unreadable::UnreadableApi,
        training::TrainingApi,
        sql::SqlApi,
        (promotion::ServingApi, candidates::CandidatesApi),
        (members::MembersApi, status::StatusApi, events::EventsApi, health::HealthApi),
    );
    OpenApiService::new(apis, "tercile", env!("CARGO_PKG_VERSION"))
        .summary("Live segments out of a Kafka stream")
        .description(
            "Segments of a stream of records, found by KMeans on the first third of the stream, the first two thirds \
             and all of it. Post rows, get the cluster of each, and what its centroid is like. Every error is a \
             problem+json (RFC 9457).",
        )
        .license(LicenseObject::new("Apache-2.0").identifier("Apache-2.0"))
}

/// The OpenAPI document of a server with the shipped SQL files.
///
/// # Errors
/// If the shipped SQL files do not plan.
pub async fn spec() -> anyhow::Result<String> {
    let mut document = document::complete(&service().spec(), false);
    typed_operations::add(&mut document, &typed_operations::of_files(&Files::shipped()?).await?);
    document::show_shipped(&mut document);
    Ok(document::text(&document))
}

/// Rejects unknown and repeated query parameters, which would otherwise be ignored, and languages without descriptions.
async fn known_parameters(request: Request, state: Arc<State>, operations: Arc<Operations>) -> poem::Result<Request> {
    let Some(query) = request.uri().query() else { return Ok(request) };
    let path = request.uri().path();
    // Pages ignore parameters, and an unknown path is a 404.
    let Some(operation) = operations.find(request.method(), path).filter(|_| path.starts_with("/api/")) else {
        return Ok(request);
    };
    let known = &operation.parameters;
    let mut seen = Vec::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let problem = if !known.iter().any(|known| *known == name) {
            let known = if known.is_empty() { "takes none".to_owned() } else { format!("takes {}", known.join(", ")) };
            Problem::unprocessable(format!("there is no query parameter {name}; this path {known}"))
        } else if seen.contains(&name) {
            Problem::unprocessable(format!("the query parameter {name} stands twice"))
        } else if name == "lang"
            && let Err(problem) = language::check(&value, &state.live.now())
        {
            problem
        } else {
            seen.push(name);
            continue;
        };
        return Err(problem.field(name).into());
    }
    Ok(request)
}

/// All routes behind the guard.
fn routes(state: Arc<State>, guard: Guard) -> Front<impl Endpoint> {
    let service = service();
    let own = service.spec();
    let guard = Arc::new(guard);
    let document = document::complete(&own, guard.keys.is_some());
    let operations = Arc::new(Operations::of(&own));
    let swagger = service.swagger_ui_html();
    let documents = Documents::new(document, (&swagger, &own), Arc::clone(&guard), Arc::clone(&state));
    let documents = Arc::new(documents);
    let page = |form: Form| {
        let documents = Arc::clone(&documents);
        let answer = move |request: Request| {
            let documents = Arc::clone(&documents);
            async move { documents.answer(&request, form).await }
        };
        get(make(answer))
    };
    let (asked, declared) = (Arc::clone(&state), Arc::clone(&operations));
    let inner = Route::new()
        .at("/docs", page(Form::SwaggerUi))
        .at("/docs/", page(Form::SwaggerUi))
        .at("/openapi.json", page(Form::Json))
        .nest("/dashboard", dashboard::files())
        .nest("/", service)
        .data(Arc::clone(&state))
        .before(move |request| known_parameters(request, Arc::clone(&asked), Arc::clone(&declared)));
    Front { inner, state, guard, operations }
}

/// Serves requests until `stop` resolves, then drains running requests.
///
/// # Errors
/// If the threads of the server cannot be started.
pub async fn serve(
    listener: tokio::net::TcpListener,
    state: Arc<State>,
    guard: Guard,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(Arc::clone(&state.live).watch());
    if let Some(interval) = state.drift_interval {
        watching.spawn(drift_monitor::watch(Arc::clone(&state), interval));
    }
    if let Some(keys) = &guard.keys {
        watching.spawn(Arc::clone(keys).watch());
    }
    let settings = tercile_http::Settings {
        priority_prefix: Some(guard::PROBES),
        connections: state.connections.clone(),
        ..guard.server.clone()
    };
    let draining = Arc::clone(&state);
    let stopped = async move {
        stop.await;
        // Readiness becomes 503.
        draining.draining.store(true, Ordering::SeqCst);
    };
    let routes = routes(state, guard);
    memory::give_back_early();
    memory::forget_start();
    Ok(tercile_http::run(listener, routes, settings, stopped).await?)
}
