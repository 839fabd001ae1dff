//! What the header of a safetensors or GGUF file says, checked against the file's length before anything is allocated.

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::Metadata;

use super::entry::{Entry, LONGEST};
use super::gguf;

/// The two file formats tensors come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    Safetensors,
    Gguf,
}

/// What a file's header says.
pub struct Header {
    pub entries: BTreeMap<String, Entry>,
    pub metadata: HashMap<String, String>,
    pub container: Container,
}

/// Reads the header of a file given whole, safetensors or GGUF, and returns the number of tensors in it.
///
/// # Errors
/// Says what in the header is wrong, or does not fit the length of `file`.
pub fn check_header(file: &[u8]) -> Result<usize> {
    Header::read(&mut Cursor::new(file), file.len() as u64).map(|header| header.entries.len())
}

impl Header {
    /// Reads the header at the start of `file`, which has `length` bytes.
    ///
    /// # Errors
    /// Says what in the header is wrong, or does not fit the length.
    pub fn read(file: &mut impl Read, length: u64) -> Result<Self> {
        let mut start = [0; 8];
        let read = fill(file, &mut start).context("its header can't be read")?;
        if start[..read].starts_with(gguf::MAGIC) {
            let (entries, metadata) = gguf::read(&mut start[..read].chain(file), length)?;
            return Ok(Self { entries, metadata, container: Container::Gguf });
        }
        let damaged = "its safetensors header is damaged or cut short";
        ensure!(read == start.len(), damaged);
        let count = u64::from_le_bytes(start);
        ensure!(count <= length.saturating_sub(8), damaged);
        ensure!(count <= LONGEST as u64, "its safetensors header has {count} bytes, more than any model's");
        let mut text = Vec::new();
        file.take(count).read_to_end(&mut text).context("its header can't be read")?;
        ensure!(text.len() as u64 == count, damaged);
        let header: Metadata = match serde_json::from_slice(&text) {
            Ok(header) => header,
            Err(error) => bail!("{damaged} ({error})"),
        };
        let data = 8 + text.len();
        ensure!(
            length == (data + header.data_len()) as u64,
            "{damaged} (its tensors end at byte {} of {length})",
            data + header.data_len()
        );
        let entries = header.tensors().into_iter().map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let bytes = data + start..data + end;
            (name, Entry { dtype: info.dtype, packed: None, shape: info.shape.clone(), bytes })
        });
        Ok(Self {
            entries: entries.collect(),
            metadata: header.metadata().clone().unwrap_or_default(),
            container: Container::Safetensors,
        })
    }
}

/// Reads until `buffer` is full or the file ends; how much that was.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut start = Vec::new();
    file.take(buffer.len() as u64).read_to_end(&mut start)?;
    buffer[..start.len()].copy_from_slice(&start);
    Ok(start.len())
}
