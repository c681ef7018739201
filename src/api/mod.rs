//! HTTP API: typed requests and responses.
//!
//! Input: a listener and the store. Output: JSON, problem+json for every error, and an OpenAPI document of exactly the served
//! operations. Requests read the models through the cache in model_cache.rs.

mod acceptor;
mod access;
mod asked;
mod body_limit;
pub mod budget;
mod buffered_body;
mod bulk;
mod cached_response;
mod compute_permits;
pub mod connections;
mod dashboard;
mod delivery;
mod document;
mod document_pages;
mod etag;
mod events;
pub mod example_request;
pub mod guard;
mod health;
pub mod ingest_metrics;
mod k_report;
pub mod keys;
mod language;
pub mod limits;
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
mod probe_listener;
mod problem;
mod promotion;
mod rows;
pub mod sandbox;
mod score;
mod segments;
mod sql;
mod status;
mod streaming_body;
pub mod tls;
mod training;
mod typed_operations;
mod unreadable;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use acceptor::Phase;
use budget::Budget;
pub use bulk::Bodies;
use cached_response::{Coalesced, ReadyAnswers};
use compute_permits::ComputePermits;
use connections::Connections;
use document_pages::{Documents, Form};
use guard::Guard;
use metrics::Metrics;
use middleware::Front;
use poem::endpoint::make;
use poem::{Endpoint, EndpointExt as _, Request, Route, Server, get};
use poem_openapi::{LicenseObject, OpenApiService, Tags as TagsDerive};
use probe_listener::ProbeListener;
use problem::Problem;
use sandbox::Sandbox;
use status::{Shown, Watched};
use tercile_kafka::ingest::Control;
use tercile_store::Store;
use tokio::sync::watch;
use training::Jobs;

use crate::model_cache::ModelCache;
use crate::sql::Files;
use crate::train::Trainer;

/// Maximum concurrent requests per HTTP/2 connection: the minimum that RFC 9113 recommends.
const STREAMS: u32 = 100;
/// At shutdown, time for connections to close by themselves.
const GOODBYE: Duration = Duration::from_secs(1);

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
    /// Set when unbounded responses must end.
    stopping: watch::Sender<bool>,
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
    clients: Connections,
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
            stopping: watch::Sender::new(false),
            turns: ComputePermits::default(),
            watched: Watched::default(),
            shown: Coalesced::default(),
            rendered: Coalesced::default(),
            members: members::MemberCache::default(),
            points: ReadyAnswers::default(),
            reports: ReadyAnswers::default(),
            clients: Connections::default(),
            jobs,
            trained,
            metrics: Metrics::new()?,
        })
    }
}

type Apis = (
    (predict::PredictApi, score::ScoreApi),
    segments::SegmentsApi,
    k_report::KReportApi,
    unreadable::UnreadableApi,
    training::TrainingApi,
    sql::SqlApi,
    promotion::ServingApi,
    (members::MembersApi, status::StatusApi, events::EventsApi, health::HealthApi),
);

fn service() -> OpenApiService<Apis, ()> {
    let apis: Apis = (
        (predict::PredictApi, score::ScoreApi),
        segments::SegmentsApi,
        k_report::KReportApi,
        unreadable::UnreadableApi,
        training::TrainingApi,
        sql::SqlApi,
        promotion::ServingApi,
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
async fn known_parameters(request: Request, state: Arc<State>) -> poem::Result<Request> {
    let Some(query) = request.uri().query() else { return Ok(request) };
    let path = request.uri().path();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let known: &[&str] = match path.rsplit('/').next() {
        _ if !path.starts_with("/api/") => return Ok(request),
        // A key may be any word.
        _ if matches!(parts[..], ["api", "segments", _, "members"] | ["api", "segments", _, "members", _]) => {
            &["model", "lang", "as_of"]
        }
        _ if matches!(parts[..], ["api", "segments", _, "clusters", _, "members"]) => {
            &["after", "limit", "moved", "model", "lang", "as_of"]
        }
        Some("predict") => &["model", "lang", "fit", "as_of", "explain"],
        Some("score") => &["model", "lang", "as_of", "explain"],
        Some(name) if name.starts_with("cluster_products_by_") => &["model", "lang", "fit", "as_of"],
        Some("points" | "k-report") => &["model"],
        Some("unreadable") => &["limit"],
        _ => &[],
    };
    let mut seen = Vec::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let problem = if !known.contains(&name.as_ref()) {
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
    let known = document::known(&document);
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
    let asked = Arc::clone(&state);
    let inner = Route::new()
        .at("/docs", page(Form::SwaggerUi))
        .at("/docs/", page(Form::SwaggerUi))
        .at("/openapi.json", page(Form::Json))
        .nest("/dashboard", dashboard::files())
        .nest("/", service)
        .data(Arc::clone(&state))
        .before(move |request| known_parameters(request, Arc::clone(&asked)));
    Front { inner, state, guard, known }
}

/// Serves requests until `stop` resolves, then drains running requests.
///
/// # Errors
/// If the listener or its threads cannot be started, or if serving fails.
pub async fn serve(
    listener: tokio::net::TcpListener,
    state: Arc<State>,
    guard: Guard,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(Arc::clone(&state.live).watch());
    watching.spawn(state.clients.clone().watch(guard.patience.clone()));
    if let Some(keys) = &guard.keys {
        watching.spawn(Arc::clone(keys).watch());
    }
    if let Some(tls) = &guard.tls {
        watching.spawn(Arc::clone(tls).watch());
    }
    let phase = Arc::new(watch::Sender::new(Phase::Open));
    let (draining, notice, drain) = (Arc::clone(&state), guard.notice, guard.drain);
    let (stops, stopped) = watch::channel(false);
    let settings = probe_listener::Settings {
        clients: state.clients.clone(),
        tls: guard.tls.clone(),
        patience: guard.patience.clone(),
        phase: Arc::clone(&phase),
        stopped,
        drain,
    };
    let stopped = async move {
        stop.await;
        leave(&draining, notice, drain, &phase).await;
        stops.send_replace(true);
    };
    let routes = Arc::new(routes(state, guard));
    let (inbox, shut) = ProbeListener::open(listener, Arc::clone(&routes), settings)?.into_parts();
    memory::give_back_early();
    memory::forget_start();
    let server = Server::new_with_acceptor(inbox).http2_max_concurrent_streams(STREAMS);
    server.run_with_graceful_shutdown(routes, stopped, Some(drain)).await?;
    shut.await;
    Ok(())
}

/// Begins graceful shutdown without losing requests: readiness becomes 503 and responses close their connections; after
/// `notice`, new connections are refused and idle ones are closed. The framework drains the rest.
async fn leave(state: &State, notice: Duration, drain: Duration, gate: &watch::Sender<Phase>) {
    state.draining.store(true, Ordering::SeqCst);
    tokio::time::sleep(notice).await;
    gate.send_replace(Phase::Closing);
    // Ends event streams, which would otherwise run indefinitely.
    state.stopping.send_replace(true);
    let start = Instant::now();
    // HTTP/2 connections continue until the framework sends GOAWAY.
    while start.elapsed() < drain.min(GOODBYE) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        state.clients.end_idle();
        if state.clients.count() == 0 && *gate.borrow() == Phase::Closed {
            break;
        }
    }
}
