//! Training on request: observable jobs, one at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::{BoxFuture, FutureExt as _, ready};
use poem::web::Data;
use poem_openapi::param::Path;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};

use super::declared::NeedsTrain;
use super::problem::{Problem, problems};
use super::{State, Tags};
use crate::train::event::{Subscriber, TrainingEvent};

/// Maximum number of jobs kept.
const REMEMBERED: usize = 100;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
pub enum JobState {
    /// It trains.
    Running,
    /// It ended; single models may have been refused all the same.
    Done,
    /// It ended without training.
    Failed,
}

/// A training.
#[derive(Debug, Clone, Object)]
pub struct Job {
    pub job: u64,
    pub state: JobState,
    /// New models.
    pub trained: u64,
    /// Models that stay as they were, for they were trained on just the same.
    pub unchanged: u64,
    /// Why there are no new models where there are none.
    pub refused: Vec<String>,
    /// Why it failed, if it did.
    #[oai(skip_serializing_if_is_none)]
    pub error: Option<String>,
}

/// All jobs of this process.
#[derive(Default)]
pub struct Jobs(Mutex<BTreeMap<u64, Job>>);

impl Jobs {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, job: u64) -> Option<Job> {
        self.all().get(&job).cloned()
    }

    /// The running job, or a new one; the flag is true for a new one.
    fn start(&self) -> (Job, bool) {
        let mut jobs = self.all();
        if let Some(running) = jobs.values().find(|job| job.state == JobState::Running) {
            return (running.clone(), false);
        }
        let number = jobs.keys().next_back().map_or(1, |last| last + 1);
        let (state, refused) = (JobState::Running, Vec::new());
        let job = Job { job: number, state, trained: 0, unchanged: 0, refused, error: None };
        jobs.insert(number, job.clone());
        while jobs.len() > REMEMBERED {
            jobs.pop_first();
        }
        (job, true)
    }
}

impl Subscriber for Jobs {
    fn on_event<'a>(&'a self, job: Option<u64>, event: &'a TrainingEvent) -> BoxFuture<'a, ()> {
        if let Some(job) = job
            && let Some(job) = self.all().get_mut(&job)
        {
            job.learn(event);
        }
        ready(()).boxed()
    }
}

impl Job {
    fn learn(&mut self, event: &TrainingEvent) {
        match event {
            TrainingEvent::Started { .. } => {}
            TrainingEvent::Slice(outcome) => match outcome.public_refusal() {
                Some(why) => self.refused.push(why.clone()),
                None if outcome.fresh => self.trained += 1,
                None => self.unchanged += 1,
            },
            TrainingEvent::Ended(_) => self.state = JobState::Done,
            TrainingEvent::Failed { why, timed_out } => {
                self.state = JobState::Failed;
                let hidden = "the training failed; the server's log says why";
                self.error = Some(if *timed_out { why.as_str() } else { hidden }.to_owned());
            }
        }
    }
}

#[derive(ApiResponse)]
enum Started {
    /// A training runs: a new one, or the one that ran already.
    #[oai(status = 202)]
    Accepted(
        Json<Job>,
        /// Where to watch it.
        #[oai(header = "Location")]
        String,
    ),
}

problems! {
    /// Why there is nothing to watch.
    JobFailure {
        /// There is no job of this number, or not any more.
        404,
    }
}

pub struct TrainingApi;

#[OpenApi]
impl TrainingApi {
    /// Train all segmentations on all that is stored
    #[oai(path = "/api/train", method = "post", tag = "Tags::Training", operation_id = "startTraining")]
    async fn train(&self, state: Data<&Arc<State>>, _scope: NeedsTrain) -> Started {
        let (job, fresh) = state.jobs.start();
        if fresh {
            tokio::spawn(run(Arc::clone(&state), job.job));
        }
        let location = format!("/api/train/{}", job.job);
        Started::Accepted(Json(job), location)
    }

    /// Watch a training
    #[oai(path = "/api/train/:job", method = "get", tag = "Tags::Training", operation_id = "getTraining")]
    async fn job(
        &self,
        state: Data<&Arc<State>>,
        /// Its number.
        job: Path<u64>,
        _scope: NeedsTrain,
    ) -> Result<Json<Job>, JobFailure> {
        let found = state.jobs.get(job.0);
        Ok(Json(found.ok_or_else(|| Problem::not_found(format!("there is no job {}", job.0)).field("job"))?))
    }
}

async fn run(state: Arc<State>, job: u64) {
    if let Err(error) = state.trainer.train(Some(job)).await {
        tracing::error!("the training failed: {error:#}");
    }
}
