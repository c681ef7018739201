//! The version of a mutable file.

/// The version of a file when it was read, which a conditional put expects to be unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Revision {
    /// The file did not exist, or the backend has no revisions.
    #[default]
    None,
    /// The version of an object.
    Object {
        /// ETag.
        e_tag: Option<String>,
        /// Version id.
        version: Option<String>,
    },
}
