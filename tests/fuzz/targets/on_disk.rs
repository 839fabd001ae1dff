//! Bytes as a file in memory, for readers that take paths.

use std::io::Write;

use tempfile::NamedTempFile;

pub fn on_disk(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new_in("/dev/shm").expect("a file in memory");
    file.write_all(bytes).expect("room in memory");
    file
}
