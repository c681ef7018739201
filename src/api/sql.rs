//! `POST /api/sql`: one read-only statement over the views.
//!
//! Input: a statement and its parameters as JSON, and the Accept header. Output: the rows as JSON, CSV or Arrow. The statement
//! runs in a sandboxed process (sandbox.rs). The endpoint is off unless enabled.

use std::collections::BTreeMap;
use std::sync::Arc;

use poem::web::Data;
use poem::{IntoResponse, Request, RequestBody, Response};
use poem_openapi::payload::{Binary, Json, ParsePayload, Payload, PlainText};
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::{Example, Type};
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::Deserialize;
use serde_json::Value;

use super::buffered_body::{BufferedBody, claimed};
use super::declared::NeedsAdmin;
use super::negotiation;
use super::problem::Problem;
use super::rows::AnyRow;
use super::sandbox::Form;
use super::{State, Tags};

/// Maximum bytes of a body.
const MAX_BODY: usize = 256 * 1024;
/// Seconds in `Retry-After` of a 503.
const RETRY_AFTER: u64 = 1;

/// A statement.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(example, deny_unknown_fields)]
pub struct Statement {
    /// One SELECT over the views, such as `products`.
    sql: String,
    /// A value for each `$name` in it: a number, a text, true, false or null. They are bound as values, never pasted in.
    #[serde(default)]
    #[oai(default)]
    params: BTreeMap<String, Value>,
}

impl Example for Statement {
    fn example() -> Self {
        let sql = "SELECT rating, count(*) AS n FROM products WHERE rating >= $least GROUP BY rating ORDER BY rating";
        Self { sql: sql.to_owned(), params: BTreeMap::from([("least".to_owned(), Value::from(4.5))]) }
    }
}

/// Request body, documented as a [`Statement`]. It is parsed only if SQL is enabled.
pub struct Posted(BufferedBody);

impl Payload for Posted {
    const CONTENT_TYPE: &'static str = "application/json";

    fn check_content_type(content_type: &str) -> bool {
        Json::<Statement>::check_content_type(content_type)
    }

    fn schema_ref() -> MetaSchemaRef {
        Statement::schema_ref()
    }

    fn register(registry: &mut Registry) {
        Statement::register(registry);
    }
}

impl ParsePayload for Posted {
    const IS_REQUIRED: bool = true;

    async fn from_request(request: &Request, body: &mut RequestBody) -> poem::Result<Self> {
        let state: &Arc<State> = request.data().ok_or_else(Problem::no_state)?;
        Ok(Self(BufferedBody::whole(&state.budget, claimed(request), body.take()?, MAX_BODY).await?))
    }
}

poem_openapi::impl_apirequest_for_payload!(Posted,);

impl Posted {
    fn read(&self) -> Result<Statement, Problem> {
        serde_json::from_slice(&self.0.bytes).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => {
                Problem::unprocessable(format!("expected {{\"sql\": \"SELECT …\", \"params\": {{…}}}}: {error}"))
            }
            _ => Problem::bad_request(format!("the body is no JSON: {error}")),
        })
    }
}

/// Rows of a result.
pub struct Rows {
    form: Form,
    body: Vec<u8>,
}

/// Media types of results. The first is the default.
const FORMS: [(Form, &str); 3] =
    [(Form::Json, "application/json"), (Form::Csv, "text/csv"), (Form::Arrow, "application/vnd.apache.arrow.stream")];

impl IntoResponse for Rows {
    fn into_response(self) -> Response {
        let kind = match self.form {
            Form::Csv => "text/csv; charset=utf-8",
            form => FORMS.iter().find(|(known, _)| *known == form).map_or("application/octet-stream", |(_, kind)| kind),
        };
        Response::builder().content_type(kind).body(self.body)
    }
}

impl ApiResponse for Rows {
    fn meta() -> MetaResponses {
        let schema = |form| match form {
            Form::Json => Vec::<AnyRow>::schema_ref(),
            Form::Csv => PlainText::<String>::schema_ref(),
            Form::Arrow => Binary::<Vec<u8>>::schema_ref(),
        };
        let content = FORMS.map(|(form, content_type)| MetaMediaType { content_type, schema: schema(form) });
        let response = MetaResponse {
            description: "The rows: an array of objects, a CSV with a header, or Arrow's streaming format, as the Accept \
                          header asks.",
            status: Some(200),
            status_range: None,
            content: content.into(),
            headers: vec![],
        };
        MetaResponses { responses: vec![response] }
    }

    fn register(registry: &mut Registry) {
        Vec::<AnyRow>::register(registry);
    }
}

/// Why there are no rows.
#[derive(ApiResponse)]
pub enum SqlFailure {
    /// The body is no JSON.
    #[oai(status = 400, content_type = "application/problem+json")]
    NotJson(Json<Problem>),
    /// SQL is off; `--enable-sql` turns it on.
    #[oai(status = 403, content_type = "application/problem+json")]
    Off(Json<Problem>),
    /// Rows come in other media types than those that the Accept header names.
    #[oai(status = 406, content_type = "application/problem+json")]
    NotAcceptable(Json<Problem>),
    /// Too many bytes.
    #[oai(status = 413, content_type = "application/problem+json")]
    TooLarge(Json<Problem>),
    /// The body is not sent as JSON.
    #[oai(status = 415, content_type = "application/problem+json")]
    MediaType(Json<Problem>),
    /// The statement is wrong, at `line` and `column` where that is known; or it asks for more time, memory or bytes
    /// than it may have.
    #[oai(status = 422, content_type = "application/problem+json")]
    Unprocessable(Json<Problem>),
    /// Too many statements run already, or the store can't be read.
    #[oai(status = 503, content_type = "application/problem+json")]
    Unavailable(
        Json<Problem>,
        /// Seconds after which to try again.
        #[oai(header = "Retry-After")]
        u64,
    ),
}

impl From<Problem> for SqlFailure {
    fn from(problem: Problem) -> Self {
        match problem.status {
            400 => Self::NotJson(Json(problem)),
            403 => Self::Off(Json(problem)),
            406 => Self::NotAcceptable(Json(problem)),
            413 => Self::TooLarge(Json(problem)),
            415 => Self::MediaType(Json(problem)),
            422 => Self::Unprocessable(Json(problem)),
            503 => Self::Unavailable(Json(problem), RETRY_AFTER),
            other => unreachable!("SqlFailure does not declare the status {other}"),
        }
    }
}

pub struct SqlApi;

#[OpenApi]
impl SqlApi {
    /// Run one read-only statement
    ///
    /// Off unless the server was started with `--enable-sql`. The views of the SQL files are in reach, and nothing else.
    /// The Accept header picks the rows' format: `application/json` (also for `*/*`), `text/csv` or
    /// `application/vnd.apache.arrow.stream`. A body may have 256 KiB. By default a statement may take 10 s (`--sql-timeout`),
    /// 256 MB (`--sql-memory`) and give 10 MB (`--sql-bytes`), and two run at a time (`--sql-concurrency`).
    #[oai(path = "/api/sql", method = "post", tag = "Tags::Sql", operation_id = "runSql")]
    async fn sql(
        &self,
        state: Data<&Arc<State>>,
        request: &Request,
        statement: Posted,
        _scope: NeedsAdmin,
    ) -> Result<Rows, SqlFailure> {
        let Some(confined) = &state.sql else {
            return Err(Problem::forbidden("SQL over HTTP is off; start the server with --enable-sql").into());
        };
        let form = negotiation::pick(request, &FORMS).ok_or_else(|| {
            let known = FORMS.map(|(_, kind)| kind).join(", ");
            Problem::not_acceptable(format!("rows come as {known}; the Accept header names none of them"))
        })?;
        let Statement { sql, params } = statement.read()?;
        if let Some((name, _)) = params.iter().find(|(_, value)| value.is_array() || value.is_object()) {
            let detail = format!("the parameter {name} must be a number, a text, true, false or null");
            return Err(Problem::unprocessable(detail).field(name).into());
        }
        // The server drops this future when the client is gone, and dropping `run` ends the statement.
        let body = confined.run(sql, params, form, &state.budget).await.map_err(Problem::from)?;
        Ok(Rows { form, body })
    }
}
