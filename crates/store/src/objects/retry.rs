//! Retries of failed requests within bounds, and errors on one line.

use std::future::Future;
use std::io;
use std::time::{Duration, Instant};

use object_store::Error as Fault;

use super::endpoint;
use super::{ATTEMPT, RETRYING};

/// Retries of requests that `object_store` does not retry itself: a put or an answer whose body was cut off.
const TRIES: u32 = 4;

/// Time without an answer after which the service is checked ([`endpoint::warn_if_unreachable`]).
const SILENT: Duration = Duration::from_secs(2);

/// Error codes for a missing bucket: of S3 and Google, and of Azure.
const NO_BUCKET: [&str; 2] = ["NoSuchBucket", "ContainerNotFound"];

/// Address of the clouds' metadata service for credentials.
const METADATA_SERVICE: &str = "169.254.169.254";

/// First pause between two attempts; doubled each time.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 200 });

/// State of a sequence of attempts.
pub(super) struct Tries {
    done: u32,
    began: Instant,
}

impl Tries {
    pub fn new() -> Self {
        Self { done: 0, began: Instant::now() }
    }

    /// Waits before another attempt (exponential backoff); `false` if attempts or time are used up. Always allows one retry,
    /// however long the first attempt took.
    pub async fn another(&mut self) -> bool {
        self.done += 1;
        if self.done > TRIES || (self.done > 1 && self.began.elapsed() >= RETRYING) {
            return false;
        }
        tokio::time::sleep(PAUSE * (1 << (self.done - 1))).await;
        true
    }
}

/// Sends a small idempotent request, and retries it with backoff. An attempt without an answer within [`ATTEMPT`] counts as
/// failed: a connection lost without a reset would otherwise block for ever.
pub(super) async fn again<T, A>(mut ask: impl FnMut() -> A) -> Result<T, Fault>
where
    A: Future<Output = Result<T, Fault>>,
{
    let mut tries = Tries::new();
    loop {
        match with_warning(within(ATTEMPT, ask())).await {
            Err(fault) if passes(&fault) && tries.another().await => {}
            done => return done,
        }
    }
}

/// An attempt. If it takes long because the service cannot be reached, a warning says so.
async fn with_warning<T>(attempt: impl Future<Output = T>) -> T {
    tokio::pin!(attempt);
    let warning = async {
        tokio::time::sleep(SILENT).await;
        endpoint::warn_if_unreachable(RETRYING).await;
        std::future::pending().await
    };
    tokio::select! {
        done = &mut attempt => done,
        done = warning => done,
    }
}

/// One attempt of a request with a timeout.
pub(super) async fn within<T>(timeout: Duration, attempt: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    match tokio::time::timeout(timeout, attempt).await {
        Ok(answer) => answer,
        Err(_) => {
            tracing::debug!("the object store did not answer within {timeout:?}");
            let source = format!("the service did not answer within {} s", timeout.as_secs()).into();
            Err(Fault::Generic { store: "object store", source })
        }
    }
}

/// Whether the fault may be transient. A refusal is permanent.
pub(super) fn passes(fault: &Fault) -> bool {
    matches!(fault, Fault::Generic { .. }) && !no_bucket(fault)
}

/// Whether the service answered that the bucket does not exist.
fn no_bucket(fault: &Fault) -> bool {
    let text = fault.to_string();
    matches!(fault, Fault::Generic { .. } | Fault::NotFound { .. }) && NO_BUCKET.iter().any(|code| text.contains(code))
}

pub(super) fn gone() -> io::Error {
    io::Error::other("the client of the object store has ended")
}

/// Converts a fault to an `io::Error`.
pub(super) fn plain(fault: Fault) -> io::Error {
    let (kind, hint) = match &fault {
        fault if no_bucket(fault) => (io::ErrorKind::Other, "; create the bucket, or correct the store's URL"),
        Fault::NotFound { .. } => (io::ErrorKind::NotFound, ""),
        Fault::AlreadyExists { .. } => (io::ErrorKind::AlreadyExists, ""),
        Fault::PermissionDenied { .. } | Fault::Unauthenticated { .. } => {
            (io::ErrorKind::PermissionDenied, "; check the credentials in the environment")
        }
        Fault::Generic { .. } if fault.to_string().contains(METADATA_SERVICE) => {
            (io::ErrorKind::PermissionDenied, "; set the variables of its service: AWS_…, GOOGLE_… or AZURE_…")
        }
        Fault::Generic { .. } => (io::ErrorKind::Other, "; check that the service can be reached, or try again later"),
        _ => (io::ErrorKind::Other, ""),
    };
    io::Error::new(kind, short(&fault) + hint)
}

/// The innermost reason, on one line.
pub(super) fn short(fault: &Fault) -> String {
    if matches!(fault, Fault::NotFound { .. }) && !no_bucket(fault) {
        return "it is not there; does the bucket exist?".to_owned();
    }
    // Without credentials in the environment, the client requests them from the metadata service.
    if fault.to_string().contains(METADATA_SERVICE) {
        return "there are no credentials, neither in the environment nor of this machine".to_owned();
    }
    let mut reason: &dyn std::error::Error = fault;
    while let Some(inner) = reason.source() {
        reason = inner;
    }
    one_line(&reason.to_string())
}

/// Extracts the message from a service's XML error.
fn one_line(text: &str) -> String {
    let within = |tag: &str| {
        let (_, after) = text.split_once(&format!("<{tag}>"))?;
        Some(after.split_once(&format!("</{tag}>"))?.0)
    };
    let text = match (text.split_once('<'), within("Code"), within("Message")) {
        (Some((status, _)), Some(code), Some(message)) => format!("{status}{code}: {message}"),
        _ => text.to_owned(),
    };
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.trim_end_matches(['.', ':']).chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_reported_on_one_line() {
        let xml = "Server returned non-2xx status code: 400 Bad Request: <?xml version=\"1.0\"?>\n<Error><Code>InvalidRequest</Code>\n\
                   <Message>It is no\n good.</Message></Error>";
        assert_eq!(
            one_line(xml),
            "Server returned non-2xx status code: 400 Bad Request: InvalidRequest: It is no good"
        );
        assert_eq!(one_line("503 Slow Down: "), "503 Slow Down");
    }

    #[tokio::test]
    async fn a_request_that_is_never_answered_is_retried() {
        let mut asked = 0;
        let answer = again(|| {
            asked += 1;
            let silent = asked < 2;
            async move {
                if silent {
                    std::future::pending::<()>().await;
                }
                Ok(7)
            }
        });
        assert_eq!((answer.await.unwrap(), asked), (7, 2));
        let error = within(PAUSE, std::future::pending::<Result<(), Fault>>()).await.unwrap_err();
        assert!(passes(&error) && plain(error).to_string().starts_with("the service did not answer within"));
    }

    #[tokio::test]
    async fn transient_faults_are_retried_and_refusals_are_not() {
        let generic = || Fault::Generic { store: "test", source: "cut".into() };
        let mut asked = 0;
        let answer = again(|| {
            asked += 1;
            std::future::ready(if asked < 3 { Err(generic()) } else { Ok(asked) })
        });
        assert_eq!(answer.await.unwrap(), 3);
        let missing = || Fault::Generic { store: "test", source: "404: <Code>NoSuchBucket</Code>".into() };
        assert!(!passes(&missing()));
        // A put into a bucket that does not exist is "not found".
        let put = Fault::NotFound { path: "a".to_owned(), source: "404: <Code>NoSuchBucket</Code>".into() };
        for fault in [missing(), put] {
            let error = plain(fault);
            assert!(error.kind() == io::ErrorKind::Other && error.to_string().contains("create the bucket"), "{error}");
        }
        let mut asked = 0;
        let answer: Result<(), Fault> = again(|| {
            asked += 1;
            std::future::ready(Err(Fault::PermissionDenied { path: "a".to_owned(), source: "no".into() }))
        })
        .await;
        assert_eq!((plain(answer.unwrap_err()).kind(), asked), (io::ErrorKind::PermissionDenied, 1));
    }
}
