//! Access to files for a scheduler and its executors, by the URLs that a plan names.
//!
//! Input: a URL. Output: a client for its files, made when it is first needed and shared by all sessions of the process.

use std::fmt;
use std::sync::Arc;

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::FunctionRegistry;
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use object_store::ObjectStore;
use url::Url;

/// Makes a client for the files of a URL.
type MakeClient = Arc<dyn Fn(&Url) -> Result<Arc<dyn ObjectStore>> + Send + Sync>;

/// The files and functions that plans of other processes may refer to.
#[derive(Clone)]
pub struct Environment {
    /// Makes a client for the files of a URL; `file:///` stands for the disk.
    pub client: MakeClient,
    /// Functions in addition to DataFusion's own. Executors find them by name.
    pub functions: Vec<Arc<ScalarUDF>>,
    /// Aggregate functions beside DataFusion's own, or instead of those of the same name.
    pub aggregates: Vec<Arc<AggregateUDF>>,
    /// Registers the same functions, and operators, in the session of a scheduler.
    pub register: fn(&mut dyn FunctionRegistry) -> Result<()>,
}

/// The clients of this process.
struct Clients {
    known: DefaultObjectStoreRegistry,
    make: MakeClient,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("known", &self.known).finish_non_exhaustive()
    }
}

impl ObjectStoreRegistry for Clients {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.known.register_store(url, store)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        if let Ok(known) = self.known.get_store(url) {
            return Ok(known);
        }
        let made = (self.make)(url)?;
        self.known.register_store(url, Arc::clone(&made));
        Ok(made)
    }
}

/// Runtime environments of sessions, which share their clients.
pub(super) fn runtimes(environment: &Environment) -> Result<impl Fn() -> RuntimeEnvBuilder + use<>> {
    let disk = Url::parse("file:///").map_err(|e| DataFusionError::External(e.into()))?;
    let make = Arc::clone(&environment.client);
    let clients = Clients { known: DefaultObjectStoreRegistry::default(), make };
    // DataFusion's own client for the disk is registered already.
    clients.register_store(&disk, (clients.make)(&disk)?);
    let clients = Arc::new(clients);
    Ok(move || RuntimeEnvBuilder::new().with_object_store_registry(Arc::clone(&clients) as _))
}
