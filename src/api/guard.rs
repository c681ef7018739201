//! Admission of requests: hosts, origins, keys, scopes, limits.
//!
//! Input: request line and headers, before the body is read. Output: the authenticated caller, or a problem. A refusal does not
//! reveal which resources exist.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use poem::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use poem::http::{Method, StatusCode, Version};
use poem::web::RemoteAddr;
use poem::{Addr, IntoResponse as _, Request, Response};

use super::base_path::BasePath;
use super::compression;
use super::declared::Operations;
use super::keys::{Key, Keys, Scope};
use super::problem::{self, Problem};
use super::rate_limit::{Caller, Limiter, Ticket};

/// Header for the key, as an alternative to `Authorization: Bearer`.
const KEY_HEADER: &str = "x-api-key";
/// Headers that pages of an allowed origin may send, and those that they may read.
const CORS_ALLOWED: &str = "authorization, content-type, accept, if-none-match, x-api-key, x-request-id";
const CORS_EXPOSED: &str = "etag, location, model-version, retry-after, x-request-id";

/// Prefix of the paths of probes.
pub const PROBES: &str = "/health/";

/// Whether the path is a probe of an orchestrator or load balancer, which no limit applies to.
pub fn is_probe(path: &str) -> bool {
    path.starts_with(PROBES)
}

/// Whether the path is requested by monitoring: probes, and metrics. The memory budget never refuses these.
pub fn is_monitoring(path: &str) -> bool {
    is_probe(path) || path == "/metrics"
}

/// Admission settings of a server.
pub struct Guard {
    /// The keys, if keys are required.
    pub keys: Option<Arc<Keys>>,
    /// Allowed Host header names in addition to loopback; `None`: any.
    pub hosts: Option<Vec<String>>,
    /// Origins whose pages may send requests (CORS).
    pub origins: Vec<String>,
    pub limiter: Limiter,
    pub max_header_bytes: usize,
    pub base_path: BasePath,
    /// Timeouts and limits of connections, TLS, shutdown.
    pub server: tercile_http::Settings,
}

/// Key of a streamed response, which ends when the key is revoked or expires.
#[derive(Clone)]
pub struct Pass {
    keys: Arc<Keys>,
    key: String,
}

impl Pass {
    /// Whether the key is still valid.
    pub fn holds(&self) -> bool {
        self.keys.find(&self.key).is_some()
    }
}

/// An authenticated caller.
#[derive(Default)]
pub struct Admitted {
    /// Name of the key.
    pub key: Option<String>,
    /// Held while the request runs.
    pub ticket: Option<Ticket>,
}

impl Guard {
    /// The scope of the valid key that a request came with; `None` if there is none, or if keys are not required.
    pub fn scope(&self, request: &Request) -> Option<Scope> {
        Some(self.keys.as_ref()?.find(presented(request.headers())?)?.scope)
    }

    /// The pass of a request that was admitted with a key.
    pub fn pass(&self, request: &Request) -> Option<Pass> {
        let (keys, key) = (self.keys.as_ref()?, presented(request.headers())?);
        Some(Pass { keys: Arc::clone(keys), key: key.to_owned() })
    }

    /// Admits a request.
    ///
    /// # Errors
    /// The response to a refused or preflight request.
    pub fn admit(&self, request: &Request, operations: &Operations) -> Result<Admitted, Response> {
        let refuse = Problem::into_response;
        self.check_head(request).map_err(refuse)?;
        self.check_host(request).map_err(refuse)?;
        if let Some(answer) = self.preflight(request) {
            return Err(answer);
        }
        self.check_origin(request).map_err(refuse)?;
        let path = request.uri().path();
        if is_probe(path) {
            return Ok(Admitted::default());
        }
        let key = self.keys.as_ref().and_then(|keys| keys.find(presented(request.headers())?));
        let caller = match &key {
            Some(key) => Caller::Key(key.name.clone()),
            None => Caller::at(address(request.remote_addr())),
        };
        let ticket = self.limiter.enter(caller, Instant::now()).map_err(|wait| {
            let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many requests; slow down, or ask later");
            with_header(refuse(problem), header::RETRY_AFTER, seconds.into())
        })?;
        if self.keys.is_some()
            && let Some(scope) = operations.scope(request.method(), path)
        {
            allowed(key.as_ref(), scope).map_err(|refused| match &key {
                // An unknown path is a 404 rather than a matter of scopes; the request is not routed.
                Some(_) if !operations.exists(path) => refuse(Problem::not_found(problem::NOTHING)),
                _ => refused,
            })?;
        }
        Ok(Admitted { key: key.map(|key| key.name), ticket })
    }

    /// Checks the size of the head and the body's encoding.
    fn check_head(&self, request: &Request) -> Result<(), Problem> {
        let target = request.uri().path().len() + request.uri().query().map_or(0, str::len);
        let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
        if target + headers.sum::<usize>() > self.max_header_bytes {
            let detail = format!("path, query and headers may have {} bytes at most", self.max_header_bytes);
            return Err(Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, detail));
        }
        let mut encoded = request.headers().get_all(header::CONTENT_ENCODING).iter();
        let first = encoded.next();
        if first.is_some_and(|encoding| !compression::is_accepted(encoding.as_bytes())) || encoded.next().is_some() {
            let detail = "send the body as it is, or with a Content-Encoding of gzip";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        Ok(())
    }

    /// Checks the Host header, against DNS rebinding: a page whose name resolves to this machine still sends its own name.
    fn check_host(&self, request: &Request) -> Result<(), Problem> {
        let Some(hosts) = &self.hosts else { return Ok(()) };
        let ours = |host: &str| {
            let host = without_port(host);
            loopback(host) || hosts.iter().any(|h| h.eq_ignore_ascii_case(host))
        };
        let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        let headers = request.headers().get_all(header::HOST).iter().map(HeaderValue::as_bytes);
        let mut named = target.into_iter().chain(headers).peekable();
        // HTTP/1.0 has no Host header, and browsers do not use it.
        let nameless = named.peek().is_none() && request.version() > Version::HTTP_10;
        if nameless || named.any(|host| !std::str::from_utf8(host).is_ok_and(|host| ours(&host.to_ascii_lowercase()))) {
            return Err(Problem::forbidden(
                "this is none of the hosts that this server answers for; --allowed-host NAME adds one",
            ));
        }
        Ok(())
    }

    /// The Origin header, if that origin is allowed.
    fn origin<'r>(&self, request: &'r Request) -> Option<&'r HeaderValue> {
        let origin = request.headers().get(header::ORIGIN)?;
        self.origins.iter().any(|known| known == "*" || known.as_bytes() == origin.as_bytes()).then_some(origin)
    }

    /// Response to a CORS preflight request.
    fn preflight(&self, request: &Request) -> Option<Response> {
        let wish = request.headers().get(header::ACCESS_CONTROL_REQUEST_METHOD);
        if request.method() != Method::OPTIONS || wish.is_none() {
            return None;
        }
        self.origin(request)?;
        let answer = Response::builder()
            .status(StatusCode::NO_CONTENT)
            .header(header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, DELETE")
            .header(header::ACCESS_CONTROL_ALLOW_HEADERS, CORS_ALLOWED)
            .header(header::ACCESS_CONTROL_MAX_AGE, "600");
        Some(answer.finish())
    }

    /// Checks the origin of modifying requests: without keys, any page could make its visitor's browser post here (CSRF).
    fn check_origin(&self, request: &Request) -> Result<(), Problem> {
        let Some(origin) = request.headers().get(header::ORIGIN).filter(|_| request.method() != Method::GET) else {
            return Ok(());
        };
        let authority = request.uri().authority().map(|authority| authority.as_str());
        let host = authority.or_else(|| request.header(header::HOST));
        let own = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, name)| name);
        if self.keys.is_some() || own.is_some() && own == host || self.origin(request).is_some() {
            return Ok(());
        }
        Err(Problem::forbidden("pages of other origins may not ask; --cors-origin lets them"))
    }

    /// Adds the CORS headers to a response.
    pub fn tell_origin(&self, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
        if self.origins.is_empty() {
            return;
        }
        answer.append(header::VARY, HeaderValue::from_static("origin"));
        if let Some(origin) = origin {
            answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(CORS_EXPOSED));
        }
    }

    /// Allowed origin of a request, kept until it is answered.
    pub fn allowed_origin(&self, request: &Request) -> Option<HeaderValue> {
        if self.origins.is_empty() { None } else { self.origin(request).cloned() }
    }
}

/// Checks the scope. A missing, wrong, revoked and expired key get the same response.
fn allowed(key: Option<&Key>, scope: Scope) -> Result<(), Response> {
    let Some(key) = key else {
        let problem = Problem::new(StatusCode::UNAUTHORIZED, "this needs a valid key, as Authorization: Bearer KEY");
        let challenge = HeaderValue::from_static("Bearer realm=\"tercile\"");
        return Err(with_header(problem.into_response(), header::WWW_AUTHENTICATE, challenge));
    };
    if !key.scope.includes(scope) {
        let detail = format!("the scope of this key does not allow that: it takes a key of the scope {}", scope.word());
        return Err(Problem::forbidden(detail).into_response());
    }
    Ok(())
}

/// The key in the request headers.
fn presented(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get(KEY_HEADER)?.to_str().ok())
}

/// Whether a host name denotes this machine. An IP address cannot be the name of a rebinding page.
fn loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn with_header(mut answer: Response, name: HeaderName, value: HeaderValue) -> Response {
    answer.headers_mut().insert(name, value);
    answer
}

fn address(remote: &RemoteAddr) -> IpAddr {
    match &remote.0 {
        Addr::SocketAddr(address) => address.ip(),
        _ => IpAddr::from([0, 0, 0, 0]),
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_taken_off() {
        for (host, name) in
            [("a:1", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("::1", "::1"), ("a:b", "a:b")]
        {
            assert_eq!(without_port(host), name);
        }
    }
}
