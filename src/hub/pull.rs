//! Pulling a model: what is missing is fetched, checked, and only then made visible in the cache.

use std::fs;
use std::path::Path;

use super::cache::{Cache, Repository};
use super::error::{Error, ErrorKind, Result};
use super::hash;
use super::id::ModelId;
use super::info::{Blob, Sibling};
use super::plan;
use super::pulled::Natives;
use super::transfer::Client;

/// What a pull is about to do.
pub struct Plan<'a> {
    pub commit: &'a str,
    pub licence: Option<&'a str>,
    /// Bytes of all files, and those of them that are not in the cache yet.
    pub total: u64,
    pub missing: u64,
}

/// Is told how a pull goes.
pub trait Watcher {
    fn planned(&mut self, plan: &Plan<'_>);
    /// `size` bytes of `file` are to be fetched, of which `have` are left from a transfer that was cut.
    fn begun(&mut self, file: &str, size: u64, have: u64);
    /// Another process fetches `file`.
    fn waiting(&mut self, file: &str);
    /// `have` bytes of the file that was begun last are on disk.
    fn moved(&mut self, have: u64);
    /// `file` is there and right.
    fn finished(&mut self, file: &str);
    fn note(&mut self, message: &str);
}

/// Fetches what is missing of a model, or of its single file `file`, and returns the commit it is at.
///
/// # Errors
/// When the server, the repository or the disk isn't fit for it; what was fetched up to then is kept.
pub fn pull(
    cache: &Cache,
    client: &Client,
    id: &ModelId,
    file: Option<&str>,
    watcher: &mut dyn Watcher,
) -> Result<String> {
    let info = client.model_info(id)?;
    info.check()?;
    let named = |error: Error| Error { message: format!("{id}: {error}"), ..error };
    let siblings = plan::needed(&info, file).map_err(named)?;
    let repository = cache.repository(id);
    let mut wanted: Vec<(&Sibling, Blob)> = Vec::new();
    for sibling in siblings {
        let described = || client.describe(id, &info.sha, &sibling.name);
        wanted.push((sibling, sibling.blob().map_or_else(described, Ok)?));
    }
    let licence = info.licence();
    // Sizes are the server's to claim.
    let sum = |sizes: &dyn Fn(&Blob) -> u64| {
        wanted.iter().fold(0u64, |sum, (_, blob)| sum.saturating_add(sizes(blob)))
    };
    let missing = sum(&|blob| missing(&repository, blob));
    watcher.planned(&Plan {
        commit: &info.sha,
        licence: licence.as_deref(),
        total: sum(&|blob| blob.size),
        missing,
    });
    check_space(repository.folder(), missing)?;
    for (sibling, blob) in &wanted {
        fetch(&repository, client, &info.sha, &sibling.name, blob, watcher)?;
    }
    // A snapshot is complete from the moment others can see it.
    for (sibling, blob) in &wanted {
        repository.link(&info.sha, &sibling.name, blob.hash.as_str())?;
    }
    repository.set_commit(&info.sha)?;
    Natives::from_environment()?.set_commit(id, &info.sha)?;
    Ok(info.sha)
}

/// Bytes of a file that are still to be fetched.
fn missing(repository: &Repository, blob: &Blob) -> u64 {
    let path = repository.blob(blob.hash.as_str());
    if path.metadata().is_ok_and(|file| file.len() == blob.size) {
        return 0;
    }
    let left = incomplete(&path).symlink_metadata().map_or(0, |file| file.len());
    blob.size.saturating_sub(left)
}

fn incomplete(blob: &Path) -> std::path::PathBuf {
    blob.with_extension("incomplete")
}

fn check_space(folder: &Path, needed: u64) -> Result<()> {
    let there = folder.ancestors().find(|folder| folder.is_dir());
    // A system that does not tell is no reason to stop.
    let Some(free) = there.and_then(|folder| fs4::available_space(folder).ok()) else { return Ok(()) };
    if needed <= free {
        return Ok(());
    }
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let message = format!(
        "{}: {:.0} MB are to be fetched and {:.0} MB are free: nothing was fetched",
        folder.display(),
        megabytes(needed),
        megabytes(free)
    );
    Err(Error::new(ErrorKind::Disk, message)
        .advice("make room, or let HF_HUB_CACHE name a folder on another disk"))
}

/// Makes sure that the content of a file is in the cache.
fn fetch(
    repository: &Repository,
    client: &Client,
    commit: &str,
    name: &str,
    blob: &Blob,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let hash = blob.hash.as_str();
    let path = repository.blob(hash);
    let lock = repository.lock(hash, || watcher.waiting(name))?;
    if path.exists() {
        // Whoever shares the cache could have put it there.
        if hash::matches(&path, blob).map_err(|error| Error::disk("read", &path, &error))? {
            watcher.finished(name);
            return Ok(());
        }
        watcher.note(&format!("{name}: what the cache holds is damaged; fetching it anew"));
        fs::remove_file(&path).map_err(|error| Error::disk("remove", &path, &error))?;
    }
    repository.make_blobs()?;
    // Without a lock, two processes must not append to one file.
    let partial = match lock {
        Some(_) => incomplete(&path),
        None => path.with_extension(format!("{}.incomplete", std::process::id())),
    };
    let left = partial.symlink_metadata().map_or(0, |file| if file.is_file() { file.len() } else { 0 });
    watcher.begun(name, blob.size, left.min(blob.size));
    let place = (repository.id(), commit, name);
    client.fetch(place, blob, &partial, &mut |have| watcher.moved(have))?;
    let is_right = || hash::matches(&partial, blob).map_err(|error| Error::disk("read", &partial, &error));
    let remove = || fs::remove_file(&partial).map_err(|error| Error::disk("remove", &partial, &error));
    let mut right = is_right()?;
    if !right && left > 0 {
        watcher
            .note(&format!("{name}: what was left from an earlier transfer is damaged; fetching all of it"));
        remove()?;
        client.fetch(place, blob, &partial, &mut |have| watcher.moved(have))?;
        right = is_right()?;
    }
    if !right {
        remove()?;
        let message = format!(
            "{name}: the bytes received do not have the hash {hash} that is listed; they were deleted"
        );
        return Err(Error::new(ErrorKind::Network, message)
            .advice("try again; if it stays so, the server or a proxy is broken"));
    }
    fs::rename(&partial, &path).map_err(|error| Error::disk("write", &path, &error))?;
    watcher.finished(name);
    Ok(())
}
