//! The header line of `00_records.sql` that names the field with the time of a record.
//!
//! Input: `-- timestamp: field`, or `-- timestamp: field form`, where the form is the second argument of `to_datetime`. Output: the
//! index of the field and its reader, which the ingest uses.

use std::sync::Arc;

use tercile_store::event_time::{EventTime, TimeReader};
use tercile_store::record::Fields;

use crate::value::time::Form;

/// The header line `-- timestamp: field`, or `-- timestamp: field form`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timestamp {
    /// Index of the field.
    field: usize,
    form: Form,
}

impl Timestamp {
    /// Parses the value of the header line.
    ///
    /// # Errors
    /// If the field is not declared, or the form is unknown.
    pub(super) fn of(value: &str, fields: &Fields) -> Result<Self, String> {
        let position = |name: &str| fields.names().iter().position(|known| known == name);
        if let Some(field) = position(value) {
            return Ok(Self { field, form: Form::Date(None) });
        }
        let (name, form) = match value.rsplit_once(' ').map(|(name, form)| (name.trim(), Form::of_name(form))) {
            Some((name, Some(form))) => (name, form),
            // A field and another word.
            Some((name, None)) if position(name).is_some() => {
                return Err(format!(
                    "expected dmy, mdy, s, ms, us or ns after the field {name}, found {}",
                    &value[name.len()..].trim()
                ));
            }
            _ => (value, Form::Date(None)),
        };
        let field = position(name).ok_or_else(|| {
            format!(
                "timestamp names the field {name}, which is not declared; declared are {}",
                fields.names().join(", ")
            )
        })?;
        Ok(Self { field, form })
    }

    /// The field and its reader.
    pub(super) fn event_time(self, fields: &Fields) -> Option<EventTime> {
        let name = fields.names().get(self.field)?.clone();
        Some(EventTime { field: self.field, name, reader: Arc::new(self.form) })
    }
}

impl TimeReader for Form {
    fn millis(&self, text: &str) -> Option<i64> {
        self.time(text).map(|micros| micros.div_euclid(1_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_a_field_and_its_form() {
        let fields = Fields::new(["a", "Order Date", "sent ms"].map(str::to_owned).to_vec());
        let time = |value: &str, text: &str| {
            let event_time = Timestamp::of(value, &fields).unwrap().event_time(&fields).unwrap();
            (event_time.name.clone(), event_time.reader.millis(text))
        };
        let noon = Some(1_714_564_800_000);
        assert_eq!(time("a", "2024-05-01 12:00"), ("a".to_owned(), noon));
        assert_eq!(time("Order Date dmy", "1/5/2024 12:00"), ("Order Date".to_owned(), noon));
        assert_eq!(time("sent ms ms", "1714564800000"), ("sent ms".to_owned(), noon));
        assert_eq!(time("sent ms", "1714564800000"), ("sent ms".to_owned(), None));
        let fault = |value: &str| Timestamp::of(value, &fields).unwrap_err();
        let declared = "which is not declared; declared are a, Order Date, sent ms";
        assert_eq!(fault("b ms"), format!("timestamp names the field b, {declared}"));
        assert_eq!(fault("b"), format!("timestamp names the field b, {declared}"));
        assert_eq!(fault("a hours"), "expected dmy, mdy, s, ms, us or ns after the field a, found hours");
    }
}
