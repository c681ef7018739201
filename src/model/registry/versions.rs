//! The versions of a segmentation, read together by a training.

use std::collections::{BTreeMap, BTreeSet};

use tercile_store::{Error, FileFault, parallel};

use super::super::Model;
use super::{ModelRegistry, Slices};

/// The versions of a segmentation, listed once, and those of their files that a training is likely to need.
pub struct Versions {
    registry: ModelRegistry,
    /// In ascending order.
    listed: Vec<u64>,
    /// Usable ones. Files never change.
    read: BTreeMap<u64, Model>,
}

/// Number of the newest versions that are read together with the serving ones.
const NEWEST: usize = 3;
/// Model files that are read concurrently.
const AT_ONCE: usize = 16;

impl ModelRegistry {
    /// True if cluster numbers were kept from one model to the other, through any number of models between them. False if a
    /// model between them is missing.
    pub fn same_lineage(&self, one: &Model, other: &Model) -> Result<bool, Error> {
        let (mut one, mut other) = (one.clone(), other.clone());
        while one.version != other.version {
            if one.version < other.version {
                std::mem::swap(&mut one, &mut other);
            }
            let before = one.receipt.predecessor.as_ref().map(|before| before.version);
            let Some(before) = before.filter(|before| *before < one.version) else { return Ok(false) };
            let Some(before) = self.version(before)? else { return Ok(false) };
            one = before;
        }
        Ok(true)
    }

    /// Lists the versions, and reads the serving and the newest ones concurrently.
    ///
    /// # Errors
    /// If the directory cannot be listed. Unusable files are errors of those who ask for them.
    pub fn versions_for(&self, slices: &Slices) -> Result<Versions, Error> {
        let listed = self.listed()?;
        let serving: BTreeSet<u64> = slices.values().filter_map(|standing| standing.version).collect();
        let newest = listed.iter().rev().take(NEWEST).copied();
        let newest = newest.filter(|version| serving.first().is_none_or(|first| first <= version));
        let wanted: Vec<u64> = newest.chain(serving.iter().copied()).collect::<BTreeSet<_>>().into_iter().collect();
        let threads = if self.store.place().is_disk() { 1 } else { AT_ONCE };
        let read = parallel::each(&wanted, threads, |version| Ok::<_, Error>(self.model(*version).ok()))?;
        let read = wanted.into_iter().zip(read).filter_map(|(version, model)| Some((version, model?))).collect();
        Ok(Versions { registry: self.clone(), listed, read })
    }
}

impl Versions {
    /// A version that serves a slice: [`ModelRegistry::model_of`].
    ///
    /// # Errors
    /// Same as [`ModelRegistry::model`].
    pub fn model_of(&self, version: u64, slice: u8) -> Result<Model, Error> {
        match self.read.get(&version).filter(|model| model.slice == slice) {
            Some(model) => Ok(model.clone()),
            None => self.registry.model_of(version, slice),
        }
    }

    /// The newest usable version of a slice, if it is newer than this one. `skipped` receives unusable files.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn newest(
        &self,
        slice: u8,
        than: Option<u64>,
        skipped: &mut dyn FnMut(FileFault),
    ) -> Result<Option<Model>, Error> {
        for &version in self.listed.iter().rev().take_while(|version| Some(**version) > than) {
            let model = match self.read.get(&version) {
                Some(model) if model.slice != slice => continue,
                Some(model) => Ok(Some(model.clone())),
                None => self.registry.version(version),
            };
            match model {
                Ok(Some(model)) if model.slice == slice => return Ok(Some(model)),
                Ok(_) => {}
                Err(Error::File(fault)) => skipped(*fault),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
