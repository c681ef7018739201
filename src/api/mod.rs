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
mod known_parameters;
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
mod service;
mod slice_number;
mod sql;
mod state;
mod status;
mod streaming_body;
mod training;
mod typed_operations;
mod unreadable;

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use bulk::Bodies;
use document_pages::{Documents, Form};
use guard::Guard;
use known_parameters::known_parameters;
use middleware::Front;
use poem::endpoint::make;
use poem::{Endpoint, EndpointExt as _, Request, Route, get};
use poem_openapi::Tags as TagsDerive;
use service::service;
pub use service::spec;
pub use state::State;

use self::declared::Operations;

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
