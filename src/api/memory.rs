//! The memory of the process: how much of it is resident, and what of the program need not be.

use std::fs;

/// Bytes that are resident.
pub fn resident() -> i64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: i64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    // SAFETY: it reads a number that the C library knows.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) }
}

/// Bytes from which on a piece of memory is the kernel's again as soon as it is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 1024 * 1024;

/// Has the allocator give back large pieces of memory at once. It begins so, but takes each large piece that is freed for a
/// sign that more of them will be asked for, and keeps what is smaller than that (up to 32 MiB) from then on: a process that has
/// once answered large bodies would stay as large.
pub fn give_back_early() {
    // SAFETY: it sets a number.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE)
    };
}

/// Unmaps the program's code. Starting goes once through much of it (SQL functions are registered, models checked, the
/// document written), which answering never needs again; what is needed comes back from the page cache as it is run.
#[cfg(target_os = "linux")]
pub fn forget_start() {
    let Ok(program) = std::env::current_exe() else { return };
    for line in fs::read_to_string("/proc/self/maps").unwrap_or_default().lines() {
        // The program's other parts hold what was written when it was loaded; its code is as on disk.
        if let Some((start, end)) = code(line, &program.to_string_lossy()) {
            // SAFETY: nobody writes to a private mapping that is not writable, so dropping its pages loses nothing.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub fn forget_start() {}

/// Where a line of the maps says that the code of this program lies.
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
