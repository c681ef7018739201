//! The time of a record by one of its fields, in place of Kafka's timestamp.

use std::fmt;
use std::sync::Arc;

use crate::record::Decoded;

/// Characters of a value in a message.
const SHOWN: usize = 40;

/// Reads a time from the text of a field.
pub trait TimeReader: fmt::Debug + Send + Sync {
    /// Milliseconds since 1970, UTC; `None` if the text is no time.
    fn millis(&self, text: &str) -> Option<i64>;
}

/// The declared field that gives `_timestamp`.
#[derive(Debug, Clone)]
pub struct EventTime {
    /// Index of the field among the declared ones.
    pub field: usize,
    /// Name of the field.
    pub name: String,
    /// The format of its text.
    pub reader: Arc<dyn TimeReader>,
}

/// Why a record has no event time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoEventTime {
    /// The field is missing, null or blank.
    Missing,
    /// The text is no time; its first characters.
    Unreadable(String),
}

impl EventTime {
    /// The time of a record, in milliseconds since 1970.
    ///
    /// # Errors
    /// If the field has no value, or its text is no time.
    pub fn of(&self, record: &Decoded<'_>) -> Result<i64, NoEventTime> {
        let text = record.values.get(self.field).and_then(Option::as_deref).unwrap_or_default();
        if text.trim().is_empty() {
            return Err(NoEventTime::Missing);
        }
        self.reader.millis(text).ok_or_else(|| NoEventTime::Unreadable(text.chars().take(SHOWN).collect()))
    }
}
