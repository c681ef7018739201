//! Deletes the spill directories of queries when the process ends.
//!
//! DataFusion deletes them when the last part of a query is dropped, which does not happen if the process ends while
//! its threads are still computing.

use std::sync::{Arc, Mutex, Once, PoisonError, Weak};

use datafusion::execution::runtime_env::RuntimeEnv;
use tercile_store::cleanup;

/// The runtime environments of all sessions.
static SESSIONS: Mutex<Vec<Weak<RuntimeEnv>>> = Mutex::new(Vec::new());

/// Registers a session's spill directories for deletion at the end of the process.
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
        // The directory may be gone already, and errors cannot be reported any more.
        let _ = std::fs::remove_dir_all(directory);
    }
}
