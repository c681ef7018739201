//! Errors as lines on stderr and exit codes.

use std::io;
use std::process::ExitCode;

use tercile_kafka::broker::{self as kafka, Gap};
use tercile_kafka::ingest as loading;
use tercile_store as store;

use super::Usage;
use crate::bulk;
use crate::sql::fault::Fault;

/// Prints an error and returns its exit code.
pub(super) fn fail(error: &anyhow::Error) -> ExitCode {
    say(error);
    ExitCode::from(exit_code(error))
}

/// Prints an error in one line. An SQL error is followed by its position.
pub(super) fn say(error: &anyhow::Error) {
    if exit_code(error) == 0 {
        return;
    }
    // Some causes repeat the text of the error that wraps them.
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if words.is_empty() {
            words = cause;
        } else if !words.contains(&cause) {
            words = format!("{words}: {cause}");
        }
    }
    if error.is::<io::Error>() && !words.starts_with("cannot write") {
        words = format!("cannot write the output: {words}");
    }
    let words = crate::sql::one_line(&words);
    match error.chain().find_map(|cause| cause.downcast_ref::<Fault>()?.excerpt.as_deref()) {
        Some(excerpt) => tracing::error!("{words}\n{excerpt}"),
        None => tracing::error!("{words}"),
    }
}

/// The exit code of an error: the first cause that has one of its own decides.
pub(super) fn exit_code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<Usage>() {
            return 2;
        }
        let store = match cause.downcast_ref() {
            Some(loading::Error::Store(error)) => Some(error),
            _ => cause.downcast_ref::<store::Error>(),
        };
        if matches!(store, Some(store::Error::OtherTopic { .. } | store::Error::AheadOfTopic { .. })) {
            return 3;
        }
        let broker = match cause.downcast_ref() {
            Some(loading::Error::Broker(error)) => Some(error),
            _ => cause.downcast_ref::<kafka::Error>(),
        };
        match broker {
            Some(kafka::Error::OtherTopic { .. }) => return 3,
            Some(kafka::Error::Gap(_)) => return 4,
            Some(error) if error.is_fenced() => return 6,
            _ if cause.is::<Gap>() => return 4,
            _ => {}
        }
        // A closed output pipe is not an error.
        let io = match cause.downcast_ref() {
            Some(bulk::Error::Io(error)) => Some(error),
            _ => cause.downcast_ref::<io::Error>(),
        };
        if io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return 0;
        }
    }
    1
}
