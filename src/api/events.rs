//! Pushes the status as server-sent events.
//!
//! Input: clients that stay connected. Output: to each the status at once, then about once per second while it changes and as a
//! heartbeat while it does not, until the server stops.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _, ready};
use futures::stream;
use poem::Request;
use poem::web::Data;
use poem::web::sse::Event;
use poem_openapi::OpenApi;
use poem_openapi::payload::EventStream;
use poem_openapi::types::ToJSON as _;
use tercile_http::Exchange;
use tokio::sync::watch;

use super::declared::NeedsRead;
use super::guard::Pass;
use super::status::{self, Shown, Status};
use super::{State, Tags};
use crate::train::event::{Subscriber, TrainingEvent};

/// Interval at which the status is checked for changes.
const INTERVAL: Duration = Duration::from_secs(1);
/// Number of unchanged checks after which the status is sent as a heartbeat.
const HEARTBEAT: u32 = 5;

/// Path of the event stream.
pub const PATH: &str = "/api/events";

type Statuses = stream::BoxStream<'static, Status>;

pub struct EventsApi;

#[OpenApi]
impl EventsApi {
    /// The status whenever it changes, as server-sent events
    ///
    /// Events named `status` hold what `/api/status` answers: one at once, then about one a second while something changes, and
    /// one every five seconds while nothing does.
    #[oai(path = "/api/events", method = "get", tag = "Tags::Health", operation_id = "watchStatus")]
    async fn events(&self, state: Data<&Arc<State>>, request: &Request, _scope: NeedsRead) -> EventStream<Statuses> {
        let (exchange, pass) = (request.extensions().get().cloned(), request.extensions().get().cloned());
        let trained = state.trained.0.subscribe();
        let follower = Follower { state: Arc::clone(&state), exchange, pass, last: None, trained };
        let statuses = stream::unfold(follower, |mut follower| async {
            let status = follower.next().await?;
            Some((status, follower))
        });
        EventStream::new(Box::pin(statuses) as Statuses)
            .to_event(|status| Event::message(status.to_json_string()).event_type("status"))
    }
}

/// One client with the last status sent to it.
struct Follower {
    state: Arc<State>,
    exchange: Option<Exchange>,
    /// Key of the request, checked while the stream runs; `None` if no key is required.
    pass: Option<Pass>,
    last: Option<Status>,
    /// Changes when a training ends, which is sent at once.
    trained: watch::Receiver<u64>,
}

/// Resolves when the server stops.
async fn shutdown(exchange: Option<&Exchange>) {
    match exchange {
        Some(exchange) => exchange.shutdown().await,
        None => std::future::pending().await,
    }
}

/// The number of trainings that have ended.
#[derive(Default)]
pub struct Trained(watch::Sender<u64>);

impl Subscriber for Trained {
    fn on_event<'a>(&'a self, _: Option<u64>, event: &'a TrainingEvent) -> BoxFuture<'a, ()> {
        if let TrainingEvent::Ended(_) = event {
            self.0.send_modify(|ended| *ended += 1);
        }
        ready(()).boxed()
    }
}

impl Follower {
    /// Next status to send; `None` when the client's key was revoked or expired, or the server stops.
    async fn next(&mut self) -> Option<Status> {
        for silent in 0.. {
            if self.last.is_some() {
                let exchange = self.exchange.as_ref();
                tokio::select! {
                    () = tokio::time::sleep(INTERVAL) => {}
                    Ok(()) = self.trained.changed() => {}
                    () = shutdown(exchange) => return None,
                }
            }
            if self.pass.as_ref().is_some_and(|pass| !pass.holds()) {
                return None;
            }
            let shown = status::now(&self.state).await;
            let Some(Shown { status, .. }) = shown.as_ref() else { continue };
            let same = |last: &Status| Status { now: status.now.clone(), ..last.clone() } == *status;
            if silent + 1 < HEARTBEAT && self.last.as_ref().is_some_and(same) {
                continue;
            }
            self.last = Some(status.clone());
            return Some(status.clone());
        }
        None
    }
}
