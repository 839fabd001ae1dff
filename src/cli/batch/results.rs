//! The results of a batch as JSON lines: one per item, appended and flushed as it ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

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

impl Results {
    /// Opens or makes the file; a last line that a killed process left half-written is taken away.
    ///
    /// # Errors
    /// Names the file and why it can't be appended to.
    pub fn open(path: &Path) -> Result<Self> {
        let context = || format!("cannot append to the results {}", path.display());
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(path).with_context(context)?;
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
            .with_context(|| format!("cannot append to the results {}", self.path.display()))
    }
}

/// Ends the last line, or takes it away when it is no whole object.
fn mend(file: &mut File) -> std::io::Result<()> {
    let length = file.metadata()?.len();
    let mut start = length;
    let mut last = Vec::new();
    while start > 0 {
        let block = start.min(4096);
        start -= block;
        let mut bytes = vec![0; block as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut bytes)?;
        let end = bytes.iter().rposition(|&byte| byte == b'\n').map(|newline| newline + 1);
        bytes.drain(..end.unwrap_or(0));
        bytes.extend(last);
        last = bytes;
        if end.is_some() {
            break;
        }
    }
    if last.is_empty() {
        return Ok(());
    }
    if serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&last).is_ok() {
        return file.write_all(b"\n");
    }
    file.set_len(length - last.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_written_line_is_taken_away_and_a_whole_one_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let long = format!("{{\"error\":\"{}", "x".repeat(10_000));
        for (before, kept) in [
            ("", ""),
            ("{\"a\":1}\n", "{\"a\":1}\n"),
            ("{\"a\":1}\n{\"b\":", "{\"a\":1}\n"),
            ("{\"a\":1}\n{\"b\":2}", "{\"a\":1}\n{\"b\":2}\n"),
            ("{\"a", ""),
            (&long, ""),
            (&format!("{{}}\n{long}"), "{}\n"),
        ] {
            std::fs::write(&path, before).unwrap();
            Results::open(&path).unwrap().append("{\"new\":0}").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{kept}{{\"new\":0}}\n"));
        }
    }

    #[test]
    fn a_line_another_process_writes_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let mut other = Results::open(&path).unwrap();
        other.file.write_all(b"{\"half\":").unwrap();
        let _second = Results::open(&path).unwrap();
        other.append("1}").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"half\":1}\n");
    }
}
