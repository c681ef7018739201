//! Actions at the end of a process. In a process of its own: `run` deletes the temporary files of all stores of the process.

use tercile_store::cleanup::{file, run};

#[test]
fn registered_files_are_deleted_and_unregistered_ones_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let [temporary, renamed] = ["temporary", "renamed"].map(|name| dir.path().join(name));
    for path in [&temporary, &renamed] {
        std::fs::write(path, "rows").unwrap();
    }
    let first = file(&temporary);
    drop(file(&renamed));
    run();
    run();
    assert!(!temporary.exists() && renamed.exists());
    drop(first);
}
