//! Finding models that have been pulled: in the Hub's cache, and as quantized files in a folder of our own.

use std::fs;
use std::path::{Path, PathBuf};

use super::cache::{self, Cache, Repository};
use super::environment;
use super::error::{Error, ErrorKind, Result};
use super::hash;
use super::id::{ModelId, is_commit};
use super::info::Hash;
use crate::files;

/// The folders a diffusers model can't do without.
const COMPONENTS: [&str; 3] = ["unet", "vae", "text_encoder"];

/// A model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    pub id: ModelId,
    pub commit: String,
    /// What the model is called in pictures' metadata.
    pub name: String,
    /// As it was fetched: a diffusers folder or a single file.
    pub source: Option<PathBuf>,
    /// The quantized file made from it.
    pub native: Option<PathBuf>,
}

impl Pulled {
    /// What is to be opened: the quantized file if there is one.
    pub fn path(&self) -> &Path {
        self.native.as_deref().or(self.source.as_deref()).expect("a model that is found is somewhere")
    }
}

/// The quantized files: `models--org--name/COMMIT/NAME-int8.safetensors`, each with its hash beside it in the
/// form that `sha256sum -c` reads.
#[derive(Debug, Clone)]
pub struct Natives {
    folder: PathBuf,
}

const SUFFIX: &str = "-int8.safetensors";

/// Bytes of the longest model card that is read.
const LARGEST_CARD: u64 = 1 << 20;

impl Natives {
    /// The folder the environment names.
    ///
    /// # Errors
    /// When there is neither a variable nor a home for it.
    pub fn from_environment() -> Result<Self> {
        let folder = environment::native_folder()
            .ok_or_else(|| Error::new(ErrorKind::Disk, "no cache folder: set POCHADE_CACHE or HOME"))?;
        Ok(Self { folder })
    }

    fn repository(&self, id: &ModelId) -> PathBuf {
        self.folder.join(Self::name(id))
    }

    /// A repository's folder among the others.
    fn name(id: &ModelId) -> PathBuf {
        hf_hub::Repo::model(id.repository()).folder_name().into()
    }

    /// Where the quantized file of a pulled model lies or is to lie.
    pub fn path(&self, pulled: &Pulled) -> PathBuf {
        self.repository(&pulled.id).join(&pulled.commit).join(format!("{}{SUFFIX}", pulled.name))
    }

    /// Lets one process at a time make a model's file; see [`Repository::lock`]. The file is made in the folder
    /// returned with the lock, which is empty: what an interrupted run has left there goes.
    ///
    /// # Errors
    /// When the folders can't be made.
    pub fn begin(&self, pulled: &Pulled, waiting: impl FnOnce()) -> Result<(Option<fs::File>, PathBuf)> {
        let folder = Self::name(&pulled.id);
        let lock = cache::lock(&self.folder, &folder.join(format!("{}.lock", pulled.commit)), waiting)?;
        let work = folder.join(&pulled.commit).join(".unfinished");
        cache::remove_folder(&self.folder.join(&work))?;
        let work = cache::make_folders(&self.folder, &work)?;
        Ok((lock, work))
    }

    /// Puts a file made in the folder of [`Self::begin`] in its place, and its hash beside it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn finish(&self, pulled: &Pulled, made: &Path) -> Result<PathBuf> {
        let path = self.path(pulled);
        let sum = files::sha256(made).map_err(|error| Error::disk("read", made, &error))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let beside = sum_path(&Self::name(&pulled.id).join(&pulled.commit).join(&name));
        cache::write_whole(&self.folder, &beside, format!("{sum}  {name}\n").as_bytes())?;
        fs::rename(made, &path).map_err(|error| Error::disk("write", &path, &error))?;
        made.parent().map_or(Ok(()), cache::remove_folder)?;
        Ok(path)
    }

    /// Notes which commit a revision stands for, so that the quantized file is found without the rest.
    ///
    /// # Errors
    /// When the note can't be written.
    pub fn set_commit(&self, id: &ModelId, commit: &str) -> Result<()> {
        if is_commit(id.revision()) {
            return Ok(());
        }
        let note = Self::name(id).join("refs").join(id.revision());
        cache::write_whole(&self.folder, &note, commit.as_bytes())
    }

    fn commit(&self, id: &ModelId) -> Option<String> {
        if is_commit(id.revision()) {
            return Some(id.revision().to_owned());
        }
        let note = self.repository(id).join("refs").join(id.revision());
        let text = files::text(&note, cache::LONGEST_NOTE).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// The quantized files of a commit, with the names of their models.
    fn list(&self, id: &ModelId, commit: &str) -> Vec<(String, PathBuf)> {
        let folder = self.repository(id).join(commit);
        let named = |file: String| Some((file.strip_suffix(SUFFIX)?.to_owned(), folder.join(&file)));
        cache::files(&folder).into_iter().filter(|file| !file.contains('/')).filter_map(named).collect()
    }

    /// Removes the quantized files of a commit and returns the bytes freed.
    ///
    /// # Errors
    /// Names what can't be removed.
    pub fn remove(&self, id: &ModelId, commit: &str) -> Result<u64> {
        let repository = self.repository(id);
        let folder = repository.join(commit);
        let freed = cache::size_of(&folder);
        cache::remove_folder(&folder)?;
        for name in cache::files(&repository.join("refs")) {
            let path = repository.join("refs").join(name);
            if files::text(&path, cache::LONGEST_NOTE).is_ok_and(|text| text.trim() == commit) {
                fs::remove_file(&path).map_err(|error| Error::disk("remove", &path, &error))?;
            }
        }
        let is_in_use = |entry: fs::DirEntry| entry.file_name().to_str().is_some_and(is_commit);
        if !fs::read_dir(&repository).into_iter().flatten().flatten().any(is_in_use) {
            cache::remove_folder(&repository)?;
        }
        Ok(freed)
    }
}

fn sum_path(native: &Path) -> PathBuf {
    native.with_extension("safetensors.sha256")
}

/// The model that `id` names, if it has been pulled.
///
/// # Errors
/// When the repository's snapshot holds several models.
pub fn find(id: &ModelId) -> Result<Option<Pulled>> {
    let repository = Cache::from_environment()?.repository(id);
    let natives = Natives::from_environment()?;
    for commit in repository.commit().into_iter().chain(natives.commit(id)) {
        let mut found = at(&repository, &natives, &commit);
        if found.len() > 1 {
            let paths: Vec<String> = found.iter().map(|pulled| pulled.path().display().to_string()).collect();
            return Err(Error::new(ErrorKind::Unusable, format!("{id} holds {} models", paths.len()))
                .advice(format!("pass the path of one of them: {}", paths.join(", "))));
        }
        if let Some(pulled) = found.pop() {
            return Ok(Some(pulled));
        }
    }
    Ok(None)
}

/// The model made of the single file `file` of a repository, if that has been pulled.
///
/// # Errors
/// When the environment names no folders.
pub fn find_file(id: &ModelId, file: &str) -> Result<Option<Pulled>> {
    let repository = Cache::from_environment()?.repository(id);
    let natives = Natives::from_environment()?;
    let Some(commit) = repository.commit() else { return Ok(None) };
    let path = repository.snapshot(&commit).join(file);
    if !path.is_file() {
        return Ok(None);
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut quantized = natives.list(id, &commit).into_iter();
    let native = quantized.find(|(quantized, _)| *quantized == name).map(|(_, native)| native);
    Ok(Some(Pulled { id: id.clone(), commit, name, source: Some(path), native }))
}

/// The commit at which something of a model is on this machine.
///
/// # Errors
/// When the environment names no folders.
pub fn commit(id: &ModelId) -> Result<Option<String>> {
    let repository = Cache::from_environment()?.repository(id);
    let natives = Natives::from_environment()?;
    let is_there =
        |commit: &String| repository.snapshot(commit).is_dir() || !natives.list(id, commit).is_empty();
    Ok(repository.commit().into_iter().chain(natives.commit(id)).find(is_there))
}

/// Every model that has been pulled, here or by Python's tools, at every commit. What only looks as if it could
/// be one is kept if `is_model` says so.
///
/// # Errors
/// When the environment names no folders.
pub fn all(is_model: impl Fn(&Path) -> bool) -> Result<Vec<Pulled>> {
    let cache = Cache::from_environment()?;
    let natives = Natives::from_environment()?;
    let mut repositories = cache.repositories();
    let ours = Cache::repositories_in(&natives.folder);
    for id in ours {
        if !repositories.iter().any(|repository| repository.id().repository() == id.repository()) {
            repositories.push(cache.repository(&id));
        }
    }
    let mut found = Vec::new();
    for repository in repositories {
        let mut commits = repository.commits();
        for entry in fs::read_dir(natives.repository(repository.id())).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_commit(&name) && !commits.contains(&name) {
                commits.push(name);
            }
        }
        for commit in commits {
            let models = at(&repository, &natives, &commit).into_iter();
            found.extend(models.filter(|pulled| match &pulled.source {
                Some(source) => pulled.native.is_some() || source.is_dir() || is_model(source),
                None => true,
            }));
        }
    }
    Ok(found)
}

/// The models of one commit.
fn at(repository: &Repository, natives: &Natives, commit: &str) -> Vec<Pulled> {
    let snapshot = repository.snapshot(commit);
    let mut quantized = natives.list(repository.id(), commit);
    let pulled = |name: String, source: Option<PathBuf>, native: Option<PathBuf>| Pulled {
        id: repository.id().clone(),
        commit: commit.to_owned(),
        name,
        source,
        native,
    };
    let mut native_of = |name: &str| {
        let place = quantized.iter().position(|(quantized, _)| quantized == name)?;
        Some(quantized.remove(place).1)
    };
    if is_diffusers(&snapshot) {
        let name = repository.id().name().to_owned();
        let native = native_of(&name);
        return vec![pulled(name, Some(snapshot), native)];
    }
    let mut found = Vec::new();
    for file in cache::files(&snapshot) {
        let path = snapshot.join(&file);
        let is_weights = file.ends_with(".safetensors") || file.ends_with(".gguf");
        if is_weights && path.is_file() {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let native = native_of(&name);
            found.push(pulled(name, Some(path), native));
        }
    }
    found.extend(quantized.into_iter().map(|(name, native)| pulled(name, None, Some(native))));
    found
}

/// Whether the folder holds weights of every component; a link to nothing is no weight.
fn is_diffusers(folder: &Path) -> bool {
    COMPONENTS.iter().all(|component| {
        let folder = folder.join(component);
        cache::files(&folder).iter().any(|file| file.ends_with(".safetensors") && folder.join(file).is_file())
    })
}

/// The licence stated at the head of the model card that came with the model.
pub fn licence(pulled: &Pulled) -> Option<String> {
    let repository = Cache::from_environment().ok()?.repository(&pulled.id);
    let card = files::text(&repository.snapshot(&pulled.commit).join("README.md"), LARGEST_CARD).ok()?;
    let head = card.trim_start_matches('\u{feff}').strip_prefix("---")?;
    let head = head.split_once("\n---").map(|(head, _)| head)?;
    let entry = |key: &str| {
        let value = head.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let value = value.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.to_owned())
    };
    let licence = entry("license")?;
    if licence == "other" { entry("license_name").or(Some(licence)) } else { Some(licence) }
}

/// Reads every file of a pulled model and names those that are not what was fetched or made. `reading` is told
/// of each; the second answer counts those for which no hash is known.
///
/// # Errors
/// When a file can't be read.
pub fn verify(pulled: &Pulled, reading: &mut dyn FnMut(&Path)) -> Result<(Vec<PathBuf>, usize)> {
    let (mut wrong, mut unknown) = (Vec::new(), 0);
    let mut check = |path: PathBuf, hash: Option<Hash>| -> Result<()> {
        reading(&path);
        match hash {
            None => unknown += 1,
            Some(hash) => match hash::has_hash(&path, &hash) {
                Ok(true) => {}
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::disk("read", &path, &error));
                }
                _ => wrong.push(path),
            },
        }
        Ok(())
    };
    if pulled.source.is_some() {
        let snapshot = Cache::from_environment()?.repository(&pulled.id).snapshot(&pulled.commit);
        for file in cache::files(&snapshot) {
            let path = snapshot.join(file);
            let hash = cache::linked_hash(&path).and_then(|name| Hash::parse(&name));
            check(path, hash)?;
        }
    }
    if let Some(native) = &pulled.native {
        let sum = files::text(&sum_path(native), cache::LONGEST_NOTE).ok();
        let hash = sum.and_then(|text| Hash::parse(text.split_whitespace().next()?));
        check(native.clone(), hash)?;
    }
    Ok((wrong, unknown))
}
