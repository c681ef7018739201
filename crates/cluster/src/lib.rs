//! Queries and KMeans on a cluster of Ballista, the distributed engine of DataFusion.
//!
//! - [`session`] makes a session whose queries run on the executors of a scheduler.
//! - [`serve`] runs a scheduler or an executor in this process.
//! - [`write`] writes the rows of a statement to one file, in order; [`solver`] clusters such rows, one query per pass.
//!
//! The crate knows sessions and SQL texts. Which files and functions its processes know is an [`Environment`] of the caller, who
//! also knows what the rows mean. Queries whose clients are gone end on the cluster, queries that cannot run end at the client,
//! and errors are one plain line (`error_message.rs`).

#![warn(missing_docs)]

mod address;
mod client_pool;
mod error_message;
mod files;
mod jobs;
mod plan;
mod scheduler;
pub mod serve;
mod session;
pub mod solver;
mod solver_sql;
mod tasks;
mod watch;
mod write;

pub use address::Address;
pub use files::Environment;
pub use plan::LocalFunctions;
pub use session::session;
pub use write::write;
