//! Restricts the process with Linux's Landlock, which needs no privileges and cannot be undone.
//!
//! Input: the directories that may be read. Output: a process that cannot open other files, write files or use the
//! network. Landlock complements the limits inside the engine. On kernels without it (Linux before 5.13) only the
//! engine's limits apply.

#![allow(unsafe_code, reason = "the system calls of Landlock have no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

/// All file access rights of Landlock's first ABI version, from executing files to creating symbolic links.
const ALL_OF_FILES: u64 = (1 << 13) - 1;
/// Reading files and listing directories.
const READING: u64 = (1 << 2) | (1 << 3);
/// Binding and connecting TCP sockets, available from ABI version 4.
const ALL_OF_TCP: u64 = 0b11;
const VERSION: libc::c_uint = 1;
const PATH_BENEATH: libc::c_int = 1;

#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    directory: libc::c_int,
}

/// Restricts this thread, and threads started by it from now on, to reading files below `directories`. Running
/// threads are not restricted, so call it before starting any. Returns `false` if the kernel has no Landlock.
///
/// # Errors
/// If a system call fails or a directory cannot be opened.
pub fn leave_only(directories: &[PathBuf]) -> io::Result<bool> {
    let nothing = std::ptr::null::<Ruleset>();
    // SAFETY: with this flag the kernel reads no structure and returns a version.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, VERSION) };
    if version < 1 {
        return Ok(false);
    }
    let network = if version >= 4 { ALL_OF_TCP } else { 0 };
    let ruleset = Ruleset { files: ALL_OF_FILES, network };
    // Older kernels know only the first field.
    let size = if version >= 4 { size_of::<Ruleset>() } else { size_of::<u64>() };
    // SAFETY: the structure has the layout that the kernel expects and outlives the call.
    let rules = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, size, 0) };
    check(rules)?;
    for directory in directories {
        let Ok(directory) = File::open(directory) else { continue };
        let rule = PathBeneath { allowed: READING, directory: directory.as_raw_fd() };
        // SAFETY: as above; both descriptors are open.
        check(unsafe { libc::syscall(libc::SYS_landlock_add_rule, rules, PATH_BENEATH, &raw const rule, 0) })?;
    }
    // SAFETY: both calls take integers. The second call requires the first. The ruleset's descriptor stays open and
    // is harmless.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1_u64, 0_u64, 0_u64, 0_u64) }.into())?;
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules, 0) })?;
    Ok(true)
}

fn check(answer: libc::c_long) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_all_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let (left, other) = (dir.path().join("left"), dir.path().join("other"));
        for directory in [&left, &other] {
            std::fs::create_dir(directory).unwrap();
            std::fs::write(directory.join("file"), "text").unwrap();
        }
        // The restrictions apply to this thread and end with it.
        let limited = std::thread::spawn(move || {
            if !leave_only(&[left.clone(), PathBuf::from("/not/there")]).unwrap() {
                eprintln!("skipped: the kernel has no Landlock");
                return;
            }
            assert_eq!(std::fs::read(left.join("file")).unwrap(), b"text");
            for refused in [
                std::fs::read(other.join("file")).map(drop),
                std::fs::read(left.join("../other/file")).map(drop),
                std::fs::read("/etc/passwd").map(drop),
                std::fs::read_dir("/").map(drop),
                std::fs::write(left.join("file"), "more"),
                std::fs::write(left.join("new"), "more"),
                std::fs::remove_file(left.join("file")),
                std::process::Command::new("/bin/true").status().map(drop),
            ] {
                assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            }
        });
        limited.join().unwrap();
    }
}
