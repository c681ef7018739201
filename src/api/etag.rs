//! Headers `ETag` and `Model-Version`, and 304 for unchanged responses.

use std::marker::PhantomData;

use bytes::Bytes;
use poem::http::header::{ETAG, HeaderName};
use poem::http::{HeaderValue, StatusCode};
use poem::{IntoResponse, Request, Response};
use poem_openapi::ApiResponse;
use poem_openapi::payload::{Json, Payload as _};
use poem_openapi::registry::{MetaHeader, MetaMediaType, MetaResponse, MetaResponses, Registry};
use poem_openapi::types::{ToJSON, Type};
use sha2::{Digest as _, Sha256};

use crate::model::Model;
use crate::printable::hex;

const MODEL_VERSION: HeaderName = HeaderName::from_static("model-version");

/// Marks, in the response extensions, a body whose bytes are shared by all requests: it costs no memory of its own.
#[derive(Debug, Clone, Copy)]
pub struct SharedBody;

/// Validator of a response.
#[derive(Debug, Clone)]
pub struct EntityTag {
    etag: HeaderValue,
    version: Option<HeaderValue>,
}

impl EntityTag {
    /// Tag of a model version, which is immutable.
    pub fn of(model: &Model) -> Self {
        let Model { segmentation, slice, version, .. } = model;
        let etag = format!("\"{segmentation}@{slice}@{version}\"");
        // Segmentation names come from SQL file names and may contain characters that a header cannot.
        let etag = HeaderValue::from_str(&etag).unwrap_or_else(|_| of_bytes(etag.as_bytes()));
        Self { etag, version: Some((*version).into()) }
    }

    /// Tag of a response about several models or none: a hash of the response.
    pub fn of_text(text: &[u8]) -> Self {
        Self { etag: of_bytes(text), version: None }
    }

    /// Whether `If-None-Match` contains this tag.
    pub fn known(&self, request: &Request) -> bool {
        let sent = request.headers().get_all("if-none-match").iter().filter_map(|value| value.to_str().ok());
        let mut tags = sent.flat_map(|value| value.split(',')).map(str::trim);
        tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.etag)
    }

    pub fn put(&self, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(ETAG, self.etag.clone());
        if let Some(version) = &self.version {
            headers.insert(MODEL_VERSION, version.clone());
        }
    }
}

fn of_bytes(bytes: &[u8]) -> HeaderValue {
    let etag = format!("\"{}\"", &hex(&Sha256::digest(bytes))[..16]);
    HeaderValue::try_from(etag).unwrap_or(HeaderValue::from_static("\"\""))
}

/// The headers as described in the OpenAPI document.
pub fn headers() -> Vec<MetaHeader> {
    let header = |name: &str, description: &str, schema| MetaHeader {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        required: false,
        deprecated: false,
        schema,
    };
    let etag = header(
        "ETag",
        "Changes when the models that answer do; of a GET just when the answer does, so a strong validator there.",
        String::schema_ref(),
    );
    let version = header("Model-Version", "The version of the model that answered.", u64::schema_ref());
    vec![etag, version]
}

/// JSON response with its tag, or 304 if the client has it already.
pub struct Tagged<T> {
    text: Option<Bytes>,
    stamp: EntityTag,
    /// Whether the bytes are in a cache.
    shared: bool,
    of: PhantomData<fn() -> T>,
}

impl<T> Tagged<T> {
    /// 304 if the client already has the response about this model, else `None`.
    pub fn unchanged(request: &Request, model: &Model) -> Option<Self> {
        let stamp = EntityTag::of(model);
        stamp.known(request).then_some(Self { text: None, stamp, shared: false, of: PhantomData })
    }

    /// A cached response about a model.
    pub fn ready(text: Bytes, model: &Model) -> Self {
        Self { text: Some(text), stamp: EntityTag::of(model), shared: true, of: PhantomData }
    }
}

impl<T: ToJSON> Tagged<T> {
    pub fn of(request: &Request, answer: &T, model: &Model) -> Self {
        Self::new(request, answer, |_| EntityTag::of(model))
    }

    fn new(request: &Request, answer: &T, stamp: impl FnOnce(&[u8]) -> EntityTag) -> Self {
        let text = answer.to_json_string().into_bytes();
        let stamp = stamp(&text);
        let text = if stamp.known(request) { None } else { Some(text.into()) };
        Self { text, stamp, shared: false, of: PhantomData }
    }
}

impl<T: Type> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let mut response = match self.text {
            Some(text) => Response::builder().content_type(Json::<T>::CONTENT_TYPE).body(text),
            None => StatusCode::NOT_MODIFIED.into_response(),
        };
        self.stamp.put(&mut response);
        if self.shared {
            response.extensions_mut().insert(SharedBody);
        }
        response
    }
}

/// JSON response about several models or none, whose tag follows from its content: it has no `Model-Version`.
pub struct TaggedByContent<T>(Tagged<T>);

impl<T: ToJSON> TaggedByContent<T> {
    pub fn of(request: &Request, answer: &T) -> Self {
        Self(Tagged::new(request, answer, EntityTag::of_text))
    }
}

impl<T: Type> IntoResponse for TaggedByContent<T> {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

impl<T: Type> ApiResponse for TaggedByContent<T> {
    fn meta() -> MetaResponses {
        let mut meta = Tagged::<T>::meta();
        for response in &mut meta.responses {
            response.headers.retain(|header| header.name == "ETag");
        }
        meta
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Type> ApiResponse for Tagged<T> {
    fn meta() -> MetaResponses {
        let content = vec![MetaMediaType { content_type: Json::<T>::CONTENT_TYPE, schema: T::schema_ref() }];
        let response = |status, description, content| MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content,
            headers: headers(),
        };
        let unchanged = "What the client has is what there is: `If-None-Match` names its `ETag`.";
        MetaResponses { responses: vec![response(200, "Found.", content), response(304, unchanged, vec![])] }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}
