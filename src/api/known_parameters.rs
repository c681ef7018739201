//! Query parameters that an operation does not declare are errors.

use std::sync::Arc;

use poem::Request;

use super::declared::Operations;
use super::problem::Problem;
use super::{State, language};

/// Rejects unknown and repeated query parameters, which would otherwise be ignored, and languages without descriptions.
pub(super) async fn known_parameters(
    request: Request,
    state: Arc<State>,
    operations: Arc<Operations>,
) -> poem::Result<Request> {
    let Some(query) = request.uri().query() else { return Ok(request) };
    let path = request.uri().path();
    // Pages ignore parameters, and an unknown path is a 404.
    let Some(operation) = operations.find(request.method(), path).filter(|_| path.starts_with("/api/")) else {
        return Ok(request);
    };
    let known = &operation.parameters;
    let mut seen = Vec::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let problem = if !known.iter().any(|known| *known == name) {
            let known = if known.is_empty() { "takes none".to_owned() } else { format!("takes {}", known.join(", ")) };
            Problem::unprocessable(format!("there is no query parameter {name}; this path {known}"))
        } else if seen.contains(&name) {
            Problem::unprocessable(format!("the query parameter {name} stands twice"))
        } else if name == "lang"
            && let Err(problem) = language::check(&value, &state.live.now())
        {
            problem
        } else {
            seen.push(name);
            continue;
        };
        return Err(problem.field(name).into());
    }
    Ok(request)
}
