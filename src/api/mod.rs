//! Requests to typed answers.
//!
//! Input: a listener and the store. Output: JSON, problem+json for every error, and an OpenAPI document that says just
//! what is served. Models are read through one swap point, live.rs.

mod clients;
pub mod confined;
mod health;
pub mod ingesting;
pub mod live;
mod metrics;
mod posted;
mod predict;
mod problem;
mod rows;
mod segments;
mod sql;
mod training;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use poem::listener::TcpAcceptor;
use poem::{EndpointExt as _, IntoEndpoint, Request, Route, Server};
use poem_openapi::{LicenseObject, OpenApiService, Tags as TagsDerive};

use crate::ingest::Control;
use crate::store::Store;
use clients::Clients;
use confined::Confined;
use live::Live;
use metrics::Metrics;
use problem::Problem;
use training::Jobs;

/// How long requests that run may go on after the signal to stop.
const DRAIN: Duration = Duration::from_secs(10);

#[derive(TagsDerive)]
enum Tags {
    /// Which segment is a row in?
    Predictions,
    /// Which segmentations, models and records are there?
    Segments,
    /// Make new models.
    Training,
    /// Ask in SQL.
    Sql,
    /// How is the service?
    Health,
}

/// What all requests share.
pub struct State {
    pub store: Store,
    pub live: Arc<Live>,
    /// Whether the first training of this process is still to come.
    pub warming: AtomicBool,
    /// The ingest of this process, if it has one.
    pub ingest: Option<Arc<Control>>,
    /// Who runs SQL that comes over HTTP, if that is on.
    pub sql: Option<Confined>,
    clients: Clients,
    jobs: Jobs,
    metrics: Metrics,
}

impl State {
    pub fn new(
        store: &Store,
        live: Arc<Live>,
        ingest: Option<Arc<Control>>,
        warming: bool,
        sql: Option<Confined>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            store: store.clone(),
            live,
            warming: AtomicBool::new(warming),
            ingest,
            sql,
            clients: Clients::default(),
            jobs: Jobs::default(),
            metrics: Metrics::new()?,
        })
    }
}

type Apis = (predict::PredictApi, segments::SegmentsApi, training::TrainingApi, sql::SqlApi, health::HealthApi);

fn service() -> OpenApiService<Apis, ()> {
    let apis = (predict::PredictApi, segments::SegmentsApi, training::TrainingApi, sql::SqlApi, health::HealthApi);
    OpenApiService::new(apis, "tercile", env!("CARGO_PKG_VERSION"))
        .summary("Live segments out of a Kafka stream")
        .description(
            "Segments of a stream of records, found by KMeans on the first third of the stream, the first two thirds \
             and all of it. Post rows, get the cluster of each, and what its centroid is like. Every error is a \
             problem+json (RFC 9457).",
        )
        .license(LicenseObject::new("Apache-2.0").identifier("Apache-2.0"))
}

/// The OpenAPI document.
pub fn spec() -> String {
    let mut spec = service().spec();
    spec.push('\n');
    spec
}

/// A parameter that is not known, or stands twice, would be passed over in silence.
async fn known_parameters(request: Request) -> poem::Result<Request> {
    let path = request.uri().path();
    let known: &[&str] = match path.rsplit('/').next() {
        _ if !path.starts_with("/api/") => return Ok(request),
        Some("predict") => &["model", "lang", "fit", "as_of"],
        Some(name) if name.starts_with("cluster_products_by_") => &["model", "lang", "fit", "as_of"],
        Some("points") => &["model"],
        _ => &[],
    };
    let mut seen = Vec::new();
    for (name, _) in url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()) {
        let problem = if !known.contains(&name.as_ref()) {
            let known = if known.is_empty() { "takes none".to_owned() } else { format!("takes {}", known.join(", ")) };
            Problem::unprocessable(format!("there is no query parameter {name}; this path {known}"))
        } else if seen.contains(&name) {
            Problem::unprocessable(format!("the query parameter {name} stands twice"))
        } else {
            seen.push(name);
            continue;
        };
        return Err(problem.field(name).into());
    }
    Ok(request)
}

/// All routes.
pub fn routes(state: Arc<State>) -> impl IntoEndpoint {
    let service = service();
    let (docs, openapi) = (service.swagger_ui(), service.spec_endpoint());
    let metrics = state.metrics.clone();
    Route::new()
        .nest("/docs", docs)
        .at("/openapi.json", openapi)
        .nest("/", service)
        .data(state)
        .before(known_parameters)
        .with(metrics)
}

/// Answers until `stop` is done, then lets running requests end.
pub async fn serve(
    listener: tokio::net::TcpListener,
    state: Arc<State>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let acceptor = state.clients.watch(TcpAcceptor::from_tokio(listener)?);
    let watching = tokio::spawn(Arc::clone(&state.live).watch());
    let served = Server::new_with_acceptor(acceptor).run_with_graceful_shutdown(routes(state), stop, Some(DRAIN)).await;
    watching.abort();
    Ok(served?)
}
