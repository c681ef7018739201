//! `/openapi.json` and `/docs`: the document of the running store, which changes with its SQL files and models.
//!
//! Input: the models in service. Output: the document as JSON and as Swagger UI, kept until the models change. Without a key,
//! where keys are required, the document has names only; a stored record is an example only where SQL is allowed too.

use std::sync::Arc;

use bytes::Bytes;
use poem::http::StatusCode;
use poem::{IntoResponse as _, Request, Response};
use serde_json::Value;
use tokio::sync::Mutex;

use super::etag::{EntityTag, SharedBody};
use super::guard::Guard;
use super::keys::Scope;
use super::typed_operations::{self, Detail};
use super::{State, base_path, document, language};
use crate::model_cache::Models;

/// The two forms of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Json,
    SwaggerUi,
}

/// The document in both forms.
struct Pages {
    /// The models that the document describes.
    models: Arc<Models>,
    json: (Bytes, EntityTag),
    html: (Bytes, EntityTag),
}

/// The document without servers, whose paths are then those of the server that sent it.
const NO_SERVERS: &str = "\"servers\": []";

/// The document with the prefix as its server.
fn below(text: &[u8], prefix: &str) -> Vec<u8> {
    let none = NO_SERVERS.as_bytes();
    let at = text.windows(none.len()).position(|window| window == none);
    let servers = format!("\"servers\": [{{\"url\": \"{prefix}\"}}]");
    match at {
        Some(at) => [&text[..at], servers.as_bytes(), &text[at + none.len()..]].concat(),
        None => text.to_vec(),
    }
}

/// Makes and keeps the document.
pub struct Documents {
    /// The document without the operations of the store.
    general: Value,
    /// Swagger UI before and after the document.
    swagger: (String, String),
    guard: Arc<Guard>,
    state: Arc<State>,
    /// The newest pages for each [`Detail`].
    ready: [Mutex<Option<Arc<Pages>>>; 3],
}

impl Documents {
    /// `swagger`: the page of the framework, which contains the document `own`.
    pub fn new(general: Value, (swagger, own): (&str, &str), guard: Arc<Guard>, state: Arc<State>) -> Self {
        let (before, after) = swagger.split_once(own).unwrap_or((swagger, ""));
        let swagger = (before.to_owned(), after.to_owned());
        Self { general, swagger, guard, state, ready: Default::default() }
    }

    /// Answers a request for the document.
    pub async fn answer(&self, request: &Request, form: Form) -> Response {
        let pages = self.pages(self.detail(request)).await;
        let prefix = base_path::of(request);
        let (kind, (text, stamp)) = match form {
            Form::Json => ("application/json; charset=utf-8", &pages.json),
            Form::SwaggerUi => ("text/html; charset=utf-8", &pages.html),
        };
        let mut response = match stamp.known(request) {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => {
                let response = Response::builder().content_type(kind).header("X-Content-Type-Options", "nosniff");
                let response = response.header("Content-Security-Policy", "frame-ancestors 'none'");
                match prefix.is_empty() {
                    true => response.extension(SharedBody).body(text.clone()),
                    false => response.body(below(text, &prefix)),
                }
            }
        };
        stamp.put(&mut response);
        response
    }

    /// The level of detail that the scope of the request's key allows.
    fn detail(&self, request: &Request) -> Detail {
        match (&self.guard.keys, self.guard.scope(request)) {
            (None, _) | (_, Some(Scope::Admin)) => Detail::Records,
            (_, Some(_)) => Detail::Ranges,
            (_, None) => Detail::Names,
        }
    }

    /// The pages about the models in service; made anew if those have changed.
    async fn pages(&self, detail: Detail) -> Arc<Pages> {
        let models = self.state.live.now();
        let mut ready = self.ready[detail as usize].lock().await;
        match &*ready {
            Some(pages) if Arc::ptr_eq(&pages.models, &models) => Arc::clone(pages),
            _ => Arc::clone(ready.insert(Arc::new(self.make(models, detail).await))),
        }
    }

    async fn make(&self, models: Arc<Models>, detail: Detail) -> Pages {
        let described = typed_operations::of_store(&models, &self.state.store, detail).await;
        let mut document = self.general.clone();
        typed_operations::add(&mut document, &described);
        language::list(&mut document, &models);
        let json = document::text(&document);
        let html = [&self.swagger.0, &json, &self.swagger.1].map(String::as_str).concat();
        let page = |text: String| {
            let stamp = EntityTag::of_text(text.as_bytes());
            (Bytes::from(text), stamp)
        };
        Pages { models, json: page(json), html: page(html) }
    }
}
