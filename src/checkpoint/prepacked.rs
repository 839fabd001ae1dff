//! Weights as kernels read them, in a file beside the model's: written once, then mapped instead of read and packed.

#![allow(unsafe_code, reason = "a file in memory; each block says why it is sound")]

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::header::Header;
use super::sizes::Slot;
use super::store;
use super::write_error::WriteError;
use crate::files;
use crate::kernels::{Lender, LentBytes, lent_len};

/// The header's key whose presence makes a safetensors file one of packed weights.
const KEY: &str = "pochade-packed";

/// Where parts begin in the file: at cache lines.
const ALIGNMENT: usize = 64;

/// Who keeps weights as they are packed.
pub trait Keeper: fmt::Debug + Send + Sync {
    /// Hears of the weight called `name`: which `kind` of packed weights it became, and their parts.
    ///
    /// # Errors
    /// When they can't be kept.
    fn keep(&self, name: &str, kind: &str, parts: &[&[u8]]) -> Result<()>;
}

/// What weights were packed from and for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Source {
    version: String,
    /// What the kernels call the way in which they are packed.
    layout: String,
    /// Bytes of the model's file.
    length: u64,
    /// When that was last written to, in nanoseconds since 1970.
    modified: u64,
}

impl Source {
    fn of(model: &Path, layout: String) -> io::Result<Self> {
        let metadata = model.metadata()?;
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
    pub fn open(path: &Path, model: &Path, layout: String) -> Result<Self> {
        let (header, found, file) = read(path)?;
        let expected = Source::of(model, layout)?;
        ensure!(
            (found.length, found.modified) == (expected.length, expected.modified),
            "it was made of another version of the model"
        );
        ensure!(found == expected, "it was made by another version of pochade");
        let mut weights: HashMap<String, Parts> = HashMap::new();
        // In the order of the parts' numbers, which have as many digits.
        for (name, entry) in header.entries {
            let mut fields = name.rsplitn(3, '|');
            let (Some(_), Some(kind), Some(weight)) = (fields.next(), fields.next(), fields.next()) else {
                bail!("it has a part of no weight, '{name}'")
            };
            let parts = weights.entry(weight.to_owned());
            parts
                .or_insert_with(|| Parts { kind: kind.to_owned(), ranges: Vec::new() })
                .ranges
                .push(entry.bytes);
        }
        Ok(Self { map: Arc::new(Map::new(&file)?), weights })
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

/// What a file has of one weight.
#[derive(Debug, PartialEq, Eq)]
struct Planned {
    name: String,
    kind: String,
    /// Bytes of its parts.
    lens: Vec<usize>,
}

impl Planned {
    fn new(name: &str, kind: &str, parts: &[&[u8]]) -> Self {
        let lens = parts.iter().map(|part| part.len()).collect();
        Self { name: name.to_owned(), kind: kind.to_owned(), lens }
    }

    fn slots(&self) -> impl Iterator<Item = Slot> {
        self.lens.iter().enumerate().map(|(number, len)| {
            let name = format!("{}|{}|{number}", self.name, self.kind);
            Slot { name, dtype: Dtype::U8, shape: vec![lent_len(*len)] }
        })
    }
}

/// Says when to give up.
pub type Stopped = Arc<dyn Fn() -> bool + Send + Sync>;

/// Hears how long everything will be.
struct Plan {
    stopped: Stopped,
    planned: Mutex<Vec<Planned>>,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").finish_non_exhaustive()
    }
}

impl Keeper for Plan {
    fn keep(&self, name: &str, kind: &str, parts: &[&[u8]]) -> Result<()> {
        ensure!(!(self.stopped)(), STOPPED);
        lock(&self.planned).push(Planned::new(name, kind, parts));
        Ok(())
    }
}

/// Writes what was planned.
#[derive(Debug)]
struct Writing {
    plan: Arc<Plan>,
    /// How many are written, and where.
    file: Mutex<(usize, BufWriter<File>)>,
}

impl Keeper for Writing {
    fn keep(&self, name: &str, kind: &str, parts: &[&[u8]]) -> Result<()> {
        ensure!(!(self.plan.stopped)(), STOPPED);
        let (written, file) = &mut *lock(&self.file);
        let planned = lock(&self.plan.planned);
        ensure!(
            planned.get(*written) == Some(&Planned::new(name, kind, parts)),
            "tensor '{name}' changed while it was packed"
        );
        *written += 1;
        for part in parts {
            file.write_all(part)?;
            file.write_all(&[0; ALIGNMENT][..lent_len(part.len()) - part.len()])?;
        }
        Ok(())
    }
}

const STOPPED: &str = "stopped";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panicking thread left behind is a file without a name.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the weights of the file `model`, as `pack` hands them to a keeper, to `path`: first to a file beside it, which
/// is then renamed. `pack` is called twice, the first time to learn how long everything is. Returns the file's bytes.
///
/// # Errors
/// When the model can't be read, the file not be written, or `stopped` says so.
pub fn write(
    path: &Path,
    model: &Path,
    layout: String,
    stopped: Stopped,
    pack: &dyn Fn(Arc<dyn Keeper>) -> Result<()>,
) -> Result<u64, WriteError> {
    let source = Source::of(model, layout)?;
    let plan = Arc::new(Plan { stopped: stopped.clone(), planned: Mutex::default() });
    let packing = |keeper: Arc<dyn Keeper>| match pack(keeper) {
        Err(_) if stopped() => Err(WriteError::Stopped),
        Err(error) if error.downcast_ref::<io::Error>().is_some() => Err(WriteError::Disk(error)),
        packed => Ok(packed?),
    };
    packing(plan.clone())?;
    let slots: Vec<Slot> = lock(&plan.planned).iter().flat_map(Planned::slots).collect();
    let source = serde_json::to_string(&source).context("writing the header as JSON")?;
    let names: BTreeMap<&str, &Slot> = slots.iter().map(|slot| (slot.name.as_str(), slot)).collect();
    if names.len() < slots.len() {
        return Err(WriteError::Model(anyhow::anyhow!("the model packs a tensor twice")));
    }
    let data: usize = slots.iter().map(Slot::len).sum();
    let metadata = HashMap::from([(KEY.to_owned(), source)]);
    let header = store::header(slots.into_iter(), metadata, ALIGNMENT)?;
    let length = (size_of::<u64>() + header.len() + data) as u64;
    store::check_space(files::folder_of(path), length).map_err(|error| error.of(path))?;
    let written = files::replace(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        file.flush()?;
        let copy = BufWriter::with_capacity(1 << 20, file.get_ref().try_clone()?);
        let writing = Arc::new(Writing { plan: plan.clone(), file: Mutex::new((0, copy)) });
        packing(writing.clone())?;
        lock(&writing.file).1.flush()?;
        Ok(())
    });
    written.map(|()| length).map_err(|error: WriteError| error.of(path))
}
