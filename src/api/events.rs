//! The status, pushed: server-sent events.
//!
//! Input: clients that stay. Output: to each the status at once and about once a second while it changes, a heartbeat while
//! it does not, and an end when the server stops.

use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use poem::Request;
use poem::web::sse::Event;
use poem::web::{Data, RemoteAddr};
use poem_openapi::OpenApi;
use poem_openapi::payload::EventStream;
use poem_openapi::types::ToJSON as _;

use super::guard::Pass;
use super::status::{self, Shown, Status};
use super::{State, Tags};

/// How often it is looked whether something changed.
const INTERVAL: Duration = Duration::from_secs(1);
/// Looks without a change after which the status is sent all the same, so that a client knows that we are there.
const HEARTBEAT: u32 = 5;

/// Where they are.
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
    async fn events(&self, state: Data<&Arc<State>>, request: &Request) -> EventStream<Statuses> {
        let (client, pass) = (request.remote_addr().clone(), request.extensions().get().cloned());
        let follower = Follower { state: Arc::clone(&state), client, pass, last: None };
        let statuses = stream::unfold(follower, |mut follower| async {
            let status = follower.next().await?;
            Some((status, follower))
        });
        EventStream::new(Box::pin(statuses) as Statuses)
            .to_event(|status| Event::message(status.to_json_string()).event_type("status"))
    }
}

/// One client, and what it knows.
struct Follower {
    state: Arc<State>,
    client: RemoteAddr,
    /// What it was let in with, if it takes a key.
    pass: Option<Pass>,
    last: Option<Status>,
}

impl Follower {
    /// What it is told next; `None` when it has gone, its key was revoked or is over, or the server ends.
    async fn next(&mut self) -> Option<Status> {
        let mut stopping = self.state.stopping.subscribe();
        for silent in 0.. {
            if self.last.is_some() {
                tokio::select! {
                    () = tokio::time::sleep(INTERVAL) => {}
                    _ = stopping.wait_for(|stopping| *stopping) => return None,
                    () = self.state.clients.gone(&self.client) => return None,
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
