//! Resident memory of the process, and ways to reduce it.

#![allow(unsafe_code, reason = "reads the page size, and gives free pages of the allocator back")]

use std::fs;

/// Resident bytes.
pub fn resident() -> i64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: i64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    // SAFETY: sysconf only reads a constant of the C library.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) }
}

/// Minimum size of allocations that are returned to the kernel when freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 1024 * 1024;

/// Makes the allocator return large allocations to the kernel at once. By default glibc raises its mmap threshold (up to 32
/// MiB) when a large block is freed and keeps smaller blocks from then on: a process would stay large after a few large bodies.
pub fn give_back_early() {
    // SAFETY: mallopt sets an integer parameter.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE)
    };
}

/// Drops the resident pages of the program's code. Startup runs much code once (registering SQL functions, checking models,
/// writing the OpenAPI document) that requests never need; needed pages are faulted in again from the page cache.
#[cfg(target_os = "linux")]
pub fn forget_start() {
    let Ok(program) = std::env::current_exe() else { return };
    for line in fs::read_to_string("/proc/self/maps").unwrap_or_default().lines() {
        // Only code is dropped: other segments were modified by relocation.
        if let Some((start, end)) = code(line, &program.to_string_lossy()) {
            // SAFETY: a private mapping without write permission has no modified pages, so dropping its pages loses nothing.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub fn forget_start() {}

/// Address range of this program's code, if the line of the maps describes it.
#[cfg(target_os = "linux")]
fn code(line: &str, program: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let ours = rest.starts_with("r-xp") && line.ends_with(program);
    ours.then(|| Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))).flatten()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_forgotten_and_the_program_goes_on() {
        forget_start();
        assert!(resident() > 0);
        let read_only = "55e0-55f0 r--p 00000000 fe:00 42   /bin/tercile";
        assert_eq!(code(read_only, "/bin/tercile"), None);
        assert_eq!(code(&read_only.replace("r--p", "r-xp"), "/bin/tercile"), Some((0x55e0, 0x55f0)));
        assert_eq!(code("55e0-55f0 r-xp 00000000 fe:00 42   /lib/libc.so.6", "/bin/tercile"), None);
    }
}
