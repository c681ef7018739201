//! Cleanup when a process ends without unwinding: a registry of temporary files and other actions.
//!
//! Input: actions, registered while a temporary object exists. Output: [`run`], which `cli` calls at the end of every process,
//! also when the watchdog ends a process whose threads do not return. A `Drop` implementation alone is not sufficient: it does
//! not run for values owned by a thread that is still computing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

type Action = Box<dyn FnOnce() + Send>;

/// Registered actions by the order of their registration.
static REGISTRY: Mutex<Registry> = Mutex::new(Registry { next: 0, actions: BTreeMap::new() });

struct Registry {
    next: u64,
    actions: BTreeMap<u64, Action>,
}

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A registered action. Dropping it unregisters the action without running it.
#[derive(Debug)]
#[must_use = "dropping it unregisters the action"]
pub struct Registered(u64);

impl Registered {
    /// Keeps the action registered until the process ends.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        registry().actions.remove(&self.0);
    }
}

/// Registers an action for the end of the process. It must not block, and must not wait for a lock that a computing
/// thread can hold for long.
pub fn register(action: impl FnOnce() + Send + 'static) -> Registered {
    let mut registry = registry();
    let number = registry.next;
    registry.next += 1;
    registry.actions.insert(number, Box::new(action));
    Registered(number)
}

/// Registers a temporary file for deletion at the end of the process. Unregister it, by dropping what is returned, once
/// the file was renamed or deleted.
pub fn file(path: &Path) -> Registered {
    let path: PathBuf = path.to_owned();
    register(move || {
        // It may have been renamed or deleted just now.
        let _ = std::fs::remove_file(path);
    })
}

/// Runs all registered actions, the newest first, each once.
pub fn run() {
    loop {
        let action = registry().actions.pop_last();
        match action {
            Some((_, action)) => action(),
            None => return,
        }
    }
}
