//! The path prefix under which a reverse proxy shows the API, and slashes at the end of paths.
//!
//! Input: `--base-path`, or `X-Forwarded-Prefix` of a proxy that is trusted. Output: requests with the paths of the router, whether or not
//! the proxy has removed the prefix; and the prefix for what names paths of its own: the dashboard, the document, `Location`.

use poem::http::uri::{PathAndQuery, Uri};
use poem::http::{HeaderValue, header};
use poem::{Request, Response};

/// Header of a reverse proxy.
const FORWARDED: &str = "x-forwarded-prefix";
/// Maximum length of a prefix.
const LONGEST: usize = 200;

/// Where the API is shown.
#[derive(Debug, Clone, Default)]
pub struct BasePath {
    /// `--base-path`, or empty.
    pub path: String,
    /// Whether `X-Forwarded-Prefix` is obeyed.
    pub trust_forwarded: bool,
}

/// The prefix of a request, in its extensions: empty, or `/a/b`.
#[derive(Debug, Clone)]
pub struct Prefix(pub String);

/// Parses a prefix: `/shop`, `/shop/`, or `/` for none.
pub fn parse(text: &str) -> Result<String, String> {
    let path = text.trim_end_matches('/');
    if path.is_empty() {
        return Ok(String::new());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.' | '~');
    let parts = path.split('/').skip(1).all(|part| !part.is_empty() && part != "." && part != "..");
    if path.starts_with('/') && path.len() <= LONGEST && path.chars().all(plain) && parts {
        Ok(path.to_owned())
    } else {
        Err("expected a path such as /shop, of letters, digits, - _ . ~ and /".to_owned())
    }
}

impl BasePath {
    /// Gives a request the path of the router, and notes the prefix.
    pub fn enter(&self, request: &mut Request) {
        let forwarded = request.headers().get(FORWARDED).filter(|_| self.trust_forwarded);
        let forwarded = forwarded.and_then(|prefix| parse(prefix.to_str().ok()?.trim()).ok());
        let prefix = forwarded.unwrap_or_else(|| self.path.clone());
        if let Some(path) = routed(request.uri().path(), &prefix) {
            let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
            let mut parts = request.uri().clone().into_parts();
            if let Ok(target) = PathAndQuery::try_from(format!("{path}{query}")) {
                parts.path_and_query = Some(target);
                if let Ok(uri) = Uri::from_parts(parts) {
                    *request.uri_mut() = uri;
                }
            }
        }
        request.extensions_mut().insert(Prefix(prefix));
    }
}

/// The path without the prefix and without a slash at its end, if it has any.
fn routed(path: &str, prefix: &str) -> Option<String> {
    let inner = match path.strip_prefix(prefix).filter(|_| !prefix.is_empty()) {
        Some("") => "/",
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    };
    // The dashboard's own files are below a slash. A double slash is no mistake of a slash.
    let whole =
        inner.strip_suffix('/').filter(|start| !start.is_empty() && !start.ends_with('/') && *start != "/dashboard");
    let inner = whole.unwrap_or(inner);
    (inner != path).then(|| inner.to_owned())
}

/// The prefix of a request.
pub fn of(request: &Request) -> String {
    request.extensions().get::<Prefix>().map(|prefix| prefix.0.clone()).unwrap_or_default()
}

/// Puts the prefix before the path of a `Location`.
pub fn locate(prefix: &str, response: &mut Response) {
    let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
    if let Some(location) = location.filter(|location| !prefix.is_empty() && location.starts_with('/'))
        && let Ok(whole) = HeaderValue::from_str(&format!("{prefix}{location}"))
    {
        response.headers_mut().insert(header::LOCATION, whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_plain_paths() {
        assert_eq!(parse("/shop/"), Ok("/shop".to_owned()));
        assert_eq!(parse("/a-1/b_2.x"), Ok("/a-1/b_2.x".to_owned()));
        assert_eq!(parse("/"), Ok(String::new()));
        let long = format!("/{}", "a".repeat(300));
        for wrong in ["shop", "//evil.example", "/a//b", "/a/../b", "/a\"b", "/a b", "/a?b", "/<x>", &long] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn paths_are_those_of_the_router() {
        for (path, prefix, expected) in [
            ("/api/segments", "", None),
            ("/api/segments/", "", Some("/api/segments")),
            ("/", "", None),
            ("/dashboard/", "", None),
            ("/dashboard/page.css", "", None),
            ("/docs/", "", Some("/docs")),
            ("/api//", "", None),
            ("/shop/api/segments/", "/shop", Some("/api/segments")),
            ("/shop", "/shop", Some("/")),
            ("/shop/", "/shop", Some("/")),
            ("/shop/dashboard/", "/shop", Some("/dashboard/")),
            ("/shopping/api", "/shop", None),
            ("/health/live", "/shop", None),
        ] {
            assert_eq!(routed(path, prefix).as_deref(), expected, "{path} {prefix}");
        }
    }
}
