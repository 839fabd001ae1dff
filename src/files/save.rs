//! Writing files and folders that are whole or absent, and clearing away what killed processes left of them.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::{NamedTempFile, TempDir};

use super::open::open;

/// How many names are tried beside a taken one.
const MAX_SUFFIX: u32 = 9999;

/// How the names of temporary files and folders begin and end.
const TEMPORARY: (&str, &str) = (".pochade-", ".tmp");

/// A picture is written in far less time than this, a larger file changes more often.
const ABANDONED: Duration = Duration::from_secs(60);

/// Writes `bytes` to `path` so that a reader sees all of them or nothing, and returns the name used:
/// when `path` is taken and `overwrite` is false, `-1`, `-2`, … is added before the extension.
///
/// # Errors
/// Names the file that could not be written.
pub fn save(bytes: &[u8], path: &Path, overwrite: bool) -> Result<PathBuf> {
    if overwrite {
        let written = replace(path, |file| file.write_all(bytes));
        return written.map(|()| path.to_owned()).with_context(|| format!("cannot write {}", path.display()));
    }
    let mut temporary = whole(bytes, path)?;
    for suffix in 0..=MAX_SUFFIX {
        let candidate = with_suffix(path, suffix);
        match named(temporary, &candidate)? {
            None => return Ok(candidate),
            Some(unnamed) => temporary = unnamed,
        }
    }
    bail!("cannot write {}: it and its next {MAX_SUFFIX} names are taken", path.display())
}

/// Writes `bytes` to `path` as [`save`] does, or to no file where the name is taken; whether it was free.
///
/// # Errors
/// Names the file that could not be written.
pub fn save_new(bytes: &[u8], path: &Path) -> Result<bool> {
    Ok(named(whole(bytes, path)?, path)?.is_none())
}

/// Has `write` fill a file that then takes the name `path`, from another file if need be; a failure leaves what was
/// there.
///
/// # Errors
/// What `write` says, or that the file can't be written; the caller names it.
pub fn replace<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
) -> Result<(), E> {
    check_replaceable(path)?;
    let temporary = begun(path)?;
    let mut buffer = BufWriter::with_capacity(1 << 20, temporary.as_file());
    write(&mut buffer)?;
    buffer.flush()?;
    drop(buffer);
    // What came there meanwhile.
    check_replaceable(path)?;
    temporary.persist(path).map_err(|failed| failed.error)?;
    Ok(())
}

/// Refuses what a rename would replace by a file: a device, a pipe, a folder.
///
/// # Errors
/// When something that is no regular file has the name `path`.
pub fn check_replaceable(path: &Path) -> io::Result<()> {
    match path.metadata() {
        Ok(target) if !target.is_file() => Err(io::Error::other("it is not a regular file")),
        _ => Ok(()),
    }
}

/// Has `fill` make the content of a folder that then takes the name `path`, where nothing or an empty folder is.
///
/// # Errors
/// What `fill` says, or that the folder can't be made; the caller names it.
pub fn save_folder<E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let made = Scratch::new(path, 0o777)?;
    fill(made.path())?;
    fs::rename(made.path(), path)?;
    // It has another name by now, so there is nothing to clean up.
    let _ = made.folder.keep();
    Ok(())
}

/// A folder beside a file, for what is of use only while something runs; removed when dropped, and [`sweep`] removes
/// what a killed process left.
pub struct Scratch {
    folder: TempDir,
    _held: Option<File>,
}

impl Scratch {
    /// # Errors
    /// When the folder of `path` takes no more.
    pub fn beside(path: &Path) -> io::Result<Self> {
        Self::new(path, 0o700)
    }

    fn new(path: &Path, mode: u32) -> io::Result<Self> {
        let folder = sibling(mode).tempdir_in(folder_of(path))?;
        // As for files: whoever sweeps can tell that this process lives.
        let held = File::open(folder.path()).ok();
        let _ = held.as_ref().map(File::try_lock);
        Ok(Self { folder, _held: held })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A temporary file beside `path` that holds `bytes`.
fn whole(bytes: &[u8], path: &Path) -> Result<NamedTempFile> {
    let write = || -> io::Result<NamedTempFile> {
        let mut temporary = begun(path)?;
        // Not through the wrapper, whose errors name a file that nobody knows.
        temporary.as_file_mut().write_all(bytes)?;
        Ok(temporary)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// An empty temporary file beside `path`.
fn begun(path: &Path) -> io::Result<NamedTempFile> {
    let temporary = sibling(0o666).tempfile_in(folder_of(path))?;
    // The lock tells that a living process owns the file; not every file system has locks.
    let _ = temporary.as_file().try_lock();
    Ok(temporary)
}

/// Gives the file its name, or gives it back where the name is taken.
fn named(temporary: NamedTempFile, path: &Path) -> Result<Option<NamedTempFile>> {
    match temporary.persist_noclobber(path) {
        Ok(_) => Ok(None),
        Err(failed) if failed.error.kind() == ErrorKind::AlreadyExists => Ok(Some(failed.file)),
        Err(failed) => Err(failed.error).with_context(|| format!("cannot write {}", path.display())),
    }
}

/// Removes the temporary files and folders that killed processes left in `folder`, never one that a living process
/// writes: those are locked, and young where locks mean nothing. Returns how many.
pub fn sweep(folder: &Path) -> usize {
    let abandoned = |entry: &fs::DirEntry| {
        let Ok(found) = entry.metadata() else { return false };
        let age = found.modified().ok().and_then(|time| time.elapsed().ok());
        // A link or a pipe of such a name is none of ours.
        let opened = || if found.is_dir() { File::open(entry.path()) } else { open(&entry.path()) };
        (found.is_file() || found.is_dir())
            && age.is_some_and(|age| age > ABANDONED)
            && opened().is_ok_and(|file| file.try_lock().is_ok())
    };
    let remove = |entry: &fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
        _ => fs::remove_file(entry.path()),
    };
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(TEMPORARY.0)
                && name.ends_with(TEMPORARY.1)
                && abandoned(entry)
                && remove(entry).is_ok()
        })
        .count()
}

/// Why no file can be made in `folder`, if none can.
pub fn unusable_folder(folder: &Path) -> Option<io::Error> {
    match folder.metadata() {
        Err(error) => Some(error),
        Ok(found) if !found.is_dir() => Some(ErrorKind::NotADirectory.into()),
        Ok(_) => tempfile::tempfile_in(folder).err(),
    }
}

/// The folder a file lies in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Temporary files are private by default; what is written here is an ordinary file or folder, as the umask says.
fn sibling(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

/// `apple.png`, `apple-1.png`, `apple-2.png`, …
pub fn with_suffix(path: &Path, suffix: u32) -> PathBuf {
    if suffix == 0 {
        return path.to_owned();
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{suffix}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a file look as if it had not been written to for long.
    fn age(path: &Path) {
        let long_ago = std::time::SystemTime::now() - 2 * ABANDONED;
        File::open(path).unwrap().set_modified(long_ago).unwrap();
    }

    #[test]
    fn only_what_nobody_writes_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in [".pochade-old.tmp", ".pochade-young.tmp", ".pochade-held.tmp", "other.tmp"] {
            fs::write(at(name), "x").unwrap();
        }
        for name in [".pochade-folder.tmp", ".pochade-held-folder.tmp"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("file"), "x").unwrap();
        }
        let held =
            [".pochade-held.tmp", ".pochade-held-folder.tmp"].map(|name| File::open(at(name)).unwrap());
        for name in [".pochade-old.tmp", ".pochade-folder.tmp", "other.tmp"] {
            age(&at(name));
        }
        for (file, name) in held.iter().zip([".pochade-held.tmp", ".pochade-held-folder.tmp"]) {
            file.try_lock().unwrap();
            age(&at(name));
        }
        assert_eq!(sweep(folder.path()), 2);
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(
            left,
            [".pochade-held-folder.tmp", ".pochade-held.tmp", ".pochade-young.tmp", "other.tmp"]
        );
    }

    #[cfg(unix)]
    #[test]
    fn pipes_links_and_devices_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let pipe = at(".pochade-pipe.tmp");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        fs::write(at("victim"), "mine").unwrap();
        age(&at("victim"));
        std::os::unix::fs::symlink(at("victim"), at(".pochade-link.tmp")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at(".pochade-device.tmp")).unwrap();
        assert_eq!(sweep(folder.path()), 0);
        std::os::unix::fs::symlink("/dev/null", at("null")).unwrap();
        for path in [pipe, at("null"), folder.path().to_owned()] {
            let message = format!("{:#}", save(b"x", &path, true).unwrap_err());
            assert!(message.contains("not a regular file"), "{message}");
            assert!(path.exists() && !path.is_file());
        }
        // A link to a file is replaced, not what it leads to.
        save(b"new", &at(".pochade-link.tmp"), true).unwrap();
        assert_eq!(fs::read_to_string(at("victim")).unwrap(), "mine");
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "old").unwrap();
        let failed = |file: &mut BufWriter<&File>| -> io::Result<()> {
            file.write_all(b"new")?;
            Err(io::Error::other("no"))
        };
        assert!(replace(&path, failed).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        let full = |inside: &Path| -> io::Result<()> {
            fs::write(inside.join("a"), "x")?;
            Err(io::Error::other("no"))
        };
        assert!(save_folder(&folder.path().join("y"), full).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        save_folder(&folder.path().join("y"), |inside| fs::write(inside.join("a"), "x")).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("y/a")).unwrap(), "x");
    }
}
