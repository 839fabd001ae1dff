//! Writing a model's weights as kernels read them; reading them is `prepacked`'s.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use safetensors::Dtype;

use super::file::TensorFile;
use super::prepacked::{KEY, Source};
use super::sizes::Slot;
use super::store;
use super::write_error::WriteError;
use crate::files;
use crate::kernels::lent_len;

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
    model: &TensorFile,
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
    let names: BTreeSet<&str> = slots.iter().map(|slot| slot.name.as_str()).collect();
    if names.len() < slots.len() {
        return Err(WriteError::Model(anyhow!("the model packs a tensor twice")));
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
