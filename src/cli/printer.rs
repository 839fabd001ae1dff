//! Decides what goes where: results to stdout, everything else to stderr, progress only to a terminal; what comes from
//! files of others never steers the terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};

use super::exit::Failure;

const ERROR: Style = AnsiColor::Red.on_default().bold();
const ASIDE: Style = AnsiColor::Cyan.on_default();

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
            say(Some((ASIDE, "note")), message);
        }
    }

    /// What was done.
    pub fn status(&self, message: &str) {
        if self.verbosity > Verbosity::Quiet {
            say(None, message);
        }
    }

    pub fn detail(&self, message: &str) {
        if self.verbosity >= Verbosity::Verbose {
            say(None, message);
        }
    }
}

/// An error and, after a blank line, what to do about it.
pub fn failure(failure: &Failure) {
    say(Some((ERROR, "error")), &format!("{:#}", failure.error));
    if let Some(text) = &failure.hint {
        hint(text);
    }
}

/// What to do about the error above.
pub fn hint(text: &str) {
    say(None, "");
    say(Some((ASIDE, "hint")), text);
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

/// Writes lines for people or a line of JSON.
///
/// # Errors
/// As [`stdout`].
pub fn stdout_text(text: &str) -> Result<()> {
    stdout(format!("{}\n", plain(text)).as_bytes())
}

/// Writes a path on its own line.
///
/// # Errors
/// As [`stdout`].
pub fn stdout_path(path: &Path) -> Result<()> {
    stdout(&path_line(path))
}

/// A path and the line's end: for programs byte for byte, even where the system has paths that are not Unicode, on a
/// terminal as it can be shown.
pub fn path_line(path: &Path) -> Vec<u8> {
    let mut line = if io::stdout().is_terminal() {
        plain(&path.to_string_lossy()).into_owned().into_bytes()
    } else {
        path.as_os_str().as_encoded_bytes().to_vec()
    };
    line.push(b'\n');
    line
}

/// Writes a message to stderr after its label; further lines stand back, so that none can pass for a message of its
/// own. Nothing can be done about a stderr that is closed.
fn say(label: Option<(Style, &str)>, message: &str) {
    let message = plain(message);
    let mut lines = message.lines();
    let mut stderr = anstream::stderr().lock();
    let first = lines.next().unwrap_or_default();
    let _ = match label {
        Some((style, word)) => writeln!(stderr, "{style}{word}:{style:#} {first}"),
        None => writeln!(stderr, "{first}"),
    };
    for line in lines {
        let _ = writeln!(stderr, "  {}", line.trim_start());
    }
}

/// Text without what a terminal would obey: control characters, and those that turn the direction of writing, are
/// spelled as JSON spells them, so that a line of JSON keeps its meaning.
pub fn plain(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| {
        c.is_control() && c != '\n' || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(obeyed) {
        return text.into();
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if obeyed(c) {
            // Writing to a String can't fail.
            let _ = write!(plain, "\\u{:04x}", u32::from(c));
        } else {
            plain.push(c);
        }
    }
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        for (text, shown) in [
            ("a \u{1b}[31mred\u{7}", r"a \u001b[31mred\u0007"),
            ("\u{9b}2J\u{7f}\r\t", r"\u009b2J\u007f\u000d\u0009"),
            ("name\u{202e}gnp.exe\u{2066}", r"name\u202egnp.exe\u2066"),
            ("two\nlines, élan, 猫, עברית", "two\nlines, élan, 猫, עברית"),
        ] {
            assert_eq!(plain(text), shown);
        }
    }

    #[test]
    fn json_keeps_its_meaning() {
        let value = serde_json::json!({ "a\u{9b}": "\u{1b}[2J\u{202e}\u{7f}\n" });
        let shown = plain(&value.to_string()).into_owned();
        assert!(!shown.contains(char::is_control));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
