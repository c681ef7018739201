//! Checks that the topic is still the one that feeds the store.
//!
//! A topic that is deleted and created again keeps its name, and librdkafka continues reading it at the old position. So a file
//! is published only after a request for the topic's id that was made after the file's last record was read: if the answer
//! names the store's topic, all records read before the request came from it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tercile_store as store;

use super::{Error, Job};
use crate::broker::Asker;

/// Timeout of a request.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause after a request without an answer.
const REST: Duration = Duration::from_secs(5);

/// The latest confirmation of the topic's identity.
#[derive(Default)]
pub(super) struct Identity(Mutex<Known>);

#[derive(Default)]
struct Known {
    asker: Option<Asker>,
    /// When the latest confirmed request was made.
    sure: Option<Instant>,
    /// When a request last went unanswered.
    silent: Option<Instant>,
}

impl Identity {
    /// Confirms that records read up to `read` came from the store's topic. If the broker does not answer, or has no such topic
    /// at present, that is assumed: an unreachable broker must not block records that were read before.
    pub(super) fn confirm(&self, job: &Job, read: Instant) -> Result<(), Error> {
        if job.embedded {
            return Ok(());
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = known.sure.is_some_and(|sure| sure >= read);
        if told || known.silent.is_some_and(|silent| silent.elapsed() < REST) {
            return Ok(());
        }
        let asked = Instant::now();
        let asker = match &known.asker {
            Some(asker) => asker,
            None => known.asker.insert(job.cluster.within(PATIENCE).asker()?),
        };
        match asker.describe(&job.topic) {
            Ok(Some(topic)) => match job.store.claim(&topic.name, &topic.id, topic.partitions) {
                Ok(_) => known.sure = Some(asked),
                Err(error @ store::Error::OtherTopic { .. }) => return Err(error.into()),
                Err(error) => tracing::warn!("{error}"),
            },
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "the topic's id is not known");
                known.silent = Some(Instant::now());
            }
        }
        Ok(())
    }
}
