//! Panic hook that logs each panic as a single line in the configured log format.
//!
//! Input: panics of any thread. Output: one line each, at `error` for a bug of this program, at `warn` for a decoder of a
//! library that panicked on client input. The report of the standard library spans several lines, which readers of JSON logs
//! cannot parse.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

use crate::sql::one_line;

/// Maximum logged characters of a panic message.
const MESSAGE: usize = 300;

thread_local! {
    /// Name of the input that this thread is decoding; a panic meanwhile is attributed to the input.
    static DECODING: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Installs the panic hook. A backtrace is added only if `RUST_BACKTRACE` asks for one.
pub fn log_panics() {
    std::panic::set_hook(Box::new(report));
}

/// Runs a decoder that may panic on damaged input, which `what` names in the warning. `None` if it panicked.
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

/// Message of a panic payload.
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
