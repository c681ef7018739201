//! libFuzzer around one of the checks: `TERCILE_FUZZ` names it. `.ci/fuzz` runs it.

#![no_main]

mod checks;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a check of a few kilobytes may hold at a time, blocks and buffers of a usual size among it.
const MEMORY: usize = 48 * 1024 * 1024;

/// The system's memory, of which no more than that is given.
struct Bounded;

static HELD: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// Says so without taking any.
fn bounded(size: usize) {
    if HELD.fetch_add(size, Ordering::Relaxed).saturating_add(size) > MEMORY {
        let said = b"memory beyond bounds\n";
        // SAFETY: the bytes are there, as many as it says.
        unsafe { libc::write(2, said.as_ptr().cast(), said.len()) };
        std::process::abort();
    }
}

// SAFETY: each call goes to the system's allocator as it came.
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
        // Arrow's panics at types that it does not know are caught where they arise; any other ends the process anyway.
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
