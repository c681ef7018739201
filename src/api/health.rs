//! Endpoints about the service itself: greeting, liveness, readiness, metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use poem::web::Data;
use poem_openapi::payload::{Json, PlainText};
use poem_openapi::{ApiResponse, Object, OpenApi};

use super::declared::{NeedsNothing, NeedsRead};
use super::problem::{Problem, problems};
use super::{State, Tags};
use crate::model_cache::Slot;

/// The greeting.
#[derive(Debug, Clone, Object)]
pub struct Greeting {
    pub message: String,
}

/// All is well.
#[derive(Debug, Clone, Object)]
pub struct Health {
    /// `live` or `ready`.
    pub status: String,
}

#[derive(ApiResponse)]
enum Healthy {
    /// It is.
    #[oai(status = 200)]
    Ok(Json<Health>),
}

problems! {
    /// It is not.
    Unhealthy {
        /// Some segmentation has neither its models nor a recorded reason why not.
        503,
    }
}

pub struct HealthApi;

fn well(status: &str) -> Healthy {
    Healthy::Ok(Json(Health { status: status.to_owned() }))
}

#[OpenApi]
impl HealthApi {
    /// Greeting
    #[oai(path = "/", method = "get", tag = "Tags::Health", operation_id = "getGreeting")]
    async fn greeting(&self, _scope: NeedsNothing) -> Json<Greeting> {
        Json(Greeting { message: "Big Data API is running.".to_owned() })
    }

    /// Does the process answer?
    #[oai(path = "/health/live", method = "get", tag = "Tags::Health", operation_id = "getLiveness")]
    async fn live(&self, _scope: NeedsNothing) -> Healthy {
        well("live")
    }

    /// Can it predict?
    #[oai(path = "/health/ready", method = "get", tag = "Tags::Health", operation_id = "getReadiness")]
    async fn ready(&self, state: Data<&Arc<State>>, _scope: NeedsNothing) -> Result<Healthy, Unhealthy> {
        if state.draining.load(Ordering::SeqCst) {
            return Err(Problem::unavailable("the server is about to stop; ask another one").into());
        }
        if state.warming.load(Ordering::SeqCst) {
            return Err(Problem::unavailable("the stream is being read and the first models trained").into());
        }
        let models = state.live.now();
        match models.segmentations.iter().find(|served| !served.ready()) {
            None => Ok(well("ready")),
            Some(served) => {
                let name = &served.segmentation.name;
                let lacks = |slot: &&Slot| slot.serving.is_none() && slot.fault.is_some();
                Err(Problem::unavailable(match served.slots.iter().find(lacks) {
                    Some(Slot { slice, fault: Some(fault), .. }) => {
                        format!("{name} of slice {slice} cannot answer: {fault}")
                    }
                    _ => format!("{name} is not trained yet; POST /api/train"),
                })
                .into())
            }
        }
    }

    /// Metrics for Prometheus
    #[oai(path = "/metrics", method = "get", tag = "Tags::Health", operation_id = "getMetrics")]
    async fn metrics(&self, state: Data<&Arc<State>>, _scope: NeedsRead) -> PlainText<String> {
        let asked = Arc::clone(&state);
        // Rendering reads files; concurrent requests share one rendering.
        let look = async move {
            let render = move || asked.metrics.render(&asked);
            tokio::task::spawn_blocking(render).await.unwrap_or_default()
        };
        PlainText(state.rendered.get(look).await.to_string())
    }
}
