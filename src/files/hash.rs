//! Hashes of files in hexadecimal, by which they are checked and recognized later.

use std::io::{self, ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::open::open;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// SHA-256 of a file, in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    pub whole: String,
    /// Of a safetensors file what follows the header, which is what AUTOMATIC1111 shows of a LoRA; of any other
    /// file the whole.
    pub data: String,
}

impl Fingerprint {
    /// Of a file that is no safetensors file and in memory already.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let whole = hex(Sha256::digest(bytes).as_slice());
        Self { data: whole.clone(), whole }
    }

    /// Of a safetensors file that is in memory already.
    ///
    /// # Errors
    /// None in practice.
    pub fn of_safetensors(bytes: &[u8]) -> io::Result<Self> {
        Self::of(bytes, bytes.len() as u64)
    }

    /// Of what `source` has, which are `length` bytes.
    fn of(mut source: impl Read, length: u64) -> io::Result<Self> {
        let (mut whole, mut data) = (Sha256::new(), Sha256::new());
        // A safetensors file opens with the length of its header; a file that is shorter than that is all data.
        let mut opening = Vec::new();
        (&mut source).take(8).read_to_end(&mut opening)?;
        whole.update(&opening);
        let mut header = <[u8; 8]>::try_from(opening.as_slice()).map_or(0, u64::from_le_bytes);
        if header.saturating_add(8) > length {
            header = 0;
            data.update(&opening);
        }
        each_chunk(source, |chunk| {
            whole.update(chunk);
            let skipped = header.min(chunk.len() as u64) as usize;
            header -= skipped as u64;
            data.update(&chunk[skipped..]);
        })?;
        Ok(Self { whole: hex(whole.finalize().as_slice()), data: hex(data.finalize().as_slice()) })
    }
}

/// Hashes the file at `path`, reading it once.
///
/// # Errors
/// When it can't be read.
pub fn fingerprint(path: &Path) -> Result<Fingerprint> {
    let hash = || {
        let file = open(path)?;
        let length = file.metadata()?.len();
        Fingerprint::of(file, length)
    };
    hash().with_context(|| format!("can't read {}", path.display()))
}

/// SHA-256 of the file at `path`.
///
/// # Errors
/// When it can't be read.
pub fn sha256(path: &Path) -> io::Result<String> {
    digest(Sha256::new(), open(path)?)
}

/// What `hasher` makes of all that is left in `source`.
///
/// # Errors
/// When it can't be read.
pub fn digest<D: Digest>(mut hasher: D, source: impl Read) -> io::Result<String> {
    each_chunk(source, |chunk| hasher.update(chunk))?;
    Ok(hex(hasher.finalize().as_slice()))
}

fn each_chunk(mut source: impl Read, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match source.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => take(&chunk[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4's example.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn of(bytes: &[u8]) -> Fingerprint {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        assert_eq!(sha256(file.path()).unwrap(), Fingerprint::of_bytes(bytes).whole);
        fingerprint(file.path()).unwrap()
    }

    #[test]
    fn the_header_counts_for_the_whole_alone() {
        let short = of(b"abc");
        assert_eq!((short.whole.as_str(), short.data.as_str()), (ABC, ABC));
        let file = of(b"\x02\0\0\0\0\0\0\0{}abc");
        assert_eq!(file.data, ABC);
        assert_ne!(file.whole, ABC);
        let huge = of(&[0xff; 16]);
        assert_eq!(huge.whole, huge.data);
    }
}
