//! Whether a file is what the Hub promised: size and hash, read once.

use std::io;
use std::path::Path;

use sha1::{Digest, Sha1};

use super::info::{Blob, Hash};
use crate::files;

/// Whether the file at `path` has this size and hash.
///
/// # Errors
/// When it can't be read.
pub fn matches(path: &Path, blob: &Blob) -> io::Result<bool> {
    if path.metadata()?.len() != blob.size {
        return Ok(false);
    }
    has_hash(path, &blob.hash)
}

/// Whether the file at `path` has this hash.
///
/// # Errors
/// When it can't be read.
pub fn has_hash(path: &Path, hash: &Hash) -> io::Result<bool> {
    Ok(match hash {
        Hash::Sha256(expected) => files::sha256(path)? == *expected,
        Hash::Git(expected) => git(path)? == *expected,
    })
}

/// The hash git gives a file's content.
fn git(path: &Path) -> io::Result<String> {
    let file = files::open(path)?;
    let hasher = Sha1::new_with_prefix(format!("blob {}\0", file.metadata()?.len()));
    files::digest(hasher, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_hashes_are_the_published_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-4's example, and `printf abc | git hash-object --stdin`.
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let git = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";
        for hash in [sha256, git].map(|hash| Hash::parse(hash).unwrap()) {
            assert!(matches(&path, &Blob { size: 3, hash: hash.clone() }).unwrap());
            assert!(!matches(&path, &Blob { size: 4, hash }).unwrap());
        }
        let other = Hash::parse(&sha256.replace('a', "b")).unwrap();
        assert!(!matches(&path, &Blob { size: 3, hash: other }).unwrap());
    }
}
