//! Closing a consumer: revoked partitions are given back, and the group is left.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rdkafka::bindings as rd;
use rdkafka::consumer::Consumer as _;

use super::super::membership::Change;
use super::Consumer;

/// Timeout for closing a consumer; shorter than the timeout of a graceful shutdown.
const LEAVING: Duration = Duration::from_secs(4);
/// Time in which the group coordinator assigns a member id to a new member.
const NAMED: Duration = Duration::from_millis(50);

impl Consumer {
    /// Closes the connection and leaves the group. After a timeout, closing continues in the background; stored data does not
    /// depend on it.
    pub fn close(self) {
        let (closed, wait) = channel();
        let closing = std::thread::Builder::new().name("close".to_owned()).spawn(move || {
            drop(self);
            let _ = closed.send(());
        });
        if closing.is_ok() && wait.recv_timeout(LEAVING) == Err(RecvTimeoutError::Timeout) {
            tracing::debug!("the broker was not waited for any longer");
        }
    }

    /// Leaves the group while the member holds no partition. When librdkafka 2.12 closes such a member, it sends no LeaveGroup,
    /// and the other members wait for the session timeout. A joining member can leave only once it has joined.
    fn leave(&self) {
        if self.inner.assignment().is_ok_and(|held| held.count() > 0) {
            return;
        }
        self.inner.unsubscribe();
        let began = Instant::now();
        // A member that has sent its first request may not have received its id yet.
        while began.elapsed() < NAMED || (self.is_member() && began.elapsed() < LEAVING) {
            let _ = self.inner.poll(Duration::from_millis(10));
        }
    }

    /// Whether the group has assigned a member id, which librdkafka clears on leaving.
    fn is_member(&self) -> bool {
        // SAFETY: the handle lives as long as `self`; the caller owns the returned id and frees it with librdkafka's allocator.
        unsafe {
            let handle = self.inner.client().native_ptr();
            let name = rd::rd_kafka_memberid(handle);
            let known = !name.is_null() && *name != 0;
            rd::rd_kafka_mem_free(handle, name.cast());
            known
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        if let Some(membership) = &self.membership {
            membership.closing.store(true, Ordering::SeqCst);
            // The group waits until all revoked partitions are given back, and closing waits for the group.
            let changes = std::mem::take(&mut *membership.changes.lock().unwrap_or_else(PoisonError::into_inner));
            for change in changes {
                match change {
                    Change::Assigned(_) => {}
                    Change::Revoked(partitions) => self.give_back(&partitions),
                    Change::Failed(_) => self.give_back(&[]),
                }
            }
            if !membership.fixed {
                self.leave();
            }
        }
    }
}
