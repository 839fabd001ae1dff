//! SHA-256 of a file, by which it is recognised later.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::request::Fingerprint;

/// Hashes the file at `path`, reading it once.
///
/// # Errors
/// When it can't be read.
pub fn fingerprint(path: &Path) -> Result<Fingerprint> {
    let read = || -> std::io::Result<Fingerprint> {
        let mut file = File::open(path)?;
        let (mut whole, mut data) = (Sha256::new(), Sha256::new());
        let mut buffer = vec![0; 1 << 20];
        // A safetensors file opens with the length of its header; a file that is shorter than that is all data.
        let mut opening = Vec::new();
        (&mut file).take(8).read_to_end(&mut opening)?;
        whole.update(&opening);
        let mut header = <[u8; 8]>::try_from(opening.as_slice()).map_or(0, u64::from_le_bytes);
        if header.saturating_add(8) > file.metadata()?.len() {
            header = 0;
            data.update(&opening);
        }
        loop {
            let count = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            whole.update(&buffer[..count]);
            let skipped = header.min(count as u64) as usize;
            header -= skipped as u64;
            data.update(&buffer[skipped..count]);
        }
        Ok(Fingerprint { whole: hex(&whole.finalize()), data: hex(&data.finalize()) })
    };
    read().with_context(|| format!("can't read {}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Fingerprint {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        fingerprint(file.path()).unwrap()
    }

    #[test]
    fn the_header_counts_for_the_whole_alone() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let short = of(b"abc");
        assert_eq!((short.whole.as_str(), short.data.as_str()), (abc, abc));
        let file = of(b"\x02\0\0\0\0\0\0\0{}abc");
        assert_eq!(file.data, abc);
        assert_ne!(file.whole, abc);
        let huge = of(&[0xff; 16]);
        assert_eq!(huge.whole, huge.data);
    }
}
