//! `tercile serve`: serves the API over a store.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use tercile_store::Store;
use tokio::net::{TcpListener, TcpSocket};

use super::notify::Notifying;
use super::{Done, Stop};
use crate::api::{self, State};
use crate::config::{
    BindArgs, BodyArgs, DriftArgs, GuardArgs, HttpMemoryArgs, HttpSqlArgs, NotifyArgs, SqlArgs, StoreArgs, TrainingArgs,
};
use crate::model_cache::ModelCache;

/// Serve the API over a store
///
/// Also starts on an empty store. New models are loaded within a second, whichever process trained them.
#[derive(Args)]
pub struct Serve {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sql: SqlArgs,
    #[command(flatten)]
    bind: BindArgs,
    #[command(flatten)]
    guard: GuardArgs,
    #[command(flatten)]
    http_sql: HttpSqlArgs,
    #[command(flatten)]
    bodies: BodyArgs,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    drift: DriftArgs,
    #[command(flatten)]
    memory: HttpMemoryArgs,
    #[command(flatten)]
    notify: NotifyArgs,
}

impl Serve {
    pub async fn run(self, mut stop: Stop) -> anyhow::Result<Done> {
        let store = self.store.open()?;
        // A store without its source.json is damaged, not empty.
        store.source()?;
        let guard = self.guard.guard(self.bind.bind, &store)?;
        let prepared = stop.unless(async {
            let live = ModelCache::start(&store, self.sql.dir()).await?;
            Ok((live, listen(self.bind.bind)?))
        });
        let Some((live, listener)) = prepared.await? else { return Ok(Done::Well) };
        let address = listener.local_addr()?;
        warn_of_other_models(&store, &live, self.sql.dir());
        let sql = self.http_sql.confined(&store, &self.sql).map_err(anyhow::Error::msg)?;
        let (bodies, budget) = (self.bodies.bodies(), self.memory.budget());
        let mut state = State::new(&store, live, None, false, sql, bodies, budget)?;
        state.trainer.options = self.training.options();
        state.drift_interval = self.drift.interval();
        let notifying = self.notify.start(&store)?.map(|notifier| Notifying::start(notifier, None));
        if let Some(notifying) = &notifying {
            state.notify(&notifying.notifier)?;
        }
        let state = Arc::new(state);
        let scheme = self.guard.scheme();
        let shown = store.root().display();
        tracing::info!("serving {shown} at {scheme}://{address}, documented at {scheme}://{address}/docs");
        api::serve(listener, state, guard, async move { stop.wished().await }).await?;
        if let Some(notifying) = notifying {
            notifying.end(None).await;
        }
        Ok(Done::Well)
    }
}

/// Warns if the store has models of segmentations that the SQL files do not declare: they are not served.
fn warn_of_other_models(store: &Store, live: &ModelCache, sql: Option<&Path>) {
    let models = live.now();
    // A directory that cannot be listed is reported by what reads the models.
    let trained = store.segmentations().unwrap_or_default();
    let others: Vec<String> = trained.into_iter().filter(|name| models.get(name).is_none()).collect();
    if others.is_empty() {
        return;
    }
    let declared: Vec<&str> = models.segmentations.iter().map(|served| served.segmentation.name.as_str()).collect();
    let files = sql.map_or("the built-in SQL files".to_owned(), |dir| format!("the SQL files in {}", dir.display()));
    let declared = if declared.is_empty() { "no segmentation".to_owned() } else { declared.join(", ") };
    tracing::warn!(
        "the models of {} in {} are not served, because {files} declare {declared}; give the SQL files of these models with --sql DIR, \
         or make models of the declared segmentations with tercile train",
        others.join(", "),
        store.root().display()
    );
}

/// Listen backlog. The kernel drops further connection attempts, and clients retry about a second later. The
/// effective value is at most net.core.somaxconn.
const BACKLOG: u32 = 4096;

pub(super) fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let listening = socket.and_then(|socket| {
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    });
    listening.map_err(|error| {
        anyhow::anyhow!("cannot listen at {address}: {error}; stop what listens there, or choose another --bind")
    })
}
