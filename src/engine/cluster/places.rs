//! Files as a scheduler and its executors come to them: by the URLs that a plan names.
//!
//! Input: a URL. Output: the disk, or a client of its bucket, made from this process's environment when it is first asked for.

use std::sync::Arc;

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use url::Url;

use super::super::sized_store;

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
        let made = sized_store::named(client(url)?);
        self.0.register_store(url, Arc::clone(&made));
        Ok(made)
    }
}

#[cfg(feature = "object-stores")]
fn client(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    tercile_store::client(url).map_err(|why| DataFusionError::Execution(format!("{url}: {why}")))
}

#[cfg(not(feature = "object-stores"))]
fn client(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    Err(DataFusionError::Execution(format!("{url}: this tercile was built without the feature object-stores")))
}

/// Lets sessions find files; all of them share their clients.
pub fn runtimes() -> Result<impl Fn() -> RuntimeEnvBuilder> {
    let disk = Url::parse("file:///").map_err(|e| DataFusionError::External(e.into()))?;
    let places = Arc::new(Places::default());
    places.register_store(&disk, sized_store::named(Arc::new(LocalFileSystem::new())));
    Ok(move || RuntimeEnvBuilder::new().with_object_store_registry(Arc::clone(&places) as _))
}
