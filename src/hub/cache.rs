//! The Hub's cache as Python tools lay it out, `models--org--name/{blobs,refs,snapshots}`; nothing is fetched here.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::environment;
use super::error::{Error, ErrorKind, Result};
use super::id::{ModelId, is_commit};
use crate::files;

/// Bytes of the longest note of which commit a revision stands for, and of a hash beside its file.
pub const LONGEST_NOTE: u64 = 1 << 12;

/// The folder with every repository's folder.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

/// One repository's part of the cache, there or not.
#[derive(Debug, Clone)]
pub struct Repository {
    id: ModelId,
    layout: hf_hub::Cache,
    /// Of all repositories.
    cache: PathBuf,
    folder: PathBuf,
    /// Below the cache's folder.
    locks: PathBuf,
}

impl Cache {
    /// The cache the environment names.
    ///
    /// # Errors
    /// When there is neither a variable nor a home for it.
    pub fn from_environment() -> Result<Self> {
        let folder = environment::cache_folder()
            .ok_or_else(|| Error::new(ErrorKind::Disk, "no cache folder: set HF_HUB_CACHE or HOME"))?;
        Ok(Self { folder })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn repository(&self, id: &ModelId) -> Repository {
        let name = hf_hub::Repo::model(id.repository()).folder_name();
        Repository {
            id: id.clone(),
            layout: hf_hub::Cache::new(self.folder.clone()),
            cache: self.folder.clone(),
            folder: self.folder.join(&name),
            locks: Path::new(".locks").join(name),
        }
    }

    /// Every model repository in the cache, whatever it holds, by name.
    pub fn repositories(&self) -> Vec<Repository> {
        Self::repositories_in(&self.folder).iter().map(|id| self.repository(id)).collect()
    }

    /// The repositories with a folder in `folder`.
    pub fn repositories_in(folder: &Path) -> Vec<ModelId> {
        let id = |name: String| ModelId::parse(&name.strip_prefix("models--")?.replacen("--", "/", 1));
        folder_names(folder).into_iter().filter_map(id).collect()
    }
}

impl Repository {
    pub fn id(&self) -> &ModelId {
        &self.id
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where content with this hash lies or is to lie.
    pub fn blob(&self, hash: &str) -> PathBuf {
        self.folder.join("blobs").join(hash)
    }

    /// Where the files of a commit lie or are to lie.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.model(self.id.repository()).pointer_path(commit)
    }

    /// The commits that have a snapshot.
    pub fn commits(&self) -> Vec<String> {
        folder_names(&self.folder.join("snapshots")).into_iter().filter(|name| is_commit(name)).collect()
    }

    /// The commit that the id's revision stood for when it was last fetched.
    pub fn commit(&self) -> Option<String> {
        let revision = self.id.revision();
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = files::text(&self.folder.join("refs").join(revision), LONGEST_NOTE).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Notes which commit the id's revision stands for.
    ///
    /// # Errors
    /// When the note can't be written.
    pub fn set_commit(&self, commit: &str) -> Result<()> {
        if is_commit(self.id.revision()) {
            return Ok(());
        }
        write_whole(&self.folder, &Path::new("refs").join(self.id.revision()), commit.as_bytes())
    }

    /// Makes `name` in a snapshot stand for the content of `hash`: a relative link as Python's tools make it,
    /// a copy where links can't be made.
    ///
    /// # Errors
    /// When neither is possible.
    pub fn link(&self, commit: &str, name: &str, hash: &str) -> Result<()> {
        let path = self.snapshot(commit).join(name);
        let folder = path.parent().unwrap_or(&path);
        make_folders(&self.folder, folder.strip_prefix(&self.folder).unwrap_or(folder))?;
        let mut target = PathBuf::from("../../");
        target.extend(name.split('/').skip(1).map(|_| ".."));
        target.extend(["blobs", hash]);
        if fs::read_link(&path).is_ok_and(|present| present == target) {
            return Ok(());
        }
        // A link can't replace a file in one step, a rename can.
        let beside = tempfile::Builder::new().prefix(".link-").tempdir_in(folder);
        let beside = beside.map_err(|error| Error::disk("write to", folder, &error))?;
        let made = beside.path().join("file");
        symlink(&target, &made)
            .or_else(|_| fs::copy(self.blob(hash), &made).map(drop))
            .and_then(|()| fs::rename(&made, &path))
            .map_err(|error| Error::disk("write", &path, &error))
    }

    /// Waits until no other process, Python's tools included, writes the content of `hash`, and keeps the
    /// others waiting until the answer is dropped. `waiting` is called first if one does. None where the disk
    /// has no locks.
    ///
    /// # Errors
    /// When the lock's file can't be made.
    pub fn lock(&self, hash: &str, waiting: impl FnOnce()) -> Result<Option<File>> {
        lock(&self.cache, &self.locks.join(format!("{hash}.lock")), waiting)
    }

    /// The folder of all content, which is made if need be.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn make_blobs(&self) -> Result<PathBuf> {
        make_folders(&self.folder, Path::new("blobs"))
    }

    /// Removes the snapshot of `commit`, what only it used, and the names that stood for it; the rest of the
    /// repository too if nothing else is left. Returns the bytes freed.
    ///
    /// # Errors
    /// Names what can't be removed.
    pub fn remove(&self, commit: &str) -> Result<u64> {
        let blobs = |commit: &str| -> BTreeSet<String> {
            let files = files(&self.snapshot(commit)).into_iter();
            files.filter_map(|name| linked_hash(&self.snapshot(commit).join(name))).collect()
        };
        let others: Vec<String> = self.commits().into_iter().filter(|other| other != commit).collect();
        if others.is_empty() {
            let freed = size_of(&self.folder);
            remove_folder(&self.folder)?;
            remove_folder(&self.cache.join(&self.locks))?;
            return Ok(freed);
        }
        let mut unshared = blobs(commit);
        for other in &others {
            unshared = &unshared - &blobs(other);
        }
        let mut freed = 0;
        for blob in unshared.iter().map(|hash| self.blob(hash)) {
            let size = blob.symlink_metadata().map_or(0, |file| file.len());
            match fs::remove_file(&blob) {
                Ok(()) => freed += size,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::disk("remove", &blob, &error)),
            }
        }
        remove_folder(&self.snapshot(commit))?;
        for name in files(&self.folder.join("refs")) {
            let path = self.folder.join("refs").join(name);
            if files::text(&path, LONGEST_NOTE).is_ok_and(|text| text.trim() == commit) {
                fs::remove_file(&path).map_err(|error| Error::disk("remove", &path, &error))?;
            }
        }
        Ok(freed)
    }
}

/// The hash that a snapshot's file carries in the name of the content it links to.
pub fn linked_hash(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

/// Every file below `folder`, links included, by relative name with `/`.
pub fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&entry.path()).into_iter().map(|below| format!("{name}/{below}")));
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

fn folder_names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The bytes of all files below `folder`, links not followed.
pub fn size_of(folder: &Path) -> u64 {
    let size = |name: &String| folder.join(name).symlink_metadata().map_or(0, |file| file.len());
    files(folder).iter().map(size).sum()
}

/// Removes a folder with all that is in it; one that is not there is no error.
///
/// # Errors
/// Names the folder.
pub fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::disk("remove", folder, &error)),
        _ => Ok(()),
    }
}

/// Makes the folders `below` in `base` one by one. None of them may be a link, which whoever shares the cache could
/// have lead elsewhere; `base` itself may.
///
/// # Errors
/// Names the folder that can't be made, or is a link.
pub fn make_folders(base: &Path, below: &Path) -> Result<PathBuf> {
    fs::create_dir_all(base).map_err(|error| Error::disk("make", base, &error))?;
    let mut folder = base.to_owned();
    for part in below {
        folder.push(part);
        let made = match fs::create_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        };
        let found = made.and_then(|()| folder.symlink_metadata());
        if !found.map_err(|error| Error::disk("make", &folder, &error))?.is_dir() {
            let message = format!("{} is no folder, or a link that leads elsewhere", folder.display());
            return Err(Error::new(ErrorKind::Disk, message).advice("remove it, and pull again"));
        }
    }
    Ok(folder)
}

/// Writes the file `below` in `base`, which is there whole or not at all, and its folders if need be.
///
/// # Errors
/// Names the file, or what [`make_folders`] does.
pub fn write_whole(base: &Path, below: &Path, bytes: &[u8]) -> Result<()> {
    make_folders(base, below.parent().unwrap_or(below))?;
    let path = &base.join(below);
    let written = files::replace(path, |file| file.write_all(bytes));
    written.map_err(|error| Error::disk("write", path, &error))
}

/// An exclusive lock on the file `below` in `base`; see [`Repository::lock`].
///
/// # Errors
/// When the file can't be made.
pub fn lock(base: &Path, below: &Path, waiting: impl FnOnce()) -> Result<Option<File>> {
    make_folders(base, below.parent().unwrap_or(below))?;
    let path = &base.join(below);
    let file = files::append(path).map_err(|error| Error::disk("write", path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            waiting();
            file.lock().map_err(|error| Error::disk("lock", path, &error))?;
            Ok(Some(file))
        }
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, path)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
