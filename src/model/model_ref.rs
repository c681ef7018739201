//! References to models: `price_rating`, `price_rating@2` for a slice, `price_rating@2@5` for a version of the slice,
//! `price_rating@2@challenger` for its candidate. `price_rating@champion` is what serves slice 3.

use std::path::Path;

use tercile_store::{Error, Store};

use super::{Model, ModelRegistry};
use crate::slices::SLICES;

/// A parsed reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    pub segmentation: String,
    pub slice: u8,
    pub which: Which,
}

/// A model of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one that serves.
    Champion,
    /// The candidate.
    Challenger,
    Version(u64),
}

impl Which {
    fn named(word: &str) -> Option<Self> {
        match word {
            "champion" => Some(Self::Champion),
            "challenger" => Some(Self::Challenger),
            _ => None,
        }
    }
}

impl Name {
    pub fn parse(name: &str) -> Result<Self, String> {
        let mut parts = name.splitn(3, '@');
        let segmentation = parts.next().unwrap_or_default();
        let (second, third) = (parts.next(), parts.next());
        let (slice, which) = match (second.and_then(Which::named), third) {
            (Some(which), None) => (Some(SLICES), Some(which)),
            _ => {
                let which = |word: &str| Which::named(word).or_else(|| word.parse().ok().map(Which::Version));
                (second.map_or(Some(SLICES), |slice| slice.parse().ok()), third.map_or(Some(Which::Champion), which))
            }
        };
        let slice = slice.filter(|slice| (1..=SLICES).contains(slice));
        let slice = slice.ok_or_else(|| format!("{name}: a model is a segmentation, or one with @1, @2 or @3"))?;
        let which = which.ok_or_else(|| {
            format!("{name}: a version is a number, champion or challenger, as in {segmentation}@{slice}@1")
        })?;
        // The name becomes a directory name.
        if segmentation.is_empty() || !segmentation.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(format!("there is no segmentation {segmentation}"));
        }
        Ok(Self { segmentation: segmentation.to_owned(), slice, which })
    }

    pub fn registry(&self, store: &Store) -> ModelRegistry {
        ModelRegistry::new(store, &self.segmentation)
    }
}

/// The model of a reference, or the reason why there is none.
pub fn find(store: &Store, name: &str) -> Result<Model, String> {
    find_for(store, name, true)
}

fn no_model(store: &Store, name: &str, segmentation: &str) -> String {
    match store.segmentations() {
        Ok(trained) if !trained.is_empty() && !trained.iter().any(|one| one == segmentation) => {
            format!("there is no model of {name}; run tercile train, or name one of {}", trained.join(", "))
        }
        _ => format!("there is no model of {name}; run tercile train"),
    }
}

/// The same. `paths` states whether the reason may contain local paths.
pub fn find_for(store: &Store, name: &str, paths: bool) -> Result<Model, String> {
    let parsed = Name::parse(name)?;
    let registry = parsed.registry(store);
    let version = match parsed.which {
        Which::Champion => {
            let model = registry.serving(parsed.slice).map_err(|e| shown(&e, paths))?;
            return model.ok_or_else(|| no_model(store, name, &parsed.segmentation));
        }
        Which::Challenger => {
            let slices = registry.slices().map_err(|e| shown(&e, paths))?;
            let held = slices.get(&parsed.slice).and_then(|standing| standing.candidate.as_ref());
            let none = || format!("slice {} of {} has no candidate", parsed.slice, parsed.segmentation);
            held.ok_or_else(|| format!("{}; tercile models candidates lists all", none()))?.version
        }
        Which::Version(version) => version,
    };
    let model = registry.version(version).map_err(|e| shown(&e, paths))?;
    let model = model.ok_or_else(|| no_version(&parsed.segmentation, version))?;
    match model.slice == parsed.slice {
        true => Ok(model),
        false => Err(format!(
            "version {version} of {0} is of slice {1}; say {0}@{1}@{version}",
            parsed.segmentation, model.slice
        )),
    }
}

/// A version of a segmentation, or the reason why there is none.
pub fn version_of(registry: &ModelRegistry, segmentation: &str, version: u64) -> Result<Model, String> {
    let model = registry.version(version).map_err(|e| e.to_string())?;
    model.ok_or_else(|| no_version(segmentation, version))
}

fn no_version(segmentation: &str, version: u64) -> String {
    format!("{segmentation} has no version {version}; tercile models {segmentation} lists those it has")
}

/// The text of an error with or without paths.
fn shown(error: &Error, paths: bool) -> String {
    match error {
        error if paths => error.to_string(),
        Error::File(fault) => fault.class(),
        _ => "the model cannot be read".to_owned(),
    }
}

/// The model of a reference or of a file.
pub fn find_or_read(store: &Store, name: &str) -> Result<Model, String> {
    let path = Path::new(name);
    if path.extension().is_some_and(|ending| ending == "json") || name.contains('/') {
        return Model::read(path).map_err(|e| e.to_string());
    }
    find(store, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_up_to_three_parts() {
        let name = |segmentation: &str, slice, which| Name { segmentation: segmentation.to_owned(), slice, which };
        assert_eq!(Name::parse("a_b").unwrap(), name("a_b", 3, Which::Champion));
        assert_eq!(Name::parse("a@2").unwrap(), name("a", 2, Which::Champion));
        assert_eq!(Name::parse("a@1@17").unwrap(), name("a", 1, Which::Version(17)));
        assert_eq!(Name::parse("a@champion").unwrap(), name("a", 3, Which::Champion));
        assert_eq!(Name::parse("a@challenger").unwrap(), name("a", 3, Which::Challenger));
        assert_eq!(Name::parse("a@2@challenger").unwrap(), name("a", 2, Which::Challenger));
        for wrong in ["", "@1", "a@4", "a@", "a@1@", "a@1@x", "a@1@2@3", "a@champion@1", "../a", "a b"] {
            assert!(Name::parse(wrong).is_err(), "{wrong}");
        }
    }
}
