//! Panics as single log lines, in the format that was chosen.
//!
//! Input: panics of any thread. Output: one line each, at `error` for a fault of this program, at `warn` for one that bytes of a
//! client brought about in a library. The standard library's own report is several lines, which no reader of JSON logs takes.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

use crate::sql::one_line;

/// Characters of a panic's message that are logged.
const MESSAGE: usize = 300;

thread_local! {
    /// What this thread decodes at the moment, if a panic would be the input's fault.
    static DECODING: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Has panics logged by `tracing` from now on. A backtrace is added only if `RUST_BACKTRACE` asks for one.
pub fn log_panics() {
    std::panic::set_hook(Box::new(report));
}

/// Runs a decoder that may panic at damaged input, which `what` names. `None` if it did; a warning says so then.
pub fn decoding<T>(what: &'static str, decode: impl FnOnce() -> T) -> Option<T> {
    let outer = DECODING.replace(Some(what));
    let decoded = catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(outer);
    decoded.ok()
}

fn report(panic: &PanicHookInfo<'_>) {
    let message: String = one_line(text(panic.payload())).chars().take(MESSAGE).collect();
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let current = std::thread::current();
    let thread = current.name().unwrap_or("unnamed");
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| format!("\n{backtrace}"));
    let backtrace = backtrace.unwrap_or_default();
    match DECODING.get() {
        Some(what) => {
            tracing::warn!(thread, place, "refused {what}: its decoder panicked at {place}: {message}{backtrace}");
        }
        None => {
            tracing::error!(
                thread,
                place,
                "a bug in tercile: the thread {thread} panicked at {place}: {message}{backtrace}"
            );
        }
    }
}

/// The message of a panic.
fn text(payload: &(dyn Any + Send)) -> &str {
    let owned = || payload.downcast_ref::<String>().map(String::as_str);
    payload.downcast_ref::<&str>().copied().or_else(owned).unwrap_or("it has no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_decoder_gives_comes_back_and_a_panic_does_not_get_out() {
        assert_eq!(decoding("a number", || 7), Some(7));
        assert_eq!(decoding("a number", || -> u8 { std::panic::resume_unwind(Box::new("broken")) }), None);
        assert_eq!(DECODING.get(), None);
    }
}
