//! Middleware of all requests: request id, guard, memory, error conversion, metrics and access log.
//!
//! Input: requests. Output: responses with `X-Request-Id`; metrics and an access line once the connection has taken the whole
//! response. Until then the request counts towards its caller's limits and the memory budget.

use std::sync::Arc;

use http_body::Body as _;
use http_body_util::combinators::BoxBody;
use poem::error::MethodNotAllowedError;
use poem::http::header::{ALLOW, CONNECTION, HeaderValue, RETRY_AFTER};
use poem::http::{StatusCode, Version};
use poem::{Body, Endpoint, IntoResponse as _, PathPattern, Request, Response};
use tercile_http::{Exchange, Observed};

use super::access::{REQUEST_ID, Record};
use super::budget::{Exhausted, REQUEST};
use super::declared::Operations;
use super::etag::SharedBody;
use super::guard::{self, Guard};
use super::problem::{self, Problem};
use super::{State, base_path, compression, events};

/// All routes behind the guard.
pub struct Front<E> {
    pub inner: E,
    pub state: Arc<State>,
    pub guard: Arc<Guard>,
    pub operations: Arc<Operations>,
}

impl<E: Endpoint> Endpoint for Front<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        self.guard.base_path.enter(&mut request);
        let prefix = base_path::of(&request);
        let gzip = compression::accepts_gzip(&request);
        let mut record = Record::start(&self.state, &request);
        let (id, origin) = (record.id.clone(), self.guard.allowed_origin(&request));
        let old = request.version() < Version::HTTP_11;
        let monitoring = guard::is_monitoring(request.uri().path());
        let exchange = request.extensions().get::<Exchange>().cloned();
        let charged = self.charge(&request, &mut record);
        let admitted = charged.and_then(|()| self.guard.admit(&request, &self.operations));
        let mut response = match admitted {
            Ok(admitted) => {
                record.admitted = admitted;
                if request.uri().path() == events::PATH
                    && let Some(pass) = self.guard.pass(&request)
                {
                    request.extensions_mut().insert(pass);
                }
                compression::decompress(&mut request);
                let response = self.answer(request, &mut record).await;
                if exchange.is_some_and(|exchange| exchange.body_timed_out()) { too_late() } else { response }
            }
            Err(refusal) => refusal,
        };
        let length = response_length(&mut response);
        // HTTP/1.0 has no chunked encoding: the end of a truncated response is indistinguishable from a complete one.
        if old && length.is_none() {
            response = Problem::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, ONLY_WHOLE).into_response();
        }
        // Streams account for their memory themselves.
        if let (Some(length), Some(hold)) = (length, &mut record.hold)
            && length > (REQUEST / 2) as u64
            && response.extensions().get::<SharedBody>().is_none()
        {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if monitoring {
                hold.grow_always(length);
            } else if hold.grow(length).is_err() {
                response = Problem::from(Exhausted).into_response();
            }
        }
        compression::compress(gzip, length, &mut response);
        base_path::locate(&prefix, &mut response);
        record.status = Some(response.status());
        let unavailable = response.status() == StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        if unavailable && !headers.contains_key(RETRY_AFTER) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        headers.insert(REQUEST_ID, id);
        self.guard.tell_origin(origin.as_ref(), headers);
        let endless = response.content_type().is_some_and(|kind| kind.starts_with("text/event-stream"));
        record.begins(response_length(&mut response), endless);
        response.extensions_mut().insert(Observed::by(record));
        Ok(response)
    }
}

impl<E: Endpoint> Front<E> {
    /// Holds the request's memory.
    ///
    /// # Errors
    /// A refusal; if there is no memory even for that, the connection is shut down.
    fn charge(&self, request: &Request, record: &mut Record) -> Result<(), Response> {
        let budget = &self.state.budget;
        if guard::is_monitoring(request.uri().path()) {
            record.hold = Some(budget.hold_always(REQUEST));
            return Ok(());
        }
        match budget.hold(REQUEST) {
            Ok(hold) => {
                record.hold = Some(hold);
                Ok(())
            }
            Err(exhausted) => {
                record.hold = budget.hold_refusal();
                if record.hold.is_none()
                    && let Some(exchange) = request.extensions().get::<Exchange>()
                {
                    exchange.abort();
                }
                Err(Problem::from(exhausted).into_response())
            }
        }
    }

    async fn answer(&self, request: Request, record: &mut Record) -> Response {
        match self.inner.call(request).await {
            Ok(response) => {
                let response = response.into_response();
                record.route = self.route(response.data());
                response
            }
            Err(error) => {
                let pattern = error.data();
                record.route = self.route(pattern);
                let allow = error
                    .is::<MethodNotAllowedError>()
                    .then(|| self.operations.allow(pattern.map(|PathPattern(pattern)| pattern.as_ref())));
                let mut response = problem::from_framework(error).await;
                if let Some(allow) = allow {
                    response.headers_mut().insert(ALLOW, allow);
                }
                response
            }
        }
    }

    /// Metric label of the request's route: of bounded cardinality, whatever paths are requested.
    fn route(&self, pattern: Option<&PathPattern>) -> String {
        let pattern = pattern.map(|PathPattern(pattern)| pattern.as_ref()).filter(|pattern| !pattern.is_empty());
        let name = pattern.and_then(|pattern| self.operations.route(pattern).or(Some(pattern)));
        name.unwrap_or("other").to_owned()
    }
}

/// Detail of the refusal of a streamed response over HTTP/1.0.
const ONLY_WHOLE: &str =
    "this answer comes in pieces, and HTTP/1.0 can't tell whether the last one came; ask again with HTTP/1.1";

/// Length of the response body, if known.
fn response_length(response: &mut Response) -> Option<u64> {
    let body: BoxBody<_, _> = response.take_body().into();
    let length = body.size_hint().exact();
    response.set_body(Body::from(body));
    length
}

fn too_late() -> Response {
    let mut response = Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time").into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
