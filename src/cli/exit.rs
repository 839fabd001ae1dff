//! Exit codes and the error that ends a run: what went wrong, which code says so, what to do about it.

use std::fmt::Write;
use std::process::ExitCode;

use crate::hub;

/// How a run ended, as scripts and schedulers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    PictureFailed = 1,
    Usage = 2,
    Model = 3,
    Network = 4,
    Interrupted = 130,
    Terminated = 143,
}

impl Exit {
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Done, "done"),
        (Self::PictureFailed, "a picture failed, or a file could not be written"),
        (Self::Usage, "wrong usage or bad input"),
        (Self::Model, "the model is missing or unusable"),
        (Self::Network, "the network failed, or connections are forbidden"),
        (Self::Interrupted, "interrupted (Ctrl-C)"),
        (Self::Terminated, "terminated (SIGTERM)"),
    ];

    pub fn code(self) -> u8 {
        self as u8
    }

    /// One line per code, for help and the manual page.
    pub fn table() -> String {
        let mut table = String::new();
        for (exit, meaning) in Self::ALL {
            // Writing to a String can't fail.
            let _ = writeln!(table, "  {:<4} {meaning}", exit.code());
        }
        table.trim_end().to_owned()
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error that ends the run.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub error: anyhow::Error,
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, error: anyhow::Error::msg(message.into()), hint: None }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl From<hub::Error> for Failure {
    fn from(mut error: hub::Error) -> Self {
        let exit = match error.kind {
            hub::ErrorKind::Usage => Exit::Usage,
            hub::ErrorKind::Network | hub::ErrorKind::Offline => Exit::Network,
            hub::ErrorKind::Absent | hub::ErrorKind::Unusable => Exit::Model,
            hub::ErrorKind::Disk => Exit::PictureFailed,
        };
        let hint = error.advice.take();
        Self { exit, error: error.into(), hint }
    }
}

/// Gives an error the exit code of the place it happened in.
pub trait OrExit<T> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure { exit, error: error.into(), hint: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_the_documented_ones() {
        let codes = Exit::ALL.map(|(exit, _)| exit.code());
        assert_eq!(codes, [0, 1, 2, 3, 4, 130, 143]);
        assert!(Exit::table().starts_with("  0    done\n  1    a picture failed, or a file"));
    }
}
