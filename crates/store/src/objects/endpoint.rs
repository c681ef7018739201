//! Validates service addresses and credentials in the environment before a client is built: the client panics if an address is
//! not a URL, or if a line break is in a key, and reports a disallowed `http://` only after all retries. It does not report why it retries: this module connects to a
//! service that does not answer, and warns with the reason.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use url::Url;

/// Timeout of a connection that is made to find out why a service does not answer, and of its first byte.
const CONNECT: Duration = Duration::from_secs(2);
/// Time between two warnings.
const AGAIN: Duration = Duration::from_secs(60);

/// The service that the environment names.
static SERVICE: Mutex<Option<Service>> = Mutex::new(None);

#[derive(Clone)]
struct Service {
    /// The variable with its address.
    name: &'static str,
    url: Url,
    warned: Option<Instant>,
}

/// Variables that hold a service's address, by the URL schemes that use them.
const VARIABLES: [(&[&str], &[&str]); 3] = [
    (&["s3", "s3a"], &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_STS"]),
    (&["az", "azure", "abfs", "abfss", "adl"], &["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"]),
    (&["gs"], &["GOOGLE_BASE_URL"]),
];

/// Variables that become a part of a request's head.
const CREDENTIALS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
/// Variables that become a part of a host name.
const REGIONS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];

/// Refuses credentials with characters that no request can have, such as the line break at the end of a file, an address that is not an `http://` or `https://` URL, and `http://` without `AWS_ALLOW_HTTP`.
///
/// # Errors
/// A text that names the variable and a correct value; it does not contain credentials.
pub(super) fn check(store: &Url, variable: impl Fn(&str) -> Option<String>) -> Result<(), String> {
    if store.scheme().starts_with("s3") {
        let has = |name: &str, fits: fn(char) -> bool| variable(name).is_none_or(|value| value.chars().all(fits));
        let region = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let credential = |c: char| c.is_ascii_graphic();
        let wrong = CREDENTIALS.iter().find(|name| !has(name, credential));
        if let Some(name) = wrong.or_else(|| REGIONS.iter().find(|name| !has(name, region))) {
            return Err(format!(
                "{name} has a character that it cannot have, perhaps a space or a line break at its end; set it without"
            ));
        }
    }
    let names = VARIABLES.iter().filter(|(schemes, _)| schemes.contains(&store.scheme())).flat_map(|(_, names)| *names);
    for name in names {
        let Some(address) = variable(name).filter(|address| !address.is_empty()) else { continue };
        // `Url` removes and encodes characters that the client then rejects.
        let is_plain = address.chars().all(|c| c.is_ascii_graphic() && !"\"<>\\^`{|}".contains(c));
        let url = Url::parse(&address).ok().filter(|url| is_plain && url.host().is_some());
        match url.as_ref().map(Url::scheme) {
            Some("https") => remember(name, url),
            Some("http") if allows_http(&variable) => remember(name, url),
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

/// Keeps the first address for [`warn_if_unreachable`].
fn remember(name: &'static str, url: Option<Url>) {
    let mut service = SERVICE.lock().unwrap_or_else(PoisonError::into_inner);
    if service.is_none() {
        *service = url.map(|url| Service { name, url, warned: None });
    }
}

/// Warns, at most once a minute, if the service that the environment names cannot be reached, or does not speak TLS although its
/// URL is `https://`. `retrying` is how long requests are retried. A cloud's default service is not checked.
pub(super) async fn warn_if_unreachable(retrying: Duration) {
    let service = {
        let mut service = SERVICE.lock().unwrap_or_else(PoisonError::into_inner);
        match service.as_mut() {
            Some(known) if known.warned.is_none_or(|at| at.elapsed() > AGAIN) => {
                known.warned = Some(Instant::now());
                known.clone()
            }
            _ => return,
        }
    };
    if let Some(why) = unreachable(&service).await {
        let (name, seconds) = (service.name, retrying.as_secs());
        let host = service.url.host_str().unwrap_or_default();
        tracing::warn!("{name} (host {host}): {why}; retrying for up to {seconds} s");
    }
}

/// Why a service does not answer, as far as a connection shows.
async fn unreachable(service: &Service) -> Option<String> {
    let host = service.url.host_str()?.trim_start_matches('[').trim_end_matches(']');
    let port = service.url.port_or_known_default()?;
    let mut stream = match tokio::time::timeout(CONNECT, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Some(format!("the service cannot be reached: {error}")),
        Err(_) => return Some("the service cannot be reached: no connection within 2 s".to_owned()),
    };
    if service.url.scheme() != "https" {
        return None;
    }
    // The head of a TLS handshake: a TLS service answers with an alert (21), or continues the handshake (22).
    let answer = async {
        stream.write_all(b"\x16\x03\x01\x00\x01\x00\r\n\r\n").await?;
        stream.read_u8().await
    };
    let first = tokio::time::timeout(CONNECT, answer).await;
    let plain = first.is_ok_and(|first| first.is_ok_and(|first| !matches!(first, 21 | 22)));
    let why = "the service speaks plain HTTP there; use http:// and AWS_ALLOW_HTTP=true, or the port for TLS";
    plain.then(|| why.to_owned())
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
        let bad = ["127.0.0.1:9000", "minio:9000", "localhost", "ftp://x", "http://", "://x", "\u{1b}[31m"];
        for bad in
            bad.into_iter().chain(["http://minio:9000 ", "http://minio:9000\n", " http://minio", "http://min|io"])
        {
            let why = with(&[("AWS_ENDPOINT_URL_S3", bad), ("AWS_ALLOW_HTTP", "true")]).expect_err(bad);
            assert!(why.starts_with("AWS_ENDPOINT_URL_S3 is ") && why.contains("https://host:9000"), "{why}");
        }
        for (name, value) in [
            ("AWS_ACCESS_KEY_ID", "AKIA\n"),
            ("AWS_SECRET_ACCESS_KEY", "sec ret"),
            ("AWS_SESSION_TOKEN", "tok\u{e9}n"),
            ("AWS_REGION", "us-east-1\n"),
            ("AWS_DEFAULT_REGION", "us<east"),
        ] {
            let why = with(&[(name, value)]).expect_err(name);
            assert!(why.starts_with(name) && !why.contains(value.trim()) && !why.contains('\n'), "{why}");
        }
        with(&[("AWS_SECRET_ACCESS_KEY", "a/b+c=="), ("AWS_REGION", "eu-central-1")]).unwrap();
        let why = with(&[("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")]).unwrap_err();
        assert!(why.contains("AWS_ALLOW_HTTP=true"), "{why}");
    }

    #[tokio::test]
    async fn a_service_that_cannot_be_reached_or_speaks_no_tls_is_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service = |url: String| Service { name: "AWS_ENDPOINT_URL", url: Url::parse(&url).unwrap(), warned: None };
        let answers = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await;
            }
        });
        let why = unreachable(&service(format!("https://127.0.0.1:{port}"))).await.unwrap();
        assert!(why.contains("speaks plain HTTP"), "{why}");
        assert_eq!(unreachable(&service(format!("http://127.0.0.1:{port}"))).await, None);
        answers.abort();
        let why = unreachable(&service("http://127.0.0.1:9".to_owned())).await.unwrap();
        assert!(why.contains("refused"), "{why}");
    }
}
