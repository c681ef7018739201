//! Errors as `application/problem+json` (RFC 9457), with the single mapping from errors to statuses.

use poem::error::{self, MethodNotAllowedError, NotFoundError};
use poem::http::StatusCode;
use poem::{IntoResponse, Response};
use poem_openapi::Object;
use poem_openapi::error::{ContentTypeError, ParseParamError, ParsePathError};
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses};
use poem_openapi::types::Type as _;

use crate::slices;

/// Detail of a 404 for an unknown path.
pub const NOTHING: &str = "there is nothing under this path; /docs lists what there is";

/// Media type of every error.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// What went wrong with a request.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct Problem {
    /// A URI for the kind of problem; `about:blank` where the status says it all.
    #[oai(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with this request, and what would be right.
    pub detail: String,
    /// The row it is about, from 0.
    #[oai(skip_serializing_if_is_none)]
    pub index: Option<u64>,
    /// The field or parameter it is about.
    #[oai(skip_serializing_if_is_none)]
    pub field: Option<String>,
    /// The line of the SQL it is about, from 1.
    #[oai(skip_serializing_if_is_none)]
    pub line: Option<u64>,
    /// The column in that line, from 1, in characters.
    #[oai(skip_serializing_if_is_none)]
    pub column: Option<u64>,
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank".to_owned(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            index: None,
            field: None,
            line: None,
            column: None,
        }
    }

    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    pub fn not_acceptable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, detail)
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    pub fn unsupported(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
    }

    pub fn unprocessable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// For a request that bypassed the routes, which cannot happen.
    pub fn no_state() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server could not answer; its log says why")
    }

    #[must_use]
    pub fn at(mut self, index: u64) -> Self {
        self.index = Some(index);
        self
    }

    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// This problem, if its status is among those that `operation` declares; otherwise a 500, and the log has the problem.
    #[must_use]
    pub fn declared(self, declared: &[(u16, &'static str)], operation: &str) -> Self {
        if declared.iter().any(|(status, _)| *status == self.status) {
            return self;
        }
        tracing::error!("{operation} does not declare the status {}: {}", self.status, self.detail);
        Self::no_state()
    }

    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        use poem_openapi::types::ToJSON as _;
        let status = self.status();
        let body = self.to_json_string();
        Response::builder().status(status).content_type(CONTENT_TYPE).body(body)
    }
}

impl From<Problem> for poem::Error {
    fn from(problem: Problem) -> Self {
        Self::from_response(problem.into_response())
    }
}

/// Converts an error of the framework into a problem.
pub async fn from_framework(error: poem::Error) -> Response {
    if error.is_from_response() {
        return error.into_response();
    }
    if let Some(param) = error.downcast_ref::<ParseParamError>() {
        let numbers = format!("one of {}", slices::numbers(", "));
        let choices = match param.name {
            "model" => numbers.as_str(),
            "lang" => "a language tag such as en or pt-BR",
            "fit" => "request, or not given",
            "as_of" => "a version, such as 1",
            "of" => "one of stream, api, thirds",
            "explain" => "true or false",
            "limit" => "a number within the limits that /docs names",
            _ => "another value",
        };
        let detail = format!("the query parameter {} must be {choices}", param.name);
        return Problem::unprocessable(detail).field(param.name).into_response();
    }
    let status = error.status();
    let problem = if error.is::<NotFoundError>() {
        Problem::not_found(NOTHING)
    } else if error.is::<MethodNotAllowedError>() {
        Problem::new(status, "this path does not answer to this method; /docs lists what there is")
    } else if error.is::<ParsePathError>() || error.is::<error::ParsePathError>() {
        let numbers = slices::numbers(" and ");
        Problem::not_found(format!("there is nothing under this path: slices are {numbers}, and jobs have numbers"))
    } else if error.is::<ContentTypeError>() {
        Problem::new(status, "send the body as JSON, with the header Content-Type: application/json")
    } else if status.is_server_error() {
        tracing::error!("a request failed: {error}");
        Problem::new(status, "the server could not answer; its log says why")
    } else {
        Problem::new(status, error.to_string())
    };
    problem.into_response()
}

/// Declares the problems of an operation, so that the OpenAPI document lists exactly those. A problem of another status becomes a 500.
macro_rules! problems {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $status:literal,)+ }) => {
        $(#[$meta])*
        pub struct $name($crate::api::problem::Problem);

        impl $name {
            const DECLARED: &[(u16, &'static str)] = &[$(($status, concat!($($doc),+))),+];
        }

        impl From<$crate::api::problem::Problem> for $name {
            fn from(problem: $crate::api::problem::Problem) -> Self {
                Self(problem.declared(Self::DECLARED, stringify!($name)))
            }
        }

        impl From<$name> for poem::Error {
            fn from(failure: $name) -> Self {
                failure.0.into()
            }
        }

        impl poem_openapi::ApiResponse for $name {
            fn meta() -> poem_openapi::registry::MetaResponses {
                $crate::api::problem::declare(Self::DECLARED)
            }

            fn register(registry: &mut poem_openapi::registry::Registry) {
                <$crate::api::problem::Problem as poem_openapi::types::Type>::register(registry);
            }
        }
    };
}
pub(crate) use problems;

/// The responses that an operation declares, by status and meaning.
pub fn declare(declared: &[(u16, &'static str)]) -> MetaResponses {
    let response = |&(status, meaning): &(u16, &'static str)| MetaResponse {
        description: meaning.trim_start(),
        status: Some(status),
        status_range: None,
        content: vec![MetaMediaType { content_type: CONTENT_TYPE, schema: Problem::schema_ref() }],
        headers: Vec::new(),
    };
    MetaResponses { responses: declared.iter().map(response).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    problems! {
        /// Why there is nothing.
        Nothing {
            /// There is nothing
            /// of this name.
            404,
        }
    }

    #[test]
    fn an_undeclared_status_becomes_a_500() {
        let status = |problem: Problem| poem::Error::from(Nothing::from(problem)).into_response().status().as_u16();
        assert_eq!([status(Problem::not_found("x")), status(Problem::conflict("x"))], [404, 500]);
        let meta = <Nothing as poem_openapi::ApiResponse>::meta();
        assert_eq!(
            (meta.responses[0].status, meta.responses[0].description),
            (Some(404), "There is nothing of this name.")
        );
    }
}
