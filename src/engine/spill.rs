//! The directories that queries spill to, so that none is left behind by a process that ends while a query runs.
//!
//! DataFusion deletes them when the last part of a query goes, which does not happen at the end of a process whose threads
//! are still computing.

use std::sync::{Arc, Mutex, Once, PoisonError, Weak};

use datafusion::execution::runtime_env::RuntimeEnv;
use tercile_store::cleanup;

/// The runtime environments of all sessions.
static SESSIONS: Mutex<Vec<Weak<RuntimeEnv>>> = Mutex::new(Vec::new());

/// Has the directories of a session's queries deleted at the end of the process.
pub fn delete_at_exit(runtime: &Arc<RuntimeEnv>) {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| cleanup::register(delete).keep());
    let mut sessions = SESSIONS.lock().unwrap_or_else(PoisonError::into_inner);
    sessions.retain(|session| session.strong_count() > 0);
    sessions.push(Arc::downgrade(runtime));
}

fn delete() {
    let sessions = SESSIONS.lock().unwrap_or_else(PoisonError::into_inner);
    for directory in sessions.iter().filter_map(Weak::upgrade).flat_map(|runtime| runtime.disk_manager.temp_dir_paths())
    {
        // It may be gone already, and nobody can be told any more.
        let _ = std::fs::remove_dir_all(directory);
    }
}
