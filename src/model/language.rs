//! The languages of a model's descriptions.

use super::Model;

/// A model has no descriptions in a language.
#[derive(Debug, thiserror::Error)]
#[error("the clusters of {model} have no names in the language {language}; they have {has}")]
pub struct NoLanguage {
    pub model: String,
    pub language: String,
    pub has: String,
}

impl Model {
    /// The languages of all its descriptions.
    pub fn languages(&self) -> impl Iterator<Item = &str> {
        let (first, others) = self.clusters.split_first().map_or((None, &[][..]), |(first, rest)| (Some(first), rest));
        let all = first.into_iter().flat_map(|first| first.descriptions.keys());
        all.filter(|language| others.iter().all(|other| other.descriptions.contains_key(*language))).map(String::as_str)
    }

    /// Checks that there are descriptions in a language.
    ///
    /// # Errors
    /// [`NoLanguage`] otherwise.
    pub fn check_language(&self, language: &str) -> Result<(), NoLanguage> {
        if self.languages().any(|has| has == language) {
            return Ok(());
        }
        let has = self.languages().collect::<Vec<_>>().join(", ");
        Err(NoLanguage { model: self.segmentation.clone(), language: language.to_owned(), has })
    }

    /// The description of each cluster in a language, otherwise in English.
    pub fn descriptions(&self, language: &str) -> Vec<&str> {
        self.clusters.iter().map(|c| c.descriptions.get(language).unwrap_or(&c.description).as_str()).collect()
    }
}
