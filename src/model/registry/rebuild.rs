//! Rebuilds the serving state from the history.

use tercile_store::{Error, Reason, Revision};

use super::super::PromotedBy;
use super::super::history::Promotion;
use super::{ModelRegistry, ServingState, Slices};

impl ModelRegistry {
    /// The serving state for a training, which may continue without `slices.json`: the state is then rebuilt from the history,
    /// and a damaged file is set aside. A version promoted manually counts as pinned, because it may have been.
    ///
    /// # Errors
    /// If the file exists and this process may not read it.
    pub fn slices_or_again(&self) -> Result<(Slices, Revision), Error> {
        let fault = match self.slices_as_read() {
            Err(Error::File(fault)) if fault.reason != Reason::Unreadable => *fault,
            read => return read,
        };
        let history = match self.kept() {
            Err(Error::File(_)) => Vec::new(),
            kept => kept?.0,
        };
        let mut slices = Slices::new();
        for began in history.into_iter().filter(Promotion::serves) {
            let by = Some(began.by);
            let pinned = began.by == PromotedBy::Rollback;
            let standing = ServingState {
                version: Some(began.version),
                since: Some(began.at),
                by,
                pinned,
                ..ServingState::default()
            };
            slices.insert(began.slice, standing);
        }
        let moved = match fault.reason {
            Reason::Missing => String::new(),
            _ => format!(" it was moved to {};", self.set_aside(&fault)?.display()),
        };
        let chosen: Vec<String> = slices
            .iter()
            .filter_map(|(slice, standing)| {
                Some(format!("{} of slice {slice}", standing.version.filter(|_| standing.pinned)?))
            })
            .collect();
        let chosen = match chosen.is_empty() {
            true => "pins are lost".to_owned(),
            false => format!("version {} counts as pinned, other pins are lost", chosen.join(", ")),
        };
        tracing::warn!(
            "{} {} is {}:{moved} it is made again from served.ndjson and the model files; {chosen}",
            fault.kind,
            fault.path.display(),
            fault.reason
        );
        // A conditional put requires that the file still does not exist.
        let (_, read) = self.store.read_revision(&fault.path)?;
        Ok((slices, read))
    }
}
