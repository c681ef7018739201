//! The child process that trains for a server.
//!
//! Input: an order as a line of JSON on stdin. Output: each event of the training as a line of JSON on stdout. The
//! process ends when its stdin is closed.

use std::io::{self, BufRead as _, Write as _};
use std::sync::Arc;

use clap::Args;
use futures::future::{BoxFuture, FutureExt as _, ready};
use tercile_store::Store;

use super::watchdog::{self, Mode};
use super::{Done, blocking};
use crate::sql::Files;
use crate::train::event::{Emit, Subscriber, Subscribers, TrainingEvent};
use crate::train::worker::Order;
use crate::train::{self, Options};

/// Train for a server, as told on stdin
#[derive(Args)]
pub struct TrainWorker {}

impl TrainWorker {
    pub async fn run(self) -> anyhow::Result<Done> {
        watchdog::set_mode(Mode::Worker);
        let order = blocking(|| {
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line)?;
            Ok(serde_json::from_str::<Order>(&line)?)
        });
        let order = order.await?;
        watchdog::end_with(io::stdin())?;
        // The subscribers of the server get the events from these lines.
        let subscribers = Subscribers::new(vec![Arc::new(Lines)]);
        // The last line says how it ended.
        let _ = subscribers.follow(None, |emit| work(&order, emit)).await;
        Ok(Done::Well)
    }
}

async fn work(order: &Order, emit: Emit) -> anyhow::Result<train::Training> {
    let files = Files::load(order.sql.as_deref())?;
    let store = Store::open(&order.store)?;
    let &Order { keep_members, solver, promote, .. } = order;
    let options = Options { keep_members, solver, promote, emit, ..Options::default() };
    Ok(train::train(&store, &files, &options).await?)
}

/// Writes events to stdout.
struct Lines;

impl Subscriber for Lines {
    fn on_event<'a>(&'a self, _: Option<u64>, event: &'a TrainingEvent) -> BoxFuture<'a, ()> {
        let written = serde_json::to_vec(event).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            let mut out = io::stdout().lock();
            out.write_all(&line)?;
            out.flush()
        });
        if let Err(error) = written {
            tracing::debug!("the server does not listen any more: {error}");
        }
        ready(()).boxed()
    }
}
