//! The results of a batch as JSON lines: one per item, appended and flushed as it ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::request::Passes;

/// How an item ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Drawn,
    /// A picture of the same request was there already.
    Kept,
    Failed,
}

/// One line.
#[derive(Debug, Serialize)]
pub struct Outcome<'a> {
    /// In the whole list, counting from 1.
    pub index: u64,
    /// Of the list.
    pub line: u64,
    pub id: Option<&'a str>,
    pub status: Status,
    pub path: String,
    pub seed: u64,
    pub seconds: f64,
    /// What the UNet computed, of what was drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unet: Option<Passes>,
    pub error: Option<String>,
}

impl Outcome<'_> {
    /// # Errors
    /// None in practice: an outcome is plain data.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).context("writing the result as JSON")
    }
}

/// A file that results are appended to.
pub struct Results {
    path: PathBuf,
    file: File,
}

/// The longest end of a file that is looked at for a line: far more than an outcome takes.
const MAX_LINE: u64 = 1 << 20;

impl Results {
    /// Opens or makes the file; a last line that a killed process left half-written is taken away. A file that
    /// holds anything but results is left alone.
    ///
    /// # Errors
    /// Names the file and why it can't be appended to.
    pub fn open(path: &Path) -> Result<Self> {
        let context = || format!("can't append to the results {}", path.display());
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            bail!("can't append to the results {}: it is not a regular file", path.display());
        }
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(path).with_context(context)?;
        check_ours(&mut file).with_context(context)?;
        // Whoever else appends holds a shared lock, and may be in the middle of its line.
        if file.try_lock().is_ok() {
            mend(&mut file).with_context(context)?;
            let _ = file.unlock();
        }
        let _ = file.try_lock_shared();
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends a line in one write, so that processes that share a file don't mix theirs.
    ///
    /// # Errors
    /// Names the file and why it can't be written.
    pub fn append(&mut self, line: &str) -> Result<()> {
        self.file
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("can't append to the results {}", self.path.display()))
    }
}

/// How every line of results begins.
const BEGINNING: &[u8] = b"{\"index\":";

/// Refuses a file whose first line is no result, whole or begun.
fn check_ours(file: &mut File) -> Result<()> {
    let mut start = Vec::new();
    file.rewind()?;
    file.take(BEGINNING.len() as u64).read_to_end(&mut start)?;
    ensure!(BEGINNING.starts_with(&start), "it holds something else than results of a batch");
    Ok(())
}

/// Ends the last line, or takes it away when it is a result that was not written to its end.
fn mend(file: &mut File) -> Result<()> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LINE)))?;
    let mut last = Vec::new();
    file.take(MAX_LINE).read_to_end(&mut last)?;
    match last.iter().rposition(|&byte| byte == b'\n') {
        Some(newline) => drop(last.drain(..=newline)),
        None => ensure!(length <= MAX_LINE, "its last line is longer than any result"),
    }
    if last.is_empty() {
        return Ok(());
    }
    if serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&last).is_ok() {
        return Ok(file.write_all(b"\n")?);
    }
    let begun = last.starts_with(BEGINNING) || BEGINNING.starts_with(&last);
    ensure!(begun, "its last line is not the beginning of a result");
    Ok(file.set_len(length - last.len() as u64)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_written_line_is_taken_away_and_a_whole_one_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let long = format!("{{\"index\":7,\"error\":\"{}", "x".repeat(10_000));
        for (before, kept) in [
            ("", ""),
            ("{\"index\":1}\n", "{\"index\":1}\n"),
            ("{\"index\":1}\n{\"index\":", "{\"index\":1}\n"),
            ("{\"index\":1}\n{\"index\":2}", "{\"index\":1}\n{\"index\":2}\n"),
            ("{\"ind", ""),
            (&long, ""),
            (&format!("{{\"index\":1}}\n{long}"), "{\"index\":1}\n"),
        ] {
            std::fs::write(&path, before).unwrap();
            Results::open(&path).unwrap().append("{\"new\":0}").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{kept}{{\"new\":0}}\n"));
        }
    }

    #[test]
    fn what_holds_no_results_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.jsonl");
        let endless = format!("{{\"index\":1,\"error\":\"{}", "x".repeat(2 << 20));
        for (before, why) in [
            ("{\"prompt\":\"a cat\"}", "something else"),
            ("a cat\na dog", "something else"),
            ("\x7fELF\0\n\0", "something else"),
            ("\n", "something else"),
            ("{\"index\":1}\na cat", "not the beginning of a result"),
            (&endless, "longer than any result"),
        ] {
            std::fs::write(&path, before).unwrap();
            let error = format!("{:#}", Results::open(&path).err().unwrap());
            assert!(error.contains(why) && error.contains("list.jsonl"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
        }
        let error = format!("{:#}", Results::open(folder.path()).err().unwrap());
        assert!(error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn a_line_another_process_writes_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let mut other = Results::open(&path).unwrap();
        other.file.write_all(b"{\"index\":").unwrap();
        let _second = Results::open(&path).unwrap();
        other.append("1}").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"index\":1}\n");
    }
}
