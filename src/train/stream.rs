//! The stream that a training reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::prelude::SessionContext;
use tercile_store::Snapshot;

use crate::engine;
use crate::model::Cut;
use crate::slices::{self, SLICES};

/// The stream at the start of this training.
pub(super) struct Stream {
    pub topic: String,
    pub next_offsets: BTreeMap<String, i64>,
    pub n: u64,
    pub cuts: [Option<Cut>; SLICES as usize],
}

/// The stream and the cuts of its slices.
pub(super) async fn stream(
    ctx: &SessionContext,
    snapshot: &Snapshot,
) -> Result<(Stream, Arc<Vec<slices::Cut>>), engine::Error> {
    let n = snapshot.rows();
    let cuts = Arc::new(engine::cuts(ctx).await?);
    let cut = |slice: u8| {
        let &slices::Cut { timestamp, partition, offset, .. } = cuts.iter().find(|cut| cut.slice == slice)?;
        Some(Cut { timestamp, partition, offset })
    };
    let stream = Stream {
        topic: snapshot.topic.clone(),
        next_offsets: snapshot.next_offsets().into_iter().map(|(p, next)| (p.to_string(), next)).collect(),
        n,
        cuts: std::array::from_fn(|i| cut(i as u8 + 1)),
    };
    Ok((stream, cuts))
}
