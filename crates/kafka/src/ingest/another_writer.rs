//! Another process stores the same partition: which writes each name is decided by the store; here is what to do about it.

use super::{Job, WarnOnce};

/// Warns, once in ten minutes, that another process stores the same partition.
pub(super) fn warn_of_another_writer(job: &Job, told: &WarnOnce, partition: i32) {
    let Job { topic, store, .. } = job;
    let advice = match (job.embedded, &job.group) {
        (true, _) => "another `tercile up` runs on this store: end one of the two".to_owned(),
        (false, Some(group)) => {
            format!("end the process that reads {topic} without `--group {}`, or give it this group, too", group.name)
        }
        (false, None) => format!("end one of the two processes that read {topic}, or start both with the same --group"),
    };
    if told.is_new(&format!("partition {partition} overtaken")) {
        tracing::warn!(
            partition,
            "another process stores partition {partition} in {} as well and was faster; this one goes on from where it ended, and each \
             record is stored once; to read each once, too, {advice}",
            store.root().display()
        );
    } else {
        tracing::debug!(partition, "another process stored partition {partition} further; going on from there");
    }
}
