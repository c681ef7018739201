//! Versions that are asked for by number.

use std::sync::Arc;

use tercile_store as store;

use super::super::problem::Problem;
use crate::model_cache::{ModelCache, Serving};

/// A requested version, in service or not.
pub(super) fn recalled(
    live: &ModelCache,
    name: &str,
    version: u64,
    slice: Option<u8>,
) -> Result<Arc<Serving>, Problem> {
    let found = live.recall(name, version).map_err(|error| {
        tracing::error!("{error}");
        let why = match &error {
            store::Error::File(fault) => fault.class(),
            _ => "its file cannot be read".to_owned(),
        };
        Problem::unavailable(format!(
            "version {version} of {name} cannot answer: {why}; tercile doctor says which file"
        ))
    })?;
    let none = || Problem::not_found(format!("{name} has no version {version}")).field("as_of");
    let found = found.ok_or_else(none)?;
    match slice.filter(|&slice| slice != found.model.slice) {
        None => Ok(found),
        Some(slice) => {
            let of = found.model.slice;
            let detail = format!("version {version} of {name} is of slice {of}, not {slice}: leave model out");
            Err(Problem::unprocessable(detail).field("as_of"))
        }
    }
}
