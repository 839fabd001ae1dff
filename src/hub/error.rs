//! What can go wrong with the Hub and its cache, sorted by what a user can do about it.

use std::fmt;
use std::io;
use std::path::Path;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked for, or the environment, makes no sense.
    Usage,
    /// The network or the server failed, or sent bytes that are not the file: another try may help.
    Network,
    /// Connections are forbidden.
    Offline,
    /// The repository or the file is not there, or not for this user.
    Absent,
    /// What is there is no model for this program.
    Unusable,
    /// The disk: full, not writable, gone.
    Disk,
}

/// One line, and perhaps what to do about it.
#[derive(Debug)]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
    pub advice: Option<String>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), advice: None }
    }

    #[must_use]
    pub fn advice(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// An operation on `path` that the system refused.
    pub fn disk(doing: &str, path: &Path, error: &io::Error) -> Self {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let failed = Self::new(ErrorKind::Disk, format!("can't {doing} {}: {error}", path.display()));
        if full { failed.advice("make room; what has been fetched so far is kept") } else { failed }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
