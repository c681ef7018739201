//! The number of a slice as a parameter of requests.

use std::borrow::Cow;

use poem_openapi::registry::{MetaSchema, MetaSchemaRef};
use poem_openapi::types::{ParseError, ParseFromParameter, ParseResult, Type};

use crate::slices::{SLICES, all_slices};

/// The number of a slice; that of the whole stream if it is not given.
#[derive(Debug, Clone, Copy)]
pub struct SliceNumber(u8);

impl SliceNumber {
    pub fn get(self) -> u8 {
        self.0
    }
}

impl Default for SliceNumber {
    fn default() -> Self {
        Self(SLICES)
    }
}

impl Type for SliceNumber {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "integer_uint8".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema {
            minimum: Some(f64::from(*all_slices().start())),
            maximum: Some(f64::from(SLICES)),
            ..MetaSchema::new_with_format("integer", "uint8")
        }))
    }

    fn as_raw_value(&self) -> Option<&Self::RawValueType> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self::RawElementValueType> + 'a> {
        Box::new(self.as_raw_value().into_iter())
    }
}

impl ParseFromParameter for SliceNumber {
    fn parse_from_parameter(text: &str) -> ParseResult<Self> {
        let number = text.parse().ok().filter(|number| all_slices().contains(number));
        number.map(Self).ok_or_else(|| ParseError::custom("there is no slice with this number"))
    }
}
