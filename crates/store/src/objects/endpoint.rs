//! Validates service addresses in the environment before a client is built: the client's own builder panics if one is not a
//! URL, and reports a disallowed `http://` only after all retries.

use url::Url;

/// Variables that hold a service's address, by the URL schemes that use them.
const VARIABLES: [(&[&str], &[&str]); 3] = [
    (&["s3", "s3a"], &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_STS"]),
    (&["az", "azure", "abfs", "abfss", "adl"], &["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"]),
    (&["gs"], &["GOOGLE_BASE_URL"]),
];

/// Refuses an address that is not an `http://` or `https://` URL, and `http://` without `AWS_ALLOW_HTTP`.
///
/// # Errors
/// A text that names the variable and a correct value.
pub(super) fn check(store: &Url, variable: impl Fn(&str) -> Option<String>) -> Result<(), String> {
    let names = VARIABLES.iter().filter(|(schemes, _)| schemes.contains(&store.scheme())).flat_map(|(_, names)| *names);
    for name in names {
        let Some(address) = variable(name).filter(|address| !address.is_empty()) else { continue };
        let url = Url::parse(&address).ok().filter(|url| url.host().is_some());
        match url.as_ref().map(Url::scheme) {
            Some("https") => {}
            Some("http") if allows_http(&variable) => {}
            Some("http") => {
                return Err(format!(
                    "{name} is {address}, without TLS; set AWS_ALLOW_HTTP=true to allow it, or use https://"
                ));
            }
            _ => return Err(format!("{name} is {address}; expected a URL such as https://host:9000")),
        }
    }
    Ok(())
}

/// Whether plain HTTP is allowed; the variable applies to the services of all clouds.
pub(super) fn allows_http(variable: impl Fn(&str) -> Option<String>) -> bool {
    variable("AWS_ALLOW_HTTP").is_some_and(|value| value == "true" || value == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_url_and_http_must_be_allowed() {
        let s3 = Url::parse("s3://bucket/prefix").unwrap();
        let with = |pairs: &[(&str, &str)]| {
            check(&s3, |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        with(&[]).unwrap();
        with(&[("AWS_ENDPOINT_URL", "")]).unwrap();
        with(&[("AWS_ENDPOINT_URL", "https://minio:9000")]).unwrap();
        with(&[("AWS_ENDPOINT_URL", "http://127.0.0.1:9000"), ("AWS_ALLOW_HTTP", "true")]).unwrap();
        // The address of another cloud is ignored.
        with(&[("AZURE_ENDPOINT", "garbage")]).unwrap();
        for bad in ["127.0.0.1:9000", "minio:9000", "localhost", "ftp://x", "http://", "://x", "\u{1b}[31m"] {
            let why = with(&[("AWS_ENDPOINT_URL_S3", bad), ("AWS_ALLOW_HTTP", "true")]).expect_err(bad);
            assert!(why.starts_with("AWS_ENDPOINT_URL_S3 is ") && why.contains("https://host:9000"), "{why}");
        }
        let why = with(&[("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")]).unwrap_err();
        assert!(why.contains("AWS_ALLOW_HTTP=true"), "{why}");
    }
}
