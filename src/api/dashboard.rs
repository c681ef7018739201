//! Serves the dashboard's files, which are compiled into the binary.
//!
//! Input: a path below `/dashboard`. Output: the page, its style sheets, scripts, and the vendored chart library. The page
//! makes no request to another host, and the Content-Security-Policy enforces that.

use std::borrow::Cow;

use poem::http::{HeaderMap, StatusCode, header};
use poem::web::Path;
use poem::{Request, Response, Route, get, handler};

use super::base_path;
use super::etag::SharedBody;
use super::problem::Problem;

/// Allows scripts, styles and requests of this host only, and no inline scripts or styles.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! files {
    ($($name:literal: $kind:ident,)+) => {
        /// All files: name, media type, content.
        const FILES: &[(&str, &str, &str)] = &[$(($name, $kind, include_str!(concat!("dashboard/", $name))),)+];
    };
}

files! {
    "index.html": HTML,
    "page.css": CSS,
    "charts.css": CSS,
    "icon.svg": SVG,
    "theme.js": SCRIPT,
    "main.js": SCRIPT,
    "api.js": SCRIPT,
    "i18n.js": SCRIPT,
    "page.js": SCRIPT,
    "live.js": SCRIPT,
    "axis.js": SCRIPT,
    "scaling.js": SCRIPT,
    "plot.js": SCRIPT,
    "segments.js": SCRIPT,
    "transitions.js": SCRIPT,
    "quality.js": SCRIPT,
    "candidates.js": SCRIPT,
    "drift.js": SCRIPT,
    "receipt.js": SCRIPT,
    "members.js": SCRIPT,
    "try_it.js": SCRIPT,
    "unreadable.js": SCRIPT,
    "vendor/d3.min.js": SCRIPT,
    "vendor/d3.txt": TEXT,
}

/// Route of all files below `/dashboard`.
pub fn files() -> Route {
    Route::new().at("/*file", get(file))
}

#[handler]
fn file(Path(name): Path<String>, asked: &HeaderMap, request: &Request) -> Response {
    let name = if name.is_empty() { "index.html" } else { name.as_str() };
    let Some((_, kind, content)) = FILES.iter().find(|(known, _, _)| *known == name) else {
        return poem::IntoResponse::into_response(Problem::not_found("the dashboard has no such file"));
    };
    let prefix = base_path::of(request);
    let content = if name == "index.html" { Cow::Owned(page(content, &prefix)) } else { Cow::Borrowed(*content) };
    let tag = tag(&content);
    let known = asked.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    let known = known.is_some_and(|known| known.strip_prefix("W/").unwrap_or(known) == tag);
    let response = Response::builder()
        .header(header::CONTENT_SECURITY_POLICY, POLICY)
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(header::REFERRER_POLICY, "no-referrer")
        // Revalidated on each request; sent again only after an upgrade.
        .header(header::CACHE_CONTROL, "no-cache")
        .header(header::ETAG, tag)
        .extension(SharedBody);
    if known {
        return response.status(StatusCode::NOT_MODIFIED).finish();
    }
    match content {
        Cow::Borrowed(content) => response.content_type(*kind).body(content),
        Cow::Owned(content) => response.content_type(*kind).body(content),
    }
}

/// The page with the paths of its files below a prefix, which its scripts read from the attribute `data-prefix`.
fn page(content: &str, prefix: &str) -> String {
    let whole = content.replace("\"/dashboard/", &format!("\"{prefix}/dashboard/"));
    let whole = whole.replace("\"/docs\"", &format!("\"{prefix}/docs\""));
    whole.replacen("<html lang=\"en\">", &format!("<html lang=\"en\" data-prefix=\"{prefix}\">"), 1)
}

/// Entity tag: a hash of the content (FNV-1a).
fn tag(content: &str) -> String {
    let hash = content
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("\"{hash:016x}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot;

    #[test]
    fn the_page_names_its_files_below_the_prefix() {
        let content = FILES.iter().find(|(name, _, _)| *name == "index.html").map(|(_, _, content)| *content).unwrap();
        let page = page(content, "/shop");
        assert!(page.contains("<html lang=\"en\" data-prefix=\"/shop\">"));
        assert_eq!(page.matches("\"/shop/dashboard/").count(), content.matches("\"/dashboard/").count());
        assert!(!page.contains("\"/dashboard") && !page.contains("\"/docs") && !page.contains("\"/api"));
    }

    #[test]
    fn the_page_weighs_little() {
        let bytes: usize = FILES.iter().map(|(_, _, content)| content.len()).sum();
        assert!(bytes < 600_000, "{bytes}");
    }

    #[test]
    fn the_page_and_the_plot_have_the_same_colours() {
        let css = FILES.iter().find(|(name, _, _)| *name == "charts.css").map(|(_, _, content)| *content).unwrap();
        let light = css.split("--cluster-").skip(1).take(plot::COLOURS.len());
        let light: Vec<&str> = light.filter_map(|part| part.split([':', ';']).nth(1)).map(str::trim).collect();
        assert_eq!(light, plot::COLOURS);
    }

    #[test]
    fn every_file_beside_the_page_is_served() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/dashboard");
        let mut names = Vec::new();
        for (dir, prefix) in [(dir.join("vendor"), "vendor/"), (dir, "")] {
            let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
            let files = entries.filter(|entry| entry.path().is_file());
            names.extend(files.map(|entry| format!("{prefix}{}", entry.file_name().to_str().unwrap())));
        }
        names.sort();
        let mut served: Vec<&str> = FILES.iter().map(|(name, _, _)| *name).collect();
        served.sort_unstable();
        assert_eq!(names, served);
    }
}
