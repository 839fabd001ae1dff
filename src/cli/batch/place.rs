//! Where an item's picture goes: names that stay inside their folder, and folders that can be written.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::cli::output;
use crate::cli::template::{Template, Values};

/// A folder and the names in it.
pub struct Place<'a> {
    folder: &'a Path,
    name: Template,
    allow_absolute: bool,
}

impl<'a> Place<'a> {
    /// # Errors
    /// Says what is wrong with the pattern.
    pub fn new(folder: &'a Path, pattern: &str, allow_absolute: bool) -> Result<Self> {
        output::check_format(Path::new(pattern))?;
        Ok(Self { folder, name: Template::parse(pattern)?, allow_absolute })
    }

    /// The path of one item's picture, named by its own pattern if it has one.
    ///
    /// # Errors
    /// Says why the name is none that can be used.
    pub fn path(&self, own: Option<&str>, values: &Values<'_>) -> Result<PathBuf> {
        let own = own.map(|pattern| -> Result<Template> {
            output::check_format(Path::new(pattern))?;
            Template::parse(pattern).context("output")
        });
        let own = own.transpose()?;
        let name = own.as_ref().unwrap_or(&self.name);
        ensure!(
            !name.names_id() || !values.id.is_empty(),
            "the file name has {{id}}, and the line has no id"
        );
        let name = name.fill(values);
        match inside(&name) {
            Ok(inside) => Ok(self.folder.join(inside)),
            Err(_) if self.allow_absolute && ends_as_file(&name) => Ok(self.folder.join(&name)),
            Err(error) => Err(error),
        }
        .and_then(|path| output::check_lengths(&path).map(|()| path))
    }
}

fn ends_as_file(name: &str) -> bool {
    !name.contains('\0') && !name.ends_with(['/', '\\']) && Path::new(name).file_name().is_some()
}

/// A name that leads no way out of its folder on any system, without the parts that mean nothing.
fn inside(name: &str) -> Result<PathBuf> {
    let shown = name.escape_debug();
    if name.chars().any(char::is_control) {
        bail!("the file name '{shown}' holds a control character");
    }
    let drive = name.as_bytes().get(1) == Some(&b':') && name.as_bytes()[0].is_ascii_alphabetic();
    let mut path = PathBuf::new();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                bail!("the file name '{shown}' leads out of the output folder (--allow-absolute allows it)")
            }
        }
    }
    if drive || name.contains('\\') {
        bail!(
            "the file name '{shown}' leads out of the output folder on Windows (--allow-absolute allows it)"
        );
    }
    if path.as_os_str().is_empty() || name.ends_with('/') {
        bail!("the file name '{shown}' names no file");
    }
    Ok(path)
}

/// Makes sure that pictures can be written to `folder`, which is made when `create` says so.
///
/// # Errors
/// Names the folder and what is wrong with it.
pub fn check_folder(folder: &Path, create: bool) -> Result<()> {
    let shown = folder.display();
    if create {
        std::fs::create_dir_all(folder).with_context(|| format!("output folder '{shown}' can't be made"))?;
    }
    let existing = folder.ancestors().find(|folder| folder.as_os_str().is_empty() || folder.exists());
    let existing = existing.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(existing.is_dir(), "output folder '{shown}': {} is not a folder", existing.display());
    tempfile::tempfile_in(existing)
        .with_context(|| format!("output folder '{shown}' can't be written to"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(pattern: &str, id: &str, allow_absolute: bool) -> Result<PathBuf> {
        let place = Place::new(Path::new("out"), "{index:05}.png", allow_absolute).unwrap();
        place.path(Some(pattern), &Values { seed: 1, index: 2, slug: "s", model: "m", id })
    }

    #[test]
    fn names_stay_inside() {
        for (pattern, id, expected) in [
            ("a.png", "", "out/a.png"),
            ("./a//b/./{id}.png", "x", "out/a/b/x.png"),
            ("{id}.png", "a/b", "out/a/b.png"),
            ("{id}", "...", "out/..."),
            ("{index:03}-{seed}.png", "", "out/002-1.png"),
        ] {
            assert_eq!(path(pattern, id, false).unwrap(), Path::new(expected), "{pattern}");
        }
    }

    #[test]
    fn ways_out_are_refused() {
        for (pattern, id) in [
            ("../a.png", ""),
            ("a/../../b.png", ""),
            ("a/../b.png", ""),
            ("/etc/a.png", ""),
            ("{id}/a.png", ".."),
            ("{id}.png", "/a"),
            ("{id}", "C:/a.png"),
            ("C:a.png", ""),
            ("..\\a.png", ""),
            ("a\\b.png", ""),
            ("\\\\server\\share\\a.png", ""),
        ] {
            let message = path(pattern, id, false).unwrap_err().to_string();
            assert!(message.contains("leads out of the output folder"), "{pattern}: {message}");
            assert!(path(pattern, id, true).is_ok(), "{pattern}");
        }
        assert_eq!(path("/tmp/a.png", "", true).unwrap(), Path::new("/tmp/a.png"));
    }

    #[test]
    fn names_that_are_none_are_refused_in_any_case() {
        for allow in [false, true] {
            for pattern in ["a/", "..", ".", "/", "a\0b.png"] {
                assert!(path(pattern, "", allow).is_err(), "{pattern:?}");
            }
            assert!(path("{id}.png", "", allow).unwrap_err().to_string().contains("has no id"));
            assert!(path("a.jpg", "", allow).unwrap_err().to_string().contains("only PNG"));
            assert!(path("{ix}.png", "", allow).is_err());
        }
        assert!(path("a\nb.png", "", false).unwrap_err().to_string().contains("control"));
    }

    #[test]
    fn names_no_file_can_have_are_refused() {
        let long = "x".repeat(256);
        for allow in [false, true] {
            let refused = |pattern: &str, id: &str| path(pattern, id, allow).unwrap_err().to_string();
            assert!(refused("{id}.png", &long[4..]).contains("256 bytes"));
            assert!(refused("{id}/a.png", &long).contains("256 bytes"));
            assert!(refused("{id}.png", &"é".repeat(126)).contains("256 bytes"));
            assert!(refused("{id}.png", &"a/".repeat(2100)).contains("most is 4095"));
            assert!(path("{id}.png", &long[5..], allow).is_ok());
        }
    }

    #[test]
    fn folders_are_checked_for_real() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b");
        check_folder(&deep, false).unwrap();
        assert!(!deep.exists());
        check_folder(&deep, true).unwrap();
        assert!(deep.is_dir());
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for create in [false, true] {
            assert!(check_folder(&file, create).is_err());
            assert!(check_folder(&file.join("a"), create).is_err());
        }
    }
}
