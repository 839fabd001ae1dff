//! What a calibration has come to, kept in a folder, so that one that was interrupted goes on where it was.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use candle_core::{Device, Tensor, safetensors};

use crate::files;

/// The file that says which calibration the others belong to.
const WHICH: &str = "calibration.txt";

/// Its bytes at the most.
const LONGEST: u64 = 4096;

/// Bytes of any other file at the most: eight and four bits of all layers of a large model, at once.
const LARGEST: u64 = 16 << 30;

/// Tensors by name.
pub(super) type Tensors = HashMap<String, Tensor>;

/// That a calibration could not be kept, which is the disk's fault and not the model's.
#[derive(Debug)]
pub struct Unkept(PathBuf);

impl fmt::Display for Unkept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the calibration can't be kept in {}", self.0.display())
    }
}

/// Keeps what has been drawn and learned.
#[derive(Debug, Default)]
pub struct Kept {
    folder: Option<PathBuf>,
}

impl Kept {
    /// Keeps nothing.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// What is kept in the folder at `path`, if there is one.
    pub fn in_folder(path: &Path) -> Self {
        Self { folder: path.join(WHICH).is_file().then(|| path.to_owned()) }
    }

    /// Keeps all in the folder at `path`, which is made if need be; what another calibration than `which` left there is
    /// removed. Tells whether something of this one is there.
    ///
    /// # Errors
    /// When something else is there, or the folder can't be made.
    pub fn open(path: &Path, which: &str) -> Result<(Self, bool)> {
        let named = || format!("{}, where a calibration is kept to go on from", path.display());
        match fs::create_dir(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error).with_context(named),
            _ => (),
        }
        let kept = Self { folder: Some(path.to_owned()) };
        files::sweep(path);
        let found = names(path).with_context(named)?;
        let mine = path.join(WHICH);
        if found.iter().any(|name| name == WHICH) {
            if files::text(&mine, LONGEST).is_ok_and(|text| text.trim_end() == which) {
                return Ok((kept, found.len() > 1));
            }
            kept.clear().with_context(named)?;
        } else if !found.is_empty() {
            bail!("{} is taken, and holds no calibration: move it, or write elsewhere", path.display());
        }
        files::save(format!("{which}\n").as_bytes(), &mine, true)?;
        Ok((kept, false))
    }

    /// What was kept under `name`, if anything.
    ///
    /// # Errors
    /// When the file is damaged.
    pub(super) fn load(&self, name: &str) -> Result<Option<Tensors>> {
        let Some(path) = self.path(name) else { return Ok(None) };
        if !path.exists() {
            return Ok(None);
        }
        let read = files::bytes(&path, LARGEST)
            .and_then(|bytes| Ok(safetensors::load_buffer(&bytes, &Device::Cpu)?));
        let path = path.display();
        read.with_context(|| format!("{path} is damaged: remove it, and the calibration goes on without"))
            .map(Some)
    }

    /// Keeps `tensors` under `name`.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(super) fn save(&self, name: &str, tensors: impl FnOnce() -> Result<Tensors>) -> Result<()> {
        let Some(path) = self.path(name) else { return Ok(()) };
        let bytes = ::safetensors::serialize(tensors()?, None).context("writing what has been learned")?;
        files::save(&bytes, &path, true).with_context(|| Unkept(files::folder_of(&path).to_owned()))?;
        Ok(())
    }

    /// Forgets all, since the calibration's file has been written.
    ///
    /// # Errors
    /// When the folder can't be removed.
    pub fn finish(self) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        self.clear()
            .and_then(|()| fs::remove_dir(folder))
            .with_context(|| format!("cannot remove {}, which is of no use any more", folder.display()))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{name}.safetensors")))
    }

    /// Removes what is a calibration's.
    fn clear(&self) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let mut found = names(folder)?;
        // Last, so that what is left after a kill is still known.
        found.sort_by_key(|name| name == WHICH);
        for name in found {
            if name == WHICH || name.ends_with(".safetensors") {
                fs::remove_file(folder.join(name))?;
            }
        }
        Ok(())
    }
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Takes the tensor called `name` out.
///
/// # Errors
/// When there is none.
pub(super) fn take(tensors: &mut Tensors, name: &str) -> Result<Tensor> {
    tensors.remove(name).with_context(|| format!("'{name}' is missing"))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn one() -> Result<Tensors> {
        Ok(HashMap::from([("a".to_owned(), Tensor::new(&[1f32, 2.0], &Device::Cpu)?)]))
    }

    #[test]
    fn what_is_kept_is_there_until_all_is_done() {
        let outside = TempDir::new().unwrap();
        let path = outside.path().join("model.learning");
        let (kept, goes_on) = Kept::open(&path, "this").unwrap();
        assert!(!goes_on);
        assert!(kept.load("run-0").unwrap().is_none());
        kept.save("run-0", one).unwrap();
        let (kept, goes_on) = Kept::open(&path, "this").unwrap();
        assert!(goes_on);
        let found = kept.load("run-0").unwrap().unwrap();
        assert_eq!(found["a"].to_vec1::<f32>().unwrap(), [1.0, 2.0]);
        kept.finish().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn another_calibration_begins_anew() {
        let outside = TempDir::new().unwrap();
        let (kept, _) = Kept::open(outside.path(), "this").unwrap();
        kept.save("run-0", one).unwrap();
        let (kept, goes_on) = Kept::open(outside.path(), "that").unwrap();
        assert!(!goes_on && kept.load("run-0").unwrap().is_none());
    }

    #[test]
    fn what_is_not_a_calibrations_stays() {
        let outside = TempDir::new().unwrap();
        fs::write(outside.path().join("thesis.txt"), "mine").unwrap();
        assert!(Kept::open(outside.path(), "this").unwrap_err().to_string().contains("is taken"));
        assert_eq!(fs::read_to_string(outside.path().join("thesis.txt")).unwrap(), "mine");
        let file = outside.path().join("thesis.txt");
        assert!(Kept::open(&file, "this").is_err());
    }

    #[test]
    fn damage_is_named() {
        let outside = TempDir::new().unwrap();
        let (kept, _) = Kept::open(outside.path(), "this").unwrap();
        kept.save("run-0", one).unwrap();
        fs::write(outside.path().join("run-0.safetensors"), "short").unwrap();
        let error = kept.load("run-0").unwrap_err().to_string();
        assert!(error.contains("run-0.safetensors is damaged"), "{error}");
    }

    #[test]
    fn nothing_can_be_kept() {
        let kept = Kept::nothing();
        kept.save("run-0", || bail!("never asked for")).unwrap();
        assert!(kept.load("run-0").unwrap().is_none());
        kept.finish().unwrap();
    }
}
