//! Object stores as a scheduler and its executors come to them: by the URLs of the files that a plan names.
//!
//! Input: a URL. Output: a client of its bucket, made from this process's environment when it is first asked for.

use std::sync::Arc;

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use object_store::ObjectStore;
use url::Url;

use crate::store;

/// The clients of this process.
#[derive(Debug, Default)]
struct Places(DefaultObjectStoreRegistry);

impl ObjectStoreRegistry for Places {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.0.register_store(url, store)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        if let Ok(known) = self.0.get_store(url) {
            return Ok(known);
        }
        let made = store::client(url).map_err(|why| DataFusionError::Execution(format!("{url}: {why}")))?;
        self.0.register_store(url, Arc::clone(&made));
        Ok(made)
    }
}

/// Lets sessions find object stores; all of them share their clients.
pub fn runtimes() -> impl Fn() -> RuntimeEnvBuilder {
    let places = Arc::new(Places::default());
    move || RuntimeEnvBuilder::new().with_object_store_registry(Arc::clone(&places) as _)
}
