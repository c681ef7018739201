//! The declarations of operations: a handler declares its path, method, query parameters, statuses, and the scope that it needs, and
//! the guard, the check of parameters and the metric labels read them here.
//!
//! Input: the OpenAPI document of the handlers. Output: the operation of a request. A handler declares its scope as a parameter of
//! type [`NeedsRead`] or one of the others.

use std::collections::HashMap;

use poem::http::{HeaderValue, Method};
use poem::{Request, RequestBody};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde_json::{Map, Value};

use super::keys::Scope;

/// The name of the scope of operations that everybody may call.
const OPEN: &str = "none";

/// Declares types that are parameters of handlers and take nothing from the request: the guard has checked its key already.
macro_rules! needs {
    ($($(#[$meta:meta])* $name:ident = $scope:expr,)+) => {
        $($(#[$meta])*
        pub struct $name;

        impl<'a> ApiExtractor<'a> for $name {
            const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
            type ParamType = ();
            type ParamRawType = ();

            fn security_schemes() -> Vec<&'static str> {
                vec![$scope]
            }

            async fn from_request(
                _: &'a Request,
                _: &mut RequestBody,
                _: ExtractParamOptions<()>,
            ) -> poem::Result<Self> {
                Ok(Self)
            }
        })+
    };
}

needs! {
    /// The operation needs no key.
    NeedsNothing = OPEN,
    /// The operation needs a key of the scope `read`.
    NeedsRead = Scope::Read.word(),
    /// The operation needs a key of the scope `members`.
    NeedsMembers = Scope::Members.word(),
    /// The operation needs a key of the scope `train`.
    NeedsTrain = Scope::Train.word(),
    /// The operation needs a key of the scope `admin`.
    NeedsAdmin = Scope::Admin.word(),
}

/// The scope that an operation of the handlers' document declares; `None` if it needs no key, and `admin` if it declares nothing.
pub fn scope(operation: &Value) -> Option<Scope> {
    let declared = operation["security"][0].as_object().and_then(|scheme| scheme.keys().next());
    let scopes = [Scope::Read, Scope::Members, Scope::Train, Scope::Admin];
    match declared.map(String::as_str) {
        Some(OPEN) => None,
        Some(word) => scopes.into_iter().find(|scope| scope.word() == word).or(Some(Scope::Admin)),
        None => Some(Scope::Admin),
    }
}

/// Paths of pages, which are not operations and need no key.
const PAGES: [&str; 3] = ["docs", "dashboard", "openapi.json"];

/// Whether the path is that of a page.
fn is_page(path: &str) -> bool {
    let mut parts = path.trim_start_matches('/').split('/');
    let first = parts.next().unwrap_or_default();
    PAGES.contains(&first) && (first != "openapi.json" || parts.next().is_none())
}

/// An operation.
pub struct Operation {
    pub method: Method,
    /// Query parameters.
    pub parameters: Vec<String>,
    /// The scope that its key needs.
    pub scope: Option<Scope>,
}

/// A path with its operations.
struct Path {
    /// As written in the document.
    path: String,
    operations: Vec<Operation>,
    /// Methods, for the header `Allow`.
    allow: HeaderValue,
}

impl Path {
    fn of(path: &str, operations: &Map<String, Value>) -> Self {
        let method = |name: &str| Method::from_bytes(name.to_ascii_uppercase().as_bytes()).unwrap_or_default();
        let operations: Vec<Operation> = operations
            .iter()
            .map(|(name, operation)| Operation {
                method: method(name),
                parameters: parameters(operation),
                scope: scope(operation),
            })
            .collect();
        // Every GET operation also answers HEAD.
        let names = operations.iter().map(|operation| operation.method.as_str());
        let names: Vec<&str> =
            names.flat_map(|name| if name == "GET" { vec!["GET", "HEAD"] } else { vec![name] }).collect();
        let allow = HeaderValue::try_from(names.join(", ")).unwrap_or(HeaderValue::from_static("GET, HEAD"));
        Self { path: path.to_owned(), operations, allow }
    }

    fn wildcards(&self) -> usize {
        self.path.matches('{').count()
    }

    /// Whether a requested path is this one.
    fn fits(&self, asked: &str) -> bool {
        let (known, asked) = (self.path.split('/'), asked.split('/'));
        // The router compares names as they come, too: one with encoded letters is another path.
        let same = |known: &str, asked: &str| known.starts_with('{') || asked == known;
        known.clone().count() == asked.clone().count() && known.zip(asked).all(|(known, asked)| same(known, asked))
    }

    /// The pattern of the router, which numbers the parameters.
    fn pattern(&self) -> String {
        let mut number = 0..;
        let part = |part: &str| match part.strip_prefix('{').and_then(|_| number.next()) {
            Some(number) => format!(":param{number}"),
            None => part.to_owned(),
        };
        self.path.split('/').map(part).collect::<Vec<_>>().join("/")
    }
}

/// The query parameters of an operation.
fn parameters(operation: &Value) -> Vec<String> {
    let all = operation["parameters"].as_array().into_iter().flatten();
    let names = all.filter(|parameter| parameter["in"] == "query").filter_map(|parameter| parameter["name"].as_str());
    names.map(str::to_owned).collect()
}

/// All operations.
pub struct Operations {
    /// Paths with fewer parameters come first.
    paths: Vec<Path>,
    /// Index of a path by the pattern of the router.
    patterns: HashMap<String, usize>,
}

impl Operations {
    /// The operations of the handlers' document.
    pub fn of(document: &str) -> Self {
        let document: Value = serde_json::from_str(document).unwrap_or_default();
        let paths = document["paths"].as_object().into_iter().flatten();
        let mut paths: Vec<Path> =
            paths.filter_map(|(path, operations)| Some(Path::of(path, operations.as_object()?))).collect();
        paths.sort_by_key(Path::wildcards);
        let patterns = paths.iter().enumerate().map(|(i, path)| (path.pattern(), i)).collect();
        Self { paths, patterns }
    }

    fn path(&self, path: &str) -> Option<&Path> {
        self.paths.iter().find(|known| known.fits(path))
    }

    /// The operation of a request, if there is one.
    pub fn find(&self, method: &Method, path: &str) -> Option<&Operation> {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        self.path(path)?.operations.iter().find(|operation| operation.method == *method)
    }

    /// Whether there is a page or an operation of any method under this path.
    pub fn exists(&self, path: &str) -> bool {
        is_page(path) || self.path(path).is_some()
    }

    /// The scope that a request needs; `None`: no key. Without an operation, `read` is needed to see that there is nothing, and `admin`
    /// for methods that modify. A preflight needs the scope of no method in particular.
    pub fn scope(&self, method: &Method, path: &str) -> Option<Scope> {
        let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        match self.find(method, path) {
            Some(operation) => operation.scope,
            None if reads && is_page(path) => None,
            None if reads => Some(Scope::Read),
            None => Some(Scope::Admin),
        }
    }

    /// The path as the document has it, by the pattern of the router.
    pub fn route(&self, pattern: &str) -> Option<&str> {
        self.patterns.get(pattern).map(|path| self.paths[*path].path.as_str())
    }

    /// The methods of a path, by the pattern of the router. Paths without operations are pages.
    pub fn allow(&self, pattern: Option<&str>) -> HeaderValue {
        let path = pattern.and_then(|pattern| self.patterns.get(pattern));
        path.map_or(HeaderValue::from_static("GET, HEAD"), |path| self.paths[*path].allow.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::service;

    #[test]
    fn every_operation_declares_its_scope() {
        let document: Value = serde_json::from_str(&service().spec()).unwrap();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let security =
                    operation["security"].as_array().unwrap_or_else(|| panic!("{method} {path} declares no scope"));
                assert_eq!(security.len(), 1, "{method} {path}");
            }
        }
    }

    #[test]
    fn each_path_needs_its_scope() {
        let operations = Operations::of(&service().spec());
        let needed = |method: &Method, path: &str| operations.scope(method, path);
        let (get, post) = (Method::GET, Method::POST);
        for open in
            ["/", "/docs", "/docs/", "/openapi.json", "/health/live", "/health/ready", "/dashboard", "/dashboard/a.js"]
        {
            assert_eq!(needed(&get, open), None, "{open}");
            assert_eq!(needed(&Method::HEAD, open), None, "{open}");
            assert_eq!(needed(&post, open), Some(Scope::Admin), "{open}");
        }
        for read in
            ["/metrics", "/api/segments", "/api/segments/x/points", "/api/events", "/nowhere", "/dashboards", "/health"]
        {
            assert_eq!(needed(&get, read), Some(Scope::Read), "{read}");
        }
        for read in ["/api/cluster_products_by_discount", "/api/segments/predict/predict", "/api/segments/x/score"] {
            assert_eq!(needed(&post, read), Some(Scope::Read), "{read}");
        }
        assert_eq!(needed(&post, "/api/train"), Some(Scope::Train));
        assert_eq!(needed(&get, "/api/train/1"), Some(Scope::Train));
        for members in ["/api/segments/x/members/a", "/api/segments/x/clusters/0/members"] {
            assert_eq!(needed(&get, members), Some(Scope::Members), "{members}");
        }
        assert_eq!(needed(&post, "/api/segments/x/members"), Some(Scope::Members));
        for admin in [
            "/api/sql",
            "/api/%73ql",
            "/api/segments/x/pin",
            "/api/segments/x/candidates/3/promote",
            "/api/sql/x/predict",
            "/api/segments/a/b/predict",
        ] {
            assert_eq!(needed(&post, admin), Some(Scope::Admin), "{admin}");
        }
    }

    #[test]
    fn parameters_and_methods_are_those_of_the_handlers() {
        let operations = Operations::of(&service().spec());
        let of = |path: &str| operations.find(&Method::GET, path).unwrap().parameters.clone();
        assert_eq!(of("/api/segments/x/points"), ["model"]);
        assert_eq!(of("/api/segments/x/drift"), ["model", "of"]);
        assert!(of("/api/segments").is_empty());
        assert_eq!(operations.route("/api/segments/:param0/pin/:param1"), Some("/api/segments/{name}/pin/{version}"));
        assert_eq!(operations.allow(Some("/api/segments/:param0/pin/:param1")), "PUT, DELETE");
        assert!(operations.exists("/api/segments/x/pin/1") && !operations.exists("/api/segments/x/pin"));
    }
}
