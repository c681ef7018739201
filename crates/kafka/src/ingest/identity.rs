//! Whether the topic is still the one that the store is fed from.
//!
//! A topic that is deleted and made again keeps its name, and librdkafka reads on in it wherever it stood. So a file is
//! published only once the broker has been asked for the topic's id after the file's last record was read: whatever was
//! read before an answer that names our topic came from it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tercile_store as store;

use super::{Error, Job};
use crate::broker::Asker;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long nobody asks a broker that did not answer.
const REST: Duration = Duration::from_secs(5);

/// What is known of the topic.
#[derive(Default)]
pub(super) struct Identity(Mutex<Known>);

#[derive(Default)]
struct Known {
    asker: Option<Asker>,
    /// When the question was asked whose answer named our topic last.
    sure: Option<Instant>,
    /// When there was no answer last.
    silent: Option<Instant>,
}

impl Identity {
    /// Makes sure that what was read up to this moment came from our topic. Where the broker does not answer, or has no such
    /// topic just now, that is taken on trust: a broker that is away must not hold up what was read before it went.
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
