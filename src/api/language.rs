//! The languages of descriptions.

use poem_openapi::Enum;

/// Language codes, in the order of [`Language`].
pub use crate::sql::header::LANGUAGES;

/// The language of descriptions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
pub enum Language {
    /// English.
    #[default]
    En,
    /// Indonesian.
    Id,
}

impl Language {
    /// The language code.
    pub fn code(self) -> &'static str {
        LANGUAGES[self as usize]
    }
}
