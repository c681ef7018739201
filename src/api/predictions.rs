//! Responses with predictions: JSON that is documented as an array of a type, and all formats.

use std::marker::PhantomData;

use poem::{Body, IntoResponse, Response};
use poem_openapi::ApiResponse;
use poem_openapi::payload::Payload;
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::Type;

use super::bulk;
use super::etag::{self, EntityTag};
use super::rows::Prediction;
use crate::bulk::Format;

/// JSON response that is documented as an array of `T`.
pub struct Answer<T> {
    json: Vec<u8>,
    /// Tag of the model, if one was used.
    stamp: Option<EntityTag>,
    item: PhantomData<fn() -> T>,
}

impl<T> Answer<T> {
    pub fn new(json: Vec<u8>, stamp: Option<EntityTag>) -> Self {
        Self { json, stamp, item: PhantomData }
    }
}

impl<T: Type> Payload for Answer<T> {
    const CONTENT_TYPE: &'static str = "application/json";

    fn schema_ref() -> MetaSchemaRef {
        Vec::<T>::schema_ref()
    }

    fn register(registry: &mut Registry) {
        Vec::<T>::register(registry);
    }
}

impl<T: Type> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        stamped(Self::CONTENT_TYPE, Body::from(self.json), self.stamp.as_ref())
    }
}

impl<T: Type> ApiResponse for Answer<T> {
    fn meta() -> MetaResponses {
        let content = vec![MetaMediaType { content_type: Self::CONTENT_TYPE, schema: Self::schema_ref() }];
        let response = MetaResponse {
            description: "The rows' clusters, in the order of the rows.",
            status: Some(200),
            status_range: None,
            content,
            headers: etag::headers(),
        };
        MetaResponses { responses: vec![response] }
    }

    fn register(registry: &mut Registry) {
        <Self as Payload>::register(registry);
    }
}

fn stamped(kind: &str, body: Body, stamp: Option<&EntityTag>) -> Response {
    let mut response = Response::builder().content_type(kind).body(body);
    if let Some(stamp) = stamp {
        stamp.put(&mut response);
    }
    response
}

/// Prediction response in the negotiated format.
pub struct Predicted {
    pub(super) format: Format,
    pub(super) body: Body,
    pub(super) stamp: Option<EntityTag>,
}

impl IntoResponse for Predicted {
    fn into_response(self) -> Response {
        let kind = match self.format {
            Format::Csv => "text/csv; charset=utf-8",
            Format::Tsv => "text/tab-separated-values; charset=utf-8",
            format => bulk::kind(format),
        };
        stamped(kind, self.body, self.stamp.as_ref())
    }
}

impl ApiResponse for Predicted {
    fn meta() -> MetaResponses {
        let response = MetaResponse {
            description: "The rows' clusters, in the order of the rows. As JSON an array of predictions, as NDJSON one a line. As \
                          CSV or Arrow the columns that came and three more: `cluster`, `description` and `distance`; rows that \
                          came as JSON have a column for each feature, and themselves as the text `row`. Large answers stream \
                          while the rows arrive; one that breaks off in the middle ended in an error.",
            status: Some(200),
            status_range: None,
            content: bulk::content(Vec::<Prediction>::schema_ref()),
            headers: etag::headers(),
        };
        MetaResponses { responses: vec![response] }
    }

    fn register(registry: &mut Registry) {
        Vec::<Prediction>::register(registry);
    }
}
