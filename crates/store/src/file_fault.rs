//! A file of a store that cannot be used: its path, kind, reason and advice.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a file cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The file is missing, but another file refers to it.
    Missing,
    /// The content is invalid; the file may be empty, cut off, or a directory.
    Damaged,
    /// The system denies access to the file.
    Unreadable,
    /// The content belongs under another name.
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
    /// The file.
    pub path: PathBuf,
    /// Kind of file, with an article: `the model file`.
    pub kind: &'static str,
    /// Class of the fault.
    pub reason: Reason,
    /// Details of the fault.
    pub why: String,
    /// Advice for the user.
    pub advice: &'static str,
}

impl FileFault {
    /// The fault without paths, for untrusted readers: `the model file is damaged`.
    pub fn class(&self) -> String {
        format!("{} is {}", self.kind, self.reason)
    }

    /// The fault without advice: `the model file store/models/a/1.json is damaged (…)`.
    pub fn found(&self) -> String {
        let Self { path, kind, reason, why, .. } = self;
        let why = if *reason == Reason::Missing { String::new() } else { format!(" ({why})") };
        format!("{kind} {} is {reason}{why}", path.display())
    }

    /// Classifies a read error.
    pub fn reason_of(error: &io::Error) -> Reason {
        match error.kind() {
            io::ErrorKind::NotFound => Reason::Missing,
            // The path is a directory.
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
