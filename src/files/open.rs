//! Opening files that others may have made: regular ones only, and no more read of them than was expected.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Error, ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, Result};

/// Opens a regular file, or a link to one. A pipe would make the caller wait for a writer, a device could go on for
/// ever: both are errors at once.
///
/// # Errors
/// When the file can't be opened, or is no regular one.
pub fn open(path: &Path) -> io::Result<File> {
    let file = careful(true).read(true).open(path)?;
    let kind = file.metadata()?;
    match kind {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_dir() => Err(Error::new(ErrorKind::IsADirectory, "it is a folder")),
        _ => Err(not_regular()),
    }
}

/// Opens a file in a folder that others can write to, for appending; it is made if it isn't there. What another
/// user could have put there to have us write elsewhere (a link, a second name of a file of ours) is replaced by a
/// new file.
///
/// # Errors
/// When the file can't be opened, or something else keeps coming in its place.
pub fn append(path: &Path) -> io::Result<File> {
    let is_own = |found: &fs::Metadata| found.is_file() && names(found) == 1;
    if path.symlink_metadata().is_ok_and(|found| !is_own(&found)) {
        fs::remove_file(path)?;
    }
    let file = careful(false).append(true).create(true).open(path)?;
    if is_own(&file.metadata()?) { Ok(file) } else { Err(not_regular()) }
}

fn not_regular() -> Error {
    Error::new(ErrorKind::InvalidInput, "it is not a regular file")
}

/// Options that have a pipe opened at once, whether anyone is at its other end or not.
#[cfg(unix)]
fn careful(through_links: bool) -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;

    use rustix::fs::OFlags;

    let flags = if through_links { OFlags::NONBLOCK } else { OFlags::NONBLOCK | OFlags::NOFOLLOW };
    let mut options = OpenOptions::new();
    options.custom_flags(flags.bits().cast_signed());
    options
}

#[cfg(not(unix))]
fn careful(_: bool) -> OpenOptions {
    OpenOptions::new()
}

/// How many names a file has.
#[cfg(unix)]
fn names(file: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(file)
}

#[cfg(not(unix))]
fn names(_: &fs::Metadata) -> u64 {
    1
}

/// The content of the file at `path`.
///
/// # Errors
/// Names the file when it can't be read or has more than `limit` bytes.
pub fn bytes(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            let message = format!("it is larger than the {} that are read of such a file", size(limit));
            return Err(Error::new(ErrorKind::FileTooLarge, message));
        }
        Ok(bytes)
    };
    read().with_context(|| format!("can't read {}", path.display()))
}

/// The text in the file at `path`.
///
/// # Errors
/// As [`bytes`], and when it is not UTF-8.
pub fn text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(bytes(path, limit)?).with_context(|| format!("{} is no UTF-8 text", path.display()))
}

/// The first `count` bytes of the file at `path`, or all if it has fewer.
///
/// # Errors
/// When it can't be read.
pub fn start(path: &Path, count: u64) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    open(path)?.take(count).read_to_end(&mut start)?;
    Ok(start)
}

fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{bytes} bytes") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_read_than_was_expected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(text(&path, 3).unwrap(), "abc");
        assert_eq!(start(&path, 2).unwrap(), b"ab");
        let message = format!("{:#}", text(&path, 2).unwrap_err());
        assert!(message.contains("x: it is larger than the 2 bytes"), "{message}");
        std::fs::write(&path, b"\xff").unwrap();
        assert!(format!("{:#}", text(&path, 9).unwrap_err()).contains("no UTF-8"));
        let message = format!("{:#}", bytes(folder.path(), 9).unwrap_err());
        assert!(message.contains("it is a folder"), "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        for path in [&pipe, &link] {
            assert!(path.exists());
            let message = format!("{:#}", bytes(path, 9).unwrap_err());
            assert!(message.contains("not a regular file"), "{message}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_appended_to_is_no_other_file() {
        use std::io::Write;

        let folder = tempfile::tempdir().unwrap();
        let [victim, path] = ["victim", "x"].map(|name| folder.path().join(name));
        let plant: [&dyn Fn(); 4] = [
            &|| std::os::unix::fs::symlink(&victim, &path).unwrap(),
            &|| fs::hard_link(&victim, &path).unwrap(),
            &|| assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success()),
            &|| std::os::unix::fs::symlink("/nowhere/x", &path).unwrap(),
        ];
        for plant in plant {
            fs::write(&victim, "mine").unwrap();
            plant();
            append(&path).unwrap().write_all(b"yours").unwrap();
            append(&path).unwrap().write_all(b" too").unwrap();
            assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
            assert_eq!(fs::read_to_string(&path).unwrap(), "yours too");
            fs::remove_file(&path).unwrap();
        }
        assert!(append(folder.path()).is_err());
    }
}
