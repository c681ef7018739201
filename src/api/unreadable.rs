//! Endpoint for the latest dead letters: messages that could not be parsed, with reason and position.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::param::Query;
use poem_openapi::payload::Json;
use poem_openapi::{Object, OpenApi};
use tercile_store::{self as store, times};

use super::declared::NeedsRead;
use super::problem::{Problem, problems};
use super::{State, Tags};

/// Default limit.
const FEW: u16 = 50;

problems! {
    /// Why there is nothing to show.
    UnreadableFailure {
        /// A parameter does not fit.
        422,
        /// The store can't be read.
        503,
    }
}

/// A message that could not be read as a record.
#[derive(Debug, Clone, Object)]
pub struct Unreadable {
    pub partition: i32,
    pub offset: i64,
    /// When it was sent, as the broker noted it, RFC 3339, UTC; not given where it did not.
    #[oai(skip_serializing_if_is_none)]
    pub timestamp: Option<String>,
    /// Why it is no record.
    pub reason: String,
    /// How long the message is, in bytes.
    pub bytes: u64,
    /// How it begins; what is no UTF-8 is replaced.
    pub start: String,
}

pub struct UnreadableApi;

#[OpenApi]
impl UnreadableApi {
    /// The last messages that could not be read as records, latest first
    #[oai(path = "/api/unreadable", method = "get", tag = "Tags::Segments", operation_id = "listUnreadable")]
    async fn unreadable(
        &self,
        state: Data<&Arc<State>>,
        /// How many at most (50 if not given).
        #[oai(validator(minimum(value = "1"), maximum(value = "500")))]
        limit: Query<Option<u16>>,
        _scope: NeedsRead,
    ) -> Result<Json<Vec<Unreadable>>, UnreadableFailure> {
        let (store, most) = (state.store.clone(), usize::from(limit.0.unwrap_or(FEW)));
        let read = state.turns.run(move || store.snapshot()?.last_unreadable(most)).await;
        let unavailable = || Problem::unavailable("the store can't be read now; the server's log says why");
        let found = read.ok_or_else(unavailable)?.map_err(|error| {
            tracing::error!("{error}");
            unavailable()
        })?;
        Ok(Json(found.into_iter().map(shown).collect()))
    }
}

fn shown(one: store::Unreadable) -> Unreadable {
    Unreadable {
        partition: one.partition,
        offset: one.offset,
        timestamp: one.timestamp.map(|millis| {
            let time = chrono::DateTime::from_timestamp_millis(millis);
            time.map_or_else(|| times::text(millis), |time| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
        }),
        reason: one.reason,
        bytes: one.bytes as u64,
        start: String::from_utf8_lossy(&one.start).into_owned(),
    }
}
