//! Weights as kernels read them, mapped from a file beside the model's; writing it is `prepacking`'s.

#![allow(unsafe_code, reason = "a file in memory; each block says why it is sound")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::file::TensorFile;
use super::header::Header;
use crate::files;
use crate::kernels::{Lender, LentBytes};

/// The header's key whose presence makes a safetensors file one of packed weights.
pub const KEY: &str = "pochade-packed";

/// What weights were packed from and for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    version: String,
    /// What the kernels call the way in which they are packed.
    layout: String,
    /// Bytes of the model's file.
    length: u64,
    /// When that was last written to, in nanoseconds since 1970.
    modified: u64,
}

impl Source {
    /// Of the file that is open, whatever has its name by now.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn of(model: &TensorFile, layout: String) -> io::Result<Self> {
        let metadata = model.stat()?;
        let since = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let modified = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Ok(Self { version: env!("CARGO_PKG_VERSION").to_owned(), layout, length: metadata.len(), modified })
    }
}

/// Where the weights of the file `model`, packed for the kernels called `kernel`, belong.
pub fn path(model: &Path, kernel: &str) -> PathBuf {
    let mut path = model.as_os_str().to_owned();
    path.push(format!(".{kernel}.packed"));
    path.into()
}

/// Whether the file at `path` is one of packed weights, of whatever model.
pub fn is_packed(path: &Path) -> bool {
    read(path).is_ok()
}

/// A file's header, if it is one of packed weights, and the file.
fn read(path: &Path) -> Result<(Header, Source, File)> {
    let file = files::open(path)?;
    let header = Header::read(&mut BufReader::new(&file), file.metadata()?.len())?;
    let text = header.metadata.get(KEY).context("it holds no packed weights")?;
    let source = serde_json::from_str(text).context("its pochade header is damaged")?;
    Ok((header, source, file))
}

/// A model's packed weights.
pub struct Prepacked {
    map: Arc<Map>,
    weights: HashMap<String, Parts>,
}

/// One weight's kind, and where its parts are.
struct Parts {
    kind: String,
    ranges: Vec<Range<usize>>,
}

impl Prepacked {
    /// Opens what is at `path` if it was made of the file `model` as that is, for this layout.
    ///
    /// # Errors
    /// Says in what it differs, or what is wrong with it.
    pub fn open(path: &Path, model: &TensorFile, layout: String) -> Result<Self> {
        let (header, found, file) = read(path)?;
        let expected = Source::of(model, layout)?;
        ensure!(
            (found.length, found.modified) == (expected.length, expected.modified),
            "it was made of another version of the model"
        );
        ensure!(found == expected, "it was made by another version of pochade");
        let map = Map::new(&file)?;
        let mut weights: HashMap<String, Parts> = HashMap::new();
        // In the order of the parts' numbers, which have as many digits.
        for (name, entry) in header.entries {
            let mut fields = name.rsplitn(3, '|');
            let (Some(_), Some(kind), Some(weight)) = (fields.next(), fields.next(), fields.next()) else {
                bail!("it has a part of no weight, '{name}'")
            };
            ensure!(entry.bytes.end <= map.0.len(), "it was cut short meanwhile");
            let parts = weights.entry(weight.to_owned());
            parts
                .or_insert_with(|| Parts { kind: kind.to_owned(), ranges: Vec::new() })
                .ranges
                .push(entry.bytes);
        }
        Ok(Self { map: Arc::new(map), weights })
    }

    /// The kind and parts of the weight called `name`.
    pub fn parts(&self, name: &str) -> Option<(&str, Vec<LentBytes>)> {
        let Parts { kind, ranges } = self.weights.get(name)?;
        let lent = ranges.iter().map(|range| LentBytes::new(self.map.clone(), range.clone()));
        Some((kind, lent.collect()))
    }
}

/// A file in memory: the system reads what is looked at, and shares it with other processes.
struct Map(Mmap);

impl Map {
    fn new(file: &File) -> io::Result<Self> {
        // SAFETY: nobody writes to a file of this kind once it has its name; it is replaced by another one. Whoever
        // did all the same would change numbers, which may be any, or cut the file, which ends the process.
        unsafe { Mmap::map(file) }.map(Self)
    }
}

impl Lender for Map {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Pages that nobody needs count as memory of this process no longer; the system may still keep them.
    #[cfg_attr(not(unix), expect(unused_variables))]
    fn returned(&self, range: &Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY: the pages are those of a file that this process only reads: looked at again, they are the same.
            let _ = unsafe {
                self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
    }
}
