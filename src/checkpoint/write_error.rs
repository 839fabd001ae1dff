//! Why a model could not be written, sorted by what a caller can do about it.

use std::fmt;
use std::io;
use std::path::Path;

/// Whether the model, the disk or the caller ended the writing.
#[derive(Debug)]
pub enum WriteError {
    /// The model can't be read, or not be written in the type asked for.
    Model(anyhow::Error),
    /// The file or folder can't be written.
    Disk(anyhow::Error),
    /// The caller said so; nothing was written.
    Stopped,
}

impl WriteError {
    /// Names what could not be written.
    pub(super) fn of(self, path: &Path) -> Self {
        match self {
            Self::Disk(error) => Self::Disk(error.context(format!("can't write {}", path.display()))),
            other => other,
        }
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model(error) | Self::Disk(error) => write!(f, "{error:#}"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

impl std::error::Error for WriteError {}

/// What goes wrong in reading and converting.
impl From<anyhow::Error> for WriteError {
    fn from(error: anyhow::Error) -> Self {
        Self::Model(error)
    }
}

/// What goes wrong in writing.
impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Disk(error.into())
    }
}
