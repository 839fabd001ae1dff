//! Why no picture came out of a run, for callers that decide by it; messages are made where things fail.

use std::fmt;

/// What ended a run without a picture.
#[derive(Debug)]
pub enum DrawError {
    /// The observer wanted no further work.
    Interrupted,
    /// A network can't be loaded: every further picture of this model would fail too.
    UnusableModel(anyhow::Error),
    /// This picture failed; another request may not.
    Failed(anyhow::Error),
}

impl DrawError {
    /// What failed, as a chain of causes.
    pub fn into_cause(self) -> anyhow::Error {
        match self {
            Self::Interrupted => anyhow::anyhow!("interrupted"),
            Self::UnusableModel(cause) => cause.context("the model is not usable"),
            Self::Failed(cause) => cause,
        }
    }
}

impl fmt::Display for DrawError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupted => f.write_str("interrupted"),
            Self::UnusableModel(cause) => write!(f, "the model is not usable: {cause:#}"),
            Self::Failed(cause) => write!(f, "{cause:#}"),
        }
    }
}

impl std::error::Error for DrawError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Interrupted => None,
            Self::UnusableModel(cause) | Self::Failed(cause) => cause.source(),
        }
    }
}

impl From<anyhow::Error> for DrawError {
    fn from(cause: anyhow::Error) -> Self {
        Self::Failed(cause)
    }
}
