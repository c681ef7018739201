//! The child process that trains for a server.
//!
//! Input: an order as a line of JSON on stdin. Output: a reply as JSON on stdout. The process ends when its stdin is
//! closed.

use std::io::{self, BufRead as _, Write as _};

use clap::Args;
use tercile_store::Store;

use super::watchdog::{self, Mode};
use super::{Done, blocking};
use crate::sql::Files;
use crate::train::worker::{Order, Reply};
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
        let reply = match work(&order).await {
            Ok(training) => Reply::Trained(training),
            Err(error) => Reply::Failed(format!("{error:#}")),
        };
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &reply)?;
        out.flush()?;
        Ok(Done::Well)
    }
}

async fn work(order: &Order) -> anyhow::Result<train::Training> {
    let files = Files::load(order.sql.as_deref())?;
    let store = Store::open(&order.store)?;
    Ok(train::train(&store, &files, &Options { keep_members: order.keep_members, ..Options::default() }).await?)
}
