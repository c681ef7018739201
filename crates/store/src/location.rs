//! Parses the root of a store: a directory, or the URL of a prefix in an object store.
//!
//! Input: the text of `--store`. Output: a path in canonical form, the only form that the rest of the program sees. One parser
//! serves every flag, so that two spellings never address two stores, and one spelling never addresses two: a character that a
//! URL or an object's key cannot represent is an error, and every other one is preserved.

use std::path::{Path, PathBuf};

use url::Url;

/// Schemes of URLs that name an object store.
pub(super) const SCHEMES: [&str; 8] = ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"];

/// Characters not allowed in a key, besides control characters: patterns, separators or escapes of a service, or of a reader of
/// the store.
const REFUSED: [char; 13] = ['\\', '{', '}', '^', '%', '`', '[', ']', '"', '<', '>', '*', '|'];

/// The scheme of a URL; `None` for the path of a directory.
pub fn scheme(root: &Path) -> Option<&str> {
    let (scheme, _) = root.to_str()?.split_once("://")?;
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    (!scheme.is_empty() && scheme.chars().all(letter)).then_some(scheme)
}

/// The canonical form of a store's root: a directory's path, or `scheme://bucket/prefix` with normalized percent-encoding and
/// no trailing slash. `file://` becomes a directory's path.
///
/// # Errors
/// A text for the user with the fault and the correct form.
pub fn canonical(root: &Path) -> Result<PathBuf, String> {
    let Some(scheme) = scheme(root) else {
        return directory(root);
    };
    let text = root.to_str().ok_or("the URL is not UTF-8")?;
    match scheme {
        "file" => file(text),
        scheme if SCHEMES.contains(&scheme) => Ok(PathBuf::from(object(text)?.text)),
        other if SCHEMES.contains(&other.to_ascii_lowercase().as_str()) || other.eq_ignore_ascii_case("file") => {
            Err(format!("write the scheme in lower case: {}://", other.to_ascii_lowercase()))
        }
        _ => Err(
            "the scheme is not known; expected a directory, s3://bucket/prefix, gs://, az:// or file:///a/directory"
                .to_owned(),
        ),
    }
}

/// Parses a directory's path. `s3:/bucket` is refused as a URL with a missing slash.
fn directory(root: &Path) -> Result<PathBuf, String> {
    let first = root.components().next().and_then(|first| first.as_os_str().to_str()?.strip_suffix(':'));
    let first = first.map(str::to_ascii_lowercase);
    match first.filter(|first| first == "file" || SCHEMES.contains(&first.as_str())) {
        Some(scheme) => Err(format!(
            "a URL has two slashes after the colon, as in {scheme}://; a directory of this name is ./{scheme}:"
        )),
        None => Ok(root.to_owned()),
    }
}

fn file(text: &str) -> Result<PathBuf, String> {
    let (segments, host) = split(text)?;
    if !host.is_empty() && host != "localhost" {
        return Err(format!("{host} would be another machine; expected file:///a/directory, with three slashes"));
    }
    if segments.is_empty() {
        return Err("the URL names no directory; expected file:///a/directory".to_owned());
    }
    Ok(Path::new("/").join(segments.join("/")))
}

/// The parts of the URL of a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObjectUrl {
    /// The canonical URL.
    pub text: String,
    /// The prefix without percent-encoding and surrounding slashes; empty for the whole bucket.
    pub prefix: String,
}

/// Parses the URL of a prefix.
///
/// # Errors
/// As [`canonical`].
pub(super) fn object(text: &str) -> Result<ObjectUrl, String> {
    let (segments, host) = split(text)?;
    let wrong = || "the URL names no bucket; expected s3://bucket/prefix".to_owned();
    let (scheme, _) = text.split_once("://").ok_or_else(wrong)?;
    if host.is_empty() {
        return Err(wrong());
    }
    // Azure's own URLs have the container in place of the user name.
    let container = scheme.starts_with("abfs") || scheme == "adl";
    if host.contains('@') && !container {
        return Err("credentials do not belong in the URL; set them in the environment".to_owned());
    }
    if host.contains(':') {
        return Err(
            "a bucket has no port; set the service's address in the environment, as AWS_ENDPOINT_URL".to_owned()
        );
    }
    for c in segments.iter().flat_map(|segment| segment.chars()) {
        if c.is_control() || REFUSED.contains(&c) {
            return Err(format!("a prefix cannot have the character {c:?}; rename it"));
        }
    }
    let mut url =
        Url::parse(&format!("{scheme}://{host}")).map_err(|e| format!("the bucket {host} is no valid name: {e}"))?;
    url.path_segments_mut().map_err(|()| wrong())?.clear().extend(&segments);
    Ok(ObjectUrl { text: url.as_str().trim_end_matches('/').to_owned(), prefix: segments.join("/") })
}

/// The decoded path segments of a URL, and the part before the path.
fn split(text: &str) -> Result<(Vec<String>, &str), String> {
    if let Some(c) = text.chars().find(|c| matches!(c, '#' | '?')) {
        let code = if c == '#' { "%23" } else { "%3F" };
        return Err(format!(
            "the URL has a {c}, which begins something that no store has; if the name has one, write {code}"
        ));
    }
    let (_, rest) = text.split_once("://").unwrap_or(("", text));
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        return Ok((Vec::new(), host));
    }
    let segments = path.split('/').map(decoded).collect::<Result<Vec<_>, _>>()?;
    Ok((segments, host))
}

/// A decoded path segment.
fn decoded(segment: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        let byte = if byte == b'%' {
            let digits = [rest.next(), rest.next()].map(|digit| digit.and_then(|digit| char::from(digit).to_digit(16)));
            let [Some(high), Some(low)] = digits else {
                return Err("a % begins two hexadecimal digits; for the character itself write %25".to_owned());
            };
            (high * 16 + low) as u8
        } else {
            byte
        };
        bytes.push(byte);
    }
    let text = String::from_utf8(bytes).map_err(|_| "the URL is not UTF-8".to_owned())?;
    match text.as_str() {
        "" => Err("the path has two slashes side by side; write one".to_owned()),
        "." | ".." => Err(format!("the path has {text:?}; write it without")),
        _ if text.contains('/') => Err("a %2F would be a slash; write /".to_owned()),
        _ if text.contains('\0') => Err("a name cannot have a NUL character".to_owned()),
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<String, String> {
        canonical(Path::new(text)).map(|path| path.to_str().unwrap().to_owned())
    }

    #[test]
    fn directories_are_unchanged() {
        for path in ["store", "/a/b", "../up", "a b#c?d", "./s3:/b", "x/s3:/b", "mys3:/b", "c:", "é", "a//b"] {
            assert_eq!(read(path).unwrap(), path);
        }
    }

    #[test]
    fn every_spelling_of_a_url_has_one_canonical_form() {
        for (text, canonical, prefix) in [
            ("s3://bucket", "s3://bucket", ""),
            ("s3://bucket/", "s3://bucket", ""),
            ("s3://bucket/a/b/", "s3://bucket/a/b", "a/b"),
            ("s3://bucket/a b", "s3://bucket/a%20b", "a b"),
            ("s3://bucket/a%20b", "s3://bucket/a%20b", "a b"),
            ("s3://bucket/%61", "s3://bucket/a", "a"),
            ("s3://bucket/c%23d", "s3://bucket/c%23d", "c#d"),
            ("gs://b/x%3Fy", "gs://b/x%3Fy", "x?y"),
            ("s3://b/caf\u{e9}", "s3://b/caf%C3%A9", "caf\u{e9}"),
            ("abfss://box@account.dfs.core.windows.net/p", "abfss://box@account.dfs.core.windows.net/p", "p"),
        ] {
            let found = object(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((found.text.as_str(), found.prefix.as_str()), (canonical, prefix), "{text}");
            assert_eq!(read(text).unwrap(), canonical);
            assert_eq!(object(&found.text).unwrap(), found, "{text} is canonical");
        }
        assert_eq!(read("file:///a%20b/c/").unwrap(), "/a b/c");
        assert_eq!(read("file://localhost/a").unwrap(), "/a");
        assert_eq!(read("file:///lo%23c").unwrap(), "/lo#c");
    }

    #[test]
    fn unrepresentable_characters_are_refused_with_advice() {
        for (text, says) in [
            ("s3://bucket/a b%20c#d", "%23"),
            ("s3://bucket/shop?x=1", "%3F"),
            ("s3://bucket/shop#1", "%23"),
            ("file:///a/lo#c", "%23"),
            ("s3:/b/x", "two slashes"),
            ("s3:b", ""),
            ("file:/dir", "two slashes"),
            ("FILE:/dir", "two slashes"),
            ("s3://b/../x", "\"..\""),
            ("s3://b/%2e%2E/x", "\"..\""),
            ("s3://b/./x", "\".\""),
            ("s3://b//x", "two slashes"),
            ("s3://b/a%2Fb", "%2F"),
            ("s3://b/a%zz", "%25"),
            ("s3://b/a%2", "%25"),
            ("s3://b/%ff", "UTF-8"),
            ("s3://b/a*", "'*'"),
            ("s3://b/a%0Ab", "'\\n'"),
            ("s3://b/a%25b", "'%'"),
            ("s3:///x", "bucket"),
            ("s3://", "bucket"),
            ("s3://key:secret@b/x", "credentials"),
            ("s3://b:9000/x", "port"),
            ("S3://b/x", "lower case"),
            ("http://b/x", "not known"),
            ("file://host/x", "another machine"),
            ("file:///", "no directory"),
            ("file:///a/../b", "\"..\""),
            ("file:///a%00", "NUL"),
        ] {
            if says.is_empty() {
                continue;
            }
            let why = read(text).expect_err(text);
            assert!(why.contains(says), "{text}: {why}");
            assert!(!why.contains("secret"), "{why}");
        }
    }

    proptest! {
        /// Accepted URLs are fixed points of the parser, and URLs with one canonical form have one key.
        #[test]
        fn a_url_and_its_key_determine_each_other(path in "[ -~\u{e9}\u{4e2d}]{0,20}") {
            if let Ok(found) = object(&format!("s3://b/{path}")) {
                let again = object(&found.text).unwrap();
                prop_assert_eq!(&again, &found);
                // Other readers derive the key from the URL's path.
                let url = Url::parse(&found.text).unwrap();
                let key = object_store::path::Path::from_url_path(url.path()).unwrap();
                prop_assert_eq!(key.as_ref(), found.prefix.as_str());
            }
        }
    }
}
