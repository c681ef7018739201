//! Connections between executors, kept for a while after use. Ballista's own pool cannot be given to an engine of others.
//!
//! Input: the address of an executor. Output: a connection to it, which comes back when it is dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ballista_core::client::BallistaClient;
use ballista_core::client_pool::{BallistaClientPool, PooledClient};
use ballista_core::error::Result;
use ballista_core::extension::BallistaConfigGrpcEndpoint;
use ballista_core::utils::GrpcClientConfig;

/// How long a connection may stand idle.
const IDLE: Duration = Duration::from_secs(30);

type Key = (String, u16, GrpcClientConfig);

/// Idle connections with the times since when, by what they were made for.
type Idle = HashMap<Key, Vec<(BallistaClient, Instant)>>;

/// The connections of an executor to others.
#[derive(Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Idle>>);

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes what has stood idle for too long.
    fn evict(idle: &mut Idle) {
        idle.retain(|_, clients| {
            clients.retain(|(_, since)| since.elapsed() < IDLE);
            !clients.is_empty()
        });
    }
}

#[async_trait]
impl BallistaClientPool for Pool {
    async fn acquire(
        &self,
        host: &str,
        port: u16,
        config: &GrpcClientConfig,
        customize_endpoint: Option<Arc<BallistaConfigGrpcEndpoint>>,
    ) -> Result<PooledClient> {
        let key = (host.to_owned(), port, config.clone());
        let idle = {
            let mut idle = self.idle();
            Self::evict(&mut idle);
            idle.get_mut(&key).and_then(Vec::pop)
        };
        let client = match idle {
            Some((client, _)) => client,
            None => {
                BallistaClient::try_new(
                    host,
                    port,
                    config.max_message_size,
                    config.use_tls,
                    customize_endpoint,
                    config.io_retries_times,
                    config.io_retry_wait_time_ms,
                    config.initial_connection_window_size,
                    config.initial_stream_window_size,
                )
                .await?
            }
        };
        let pool = self.clone();
        let back = move |client| pool.idle().entry(key).or_default().push((client, Instant::now()));
        Ok(PooledClient::new(client, Box::new(back)))
    }

    async fn evict_idle(&self) {
        Self::evict(&mut self.idle());
    }
}
