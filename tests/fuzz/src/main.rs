//! libFuzzer target for the check named by `TERCILE_FUZZ`, started by `.ci/fuzz`.

#![no_main]

mod checks;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory limit of a check on a few kilobytes, including buffers of usual size.
const MEMORY: usize = 48 * 1024 * 1024;

/// The system allocator with a memory limit.
struct Bounded;

static HELD: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// Aborts with a message that needs no allocation if the limit is exceeded.
fn bounded(size: usize) {
    if HELD.fetch_add(size, Ordering::Relaxed).saturating_add(size) > MEMORY {
        let said = b"memory beyond bounds\n";
        // SAFETY: the pointer and length describe a valid buffer.
        unsafe { libc::write(2, said.as_ptr().cast(), said.len()) };
        std::process::abort();
    }
}

// SAFETY: each call is forwarded unchanged to the system allocator.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        bounded(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        bounded(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        bounded(size);
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(place, layout, size) }
    }
}

fn check() -> fn(&[u8]) {
    static CHECK: OnceLock<fn(&[u8])> = OnceLock::new();
    *CHECK.get_or_init(|| {
        // Arrow's panics at unknown types are caught by the decoder; all other panics end the process.
        std::panic::set_hook(Box::new(|panic| {
            if !panic.location().is_some_and(|at| at.file().contains("/arrow-")) {
                eprintln!("{panic}");
            }
        }));
        let name = std::env::var("TERCILE_FUZZ").expect("TERCILE_FUZZ names a decoder");
        checks::ALL.iter().find(|(known, _)| *known == name).expect("a decoder that is known").1
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check()(bytes));
