//! The language of descriptions as a parameter of requests.

use std::borrow::Cow;

use poem_openapi::registry::{MetaSchema, MetaSchemaRef, Registry};
use poem_openapi::types::{ParseError, ParseFromParameter, ParseResult, Type};
use serde_json::Value;

use super::problem::Problem;
use crate::model_cache::Models;
use crate::sql::language::{BUILT_IN, FALLBACK, canonical};

/// The name of its schema.
const NAME: &str = "Language";

/// A language tag.
#[derive(Debug, Clone)]
pub struct Language(String);

impl Default for Language {
    fn default() -> Self {
        Self(FALLBACK.to_owned())
    }
}

impl Language {
    /// The language tag.
    pub fn code(&self) -> &str {
        &self.0
    }
}

/// Rejects a language that no SQL file has words for.
pub fn check(tag: &str, models: &Models) -> Result<(), Problem> {
    let offered = models.languages();
    if canonical(tag).is_some_and(|tag| offered.contains(tag.as_str())) {
        return Ok(());
    }
    let offered = offered.into_iter().collect::<Vec<_>>().join(", ");
    Err(Problem::unprocessable(format!("there are no descriptions in the language {tag}; there are {offered}")))
}

/// Lists the languages of the SQL files in the OpenAPI document.
pub fn list(document: &mut Value, models: &Models) {
    document["components"]["schemas"][NAME]["enum"] = models.languages().into_iter().collect();
}

impl Type for Language {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        NAME.into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Reference(NAME.to_owned())
    }

    fn register(registry: &mut Registry) {
        registry.create_schema::<Self, _>(NAME.to_owned(), |_| MetaSchema {
            description: Some("The language of descriptions."),
            enum_items: BUILT_IN.map(Value::from).to_vec(),
            ..MetaSchema::new("string")
        });
    }

    fn as_raw_value(&self) -> Option<&Self::RawValueType> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self::RawElementValueType> + 'a> {
        Box::new(self.as_raw_value().into_iter())
    }
}

impl ParseFromParameter for Language {
    fn parse_from_parameter(tag: &str) -> ParseResult<Self> {
        canonical(tag).map(Self).ok_or_else(|| ParseError::custom("it is no language tag such as en or pt-BR"))
    }
}
