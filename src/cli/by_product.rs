//! Pictures made beside a run's results: previews, steps, differences; they replace nothing but their own kind.

use std::path::{Path, PathBuf};

use anyhow::Result;
use image::RgbImage;

use super::exit::Failure;
use super::output;
use crate::{files, png};

/// The text chunk by which they are known again.
const KEYWORD: &str = "Software";
const TEXT: &str = "pochade, beside its results";

/// Writes `picture` over whatever [`check`] let pass.
///
/// # Errors
/// Names the file that can't be written.
pub fn save(picture: &RgbImage, path: &Path) -> Result<PathBuf> {
    files::save(&png::encode(picture, &[(KEYWORD, TEXT.to_owned())])?, path, true)
}

/// Makes sure that by-products may be written to `path`: nothing is there, or an earlier one, or `force` gives
/// leave to overwrite another file. No leave covers the files in `protected`, each under the name it has for the
/// user: what the run reads and what it is to write.
///
/// # Errors
/// Names the file and what is in the way.
pub fn check(path: &Path, force: bool, protected: &[(&str, &Path)]) -> Result<(), Failure> {
    output::check_paths(&[path.to_owned()])?;
    let shown = path.display();
    if let Some((name, _)) = protected.iter().find(|(_, other)| is_same_file(path, other)) {
        return Err(Failure::usage(format!("'{shown}' is also {name}, which this would destroy"))
            .hint("choose another name"));
    }
    if force || path.symlink_metadata().is_err() || is_by_product(path) {
        return Ok(());
    }
    Err(Failure::usage(format!("'{shown}' exists, and is not an earlier preview or difference"))
        .hint("choose another name, or overwrite it with `--force` where there is such a flag"))
}

fn is_by_product(path: &Path) -> bool {
    png::read_header(path).is_ok_and(|header| header.chunks().any(|chunk| chunk == (KEYWORD, TEXT)))
}

/// Whether both names lead to one file, which neither need be there.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    let whole = |path: &Path| {
        path.canonicalize().ok().or_else(|| {
            let folder = files::folder_of(path).canonicalize().ok()?;
            Some(folder.join(path.file_name()?))
        })
    };
    a == b || whole(a).is_some_and(|a| whole(b) == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_their_own_kind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let refused = |name: &str, force, protected: &[(&str, &Path)]| {
            check(&at(name), force, protected).err().map(|failure| failure.error.to_string())
        };
        let picture = RgbImage::new(8, 8);
        save(&picture, &at("old.png")).unwrap();
        std::fs::write(at("text.png"), "mine").unwrap();
        files::save(&png::encode(&picture, &[]).unwrap(), &at("picture.png"), true).unwrap();
        assert_eq!(refused("new.png", false, &[]), None);
        assert_eq!(refused("old.png", false, &[]), None);
        for name in ["text.png", "picture.png"] {
            assert!(refused(name, false, &[]).unwrap().contains("exists"));
            assert_eq!(refused(name, true, &[]), None);
            let other = folder.path().join(".").join(name);
            let protected: &[(&str, &Path)] = &[("the picture to start from", &other)];
            assert!(refused(name, true, protected).unwrap().contains("the picture to start from"));
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("text.png", at("link.png")).unwrap();
            assert!(refused("link.png", false, &[]).unwrap().contains("exists"));
            std::os::unix::fs::symlink("nowhere", at("dangling.png")).unwrap();
            assert!(refused("dangling.png", false, &[]).unwrap().contains("exists"));
        }
        assert!(refused("no/a.png", false, &[]).unwrap().contains("does not exist"));
    }
}
