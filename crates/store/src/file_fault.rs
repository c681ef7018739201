//! A file of a store that cannot be used: which one, what kind of file it is, why, and what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a file cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It is named by another file, or belongs to one, and is not there.
    Missing,
    /// Its content is not what such a file holds; it may be empty, cut off, or a directory.
    Damaged,
    /// The system does not let this process read it.
    Unreadable,
    /// Its content belongs under another name.
    Misnamed,
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Missing => "missing",
            Self::Damaged => "damaged",
            Self::Unreadable => "unreadable",
            Self::Misnamed => "misnamed",
        })
    }
}

/// A file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFault {
    pub path: PathBuf,
    /// What it is, with an article: `the model file`.
    pub kind: &'static str,
    pub reason: Reason,
    /// What was found.
    pub why: String,
    /// What to do.
    pub advice: &'static str,
}

impl FileFault {
    /// What is wrong, for people who must not see paths: `the model file is damaged`.
    pub fn class(&self) -> String {
        format!("{} is {}", self.kind, self.reason)
    }

    /// What was found, without advice: `the model file store/models/a/1.json is damaged (…)`.
    pub fn found(&self) -> String {
        let Self { path, kind, reason, why, .. } = self;
        let why = if *reason == Reason::Missing { String::new() } else { format!(" ({why})") };
        format!("{kind} {} is {reason}{why}", path.display())
    }

    /// Why a file could not be read.
    pub fn reason_of(error: &io::Error) -> Reason {
        match error.kind() {
            io::ErrorKind::NotFound => Reason::Missing,
            // A directory stands in its place.
            io::ErrorKind::IsADirectory | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Reason::Damaged,
            _ => Reason::Unreadable,
        }
    }
}

impl fmt::Display for FileFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}; {}", self.found(), self.advice)
    }
}

impl std::error::Error for FileFault {}
