//! Decides what goes where: results to stdout, everything else to stderr, progress only to a terminal.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};

use super::exit::Failure;

/// How much a run says on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    Quiet,
    Normal,
    Verbose,
}

#[derive(Debug, Clone, Copy)]
pub struct Printer {
    verbosity: Verbosity,
    progress: bool,
}

impl Printer {
    /// `progress` is what the flags allow; without a terminal there is none either way.
    pub fn new(verbosity: Verbosity, progress: bool) -> Self {
        let progress = progress && verbosity > Verbosity::Quiet && io::stderr().is_terminal();
        Self { verbosity, progress }
    }

    pub fn progress(&self) -> bool {
        self.progress
    }

    /// Something a user should know before relying on the result.
    pub fn note(&self, message: &str) {
        if self.verbosity > Verbosity::Quiet {
            say(&format!("{} {message}", label("note", "36")));
        }
    }

    /// What was done.
    pub fn status(&self, message: &str) {
        if self.verbosity > Verbosity::Quiet {
            say(message);
        }
    }

    pub fn detail(&self, message: &str) {
        if self.verbosity >= Verbosity::Verbose {
            say(message);
        }
    }
}

/// An error and, after a blank line, what to do about it.
pub fn failure(failure: &Failure) {
    say(&format!("{} {:#}", label("error", "1;31"), failure.error));
    if let Some(text) = &failure.hint {
        hint(text);
    }
}

/// What to do about the error above.
pub fn hint(text: &str) {
    say(&format!("\n{} {text}", label("hint", "36")));
}

/// Writes a result and flushes it; a reader that has gone away is no error.
///
/// # Errors
/// When stdout can't be written, e.g. because the disk behind it is full.
pub fn stdout(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}

/// Writes one line of results.
///
/// # Errors
/// As [`stdout`].
pub fn stdout_line(line: &str) -> Result<()> {
    stdout(format!("{line}\n").as_bytes())
}

/// Writes a path on its own line, byte for byte where the system has paths that are not Unicode.
///
/// # Errors
/// As [`stdout`].
pub fn stdout_path(path: &Path) -> Result<()> {
    let mut line = path.as_os_str().as_encoded_bytes().to_vec();
    line.push(b'\n');
    stdout(&line)
}

/// Nothing can be done about a stderr that is closed.
fn say(message: &str) {
    let _ = writeln!(io::stderr().lock(), "{message}");
}

/// `error:`, coloured where that is wanted.
fn label(word: &str, color: &str) -> String {
    if colors(io::stderr().is_terminal(), |name| std::env::var_os(name)) {
        format!("\x1b[{color}m{word}:\x1b[0m")
    } else {
        format!("{word}:")
    }
}

fn colors(terminal: bool, variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> bool {
    let refused = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = variable("TERM").is_some_and(|value| value == "dumb");
    terminal && !refused && !dumb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_need_a_terminal_and_no_objection() {
        let set = |set: &'static [(&'static str, &'static str)]| {
            move |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
        };
        assert!(colors(true, set(&[("TERM", "xterm")])));
        assert!(colors(true, set(&[("NO_COLOR", "")])));
        assert!(!colors(false, set(&[])));
        assert!(!colors(true, set(&[("NO_COLOR", "1")])));
        assert!(!colors(true, set(&[("TERM", "dumb")])));
    }
}
