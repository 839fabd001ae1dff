//! Tensors read from safetensors and GGUF files when they are asked for, and found by name, float or int8; what the names mean is decided elsewhere.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::{Bound, Range};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::GgmlDType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};

use super::gguf;
use super::lora::Merge;
use super::random::RandomTensors;
use crate::quantize::{QuantizedWeight, Weight};

/// Where the bytes of a weight file are: on disk, or part of the binary.
enum Storage {
    File(Mutex<File>),
    Embedded(&'static [u8]),
}

impl Storage {
    /// Reads on demand rather than through a map: mapped pages would count as memory of ours as long as the
    /// model is open, and a file that is cut meanwhile is an error here, not a signal.
    fn read(&self, range: Range<usize>) -> std::io::Result<Cow<'_, [u8]>> {
        match self {
            Self::Embedded(bytes) => Ok(Cow::Borrowed(&bytes[range])),
            Self::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let mut bytes = Vec::with_capacity(range.len());
                file.seek(SeekFrom::Start(range.start as u64))?;
                let read = (&mut *file).take(range.len() as u64).read_to_end(&mut bytes)?;
                if read < range.len() {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                Ok(Cow::Owned(bytes))
            }
        }
    }
}

/// What a header says of one tensor.
#[derive(Debug)]
pub(super) struct Entry {
    /// U8 for values in blocks.
    pub dtype: Dtype,
    /// How GGUF packs values, if it does.
    pub blocks: Option<GgmlDType>,
    pub shape: Vec<usize>,
    /// Of the whole file.
    pub bytes: Range<usize>,
}

/// One safetensors or GGUF file whose header has been checked against its length.
pub struct TensorFile {
    storage: Storage,
    entries: BTreeMap<String, Entry>,
    metadata: HashMap<String, String>,
    container: Container,
}

/// The two file formats tensors come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    Safetensors,
    Gguf,
}

/// Reads the header of a file given whole, safetensors or GGUF, and returns the number of tensors in it.
///
/// # Errors
/// Says what in the header is wrong, or does not fit the length of `file`.
pub fn check_header(file: &[u8]) -> Result<usize> {
    Header::parse(file).map(|header| header.entries.len())
}

impl TensorFile {
    /// Opens `path` and reads its header.
    ///
    /// # Errors
    /// Names the file, and what in its header is wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("can't open {}", path.display()))?;
        // SAFETY: the map is private, read-only and gone when this function returns. Another process that
        // cuts the file in that moment would raise SIGBUS.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("can't read {}", path.display()))?;
        let header = Header::parse(&map).with_context(|| format!("{} is not usable", path.display()))?;
        Ok(Self::new(Storage::File(Mutex::new(file)), header))
    }

    /// Reads the header of a file that is part of the binary.
    ///
    /// # Errors
    /// Says what in the header is wrong.
    pub fn embedded(bytes: &'static [u8]) -> Result<Self> {
        let header = Header::parse(bytes).context("the embedded model is not usable")?;
        Ok(Self::new(Storage::Embedded(bytes), header))
    }

    fn new(storage: Storage, Header { entries, metadata, container }: Header) -> Self {
        Self { storage, entries, metadata, container }
    }

    pub fn container(&self) -> Container {
        self.container
    }

    /// The header's free-form text entries.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The shape of the tensor stored as `name`.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The tensor called `name`, if there is one.
    pub fn view(&self, name: &str) -> Option<TensorView<'_>> {
        let Entry { dtype, blocks, shape, bytes } = self.entries.get(name)?;
        Some(TensorView { dtype: *dtype, blocks: *blocks, shape, file: self, range: bytes.clone() })
    }
}

/// What a file's header says.
pub(super) struct Header {
    pub entries: BTreeMap<String, Entry>,
    pub metadata: HashMap<String, String>,
    pub container: Container,
}

impl Header {
    /// Reads the header of a whole file and checks it against the file's length.
    fn parse(file: &[u8]) -> Result<Self> {
        if file.starts_with(gguf::MAGIC) {
            return gguf::parse(file);
        }
        let (header_length, header) = SafeTensors::read_metadata(file)
            .map_err(|error| anyhow::anyhow!("its safetensors header is damaged or cut short ({error})"))?;
        let data_start = 8 + header_length;
        let entries = header.tensors().into_iter().map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let bytes = data_start + start..data_start + end;
            (name, Entry { dtype: info.dtype, blocks: None, shape: info.shape.clone(), bytes })
        });
        Ok(Self {
            entries: entries.collect(),
            metadata: header.metadata().clone().unwrap_or_default(),
            container: Container::Safetensors,
        })
    }
}

/// A tensor in its file, not read yet.
#[derive(Clone)]
pub struct TensorView<'a> {
    /// U8 for the blocks of a GGUF file.
    pub dtype: Dtype,
    blocks: Option<GgmlDType>,
    pub shape: &'a [usize],
    file: &'a TensorFile,
    range: Range<usize>,
}

impl<'a> TensorView<'a> {
    /// The values as they are stored: little-endian, row-major.
    ///
    /// # Errors
    /// When the file can't be read any more.
    pub fn bytes(&self) -> Result<Cow<'a, [u8]>> {
        self.file.storage.read(self.range.clone()).context("can't be read from its file")
    }

    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in the file.
    pub fn stored_len(&self) -> usize {
        self.range.len()
    }

    /// What the values are stored as, e.g. `F16` or `Q4_0`.
    pub fn type_name(&self) -> String {
        self.blocks.map_or_else(|| format!("{:?}", self.dtype), gguf::type_name)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values as f32, converted on every thread of the current pool.
    ///
    /// # Errors
    /// When the type is none of F32, F16, BF16, F64 and GGUF's blocks.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        if let Some(blocks) = self.blocks {
            return gguf::dequantize(blocks, &self.bytes()?, self.len());
        }
        let convert: fn(&[u8], &mut [f32]) = match self.dtype {
            Dtype::F32 => |bytes, values| {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            },
            Dtype::F64 => |bytes, values| {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f64::from_le_bytes(*bytes) as f32;
                }
            },
            Dtype::F16 => |bytes, values| {
                let halves: Vec<f16> = bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
                halves.convert_to_f32_slice(values);
            },
            Dtype::BF16 => |bytes, values| {
                let halves: Vec<bf16> = bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect();
                halves.convert_to_f32_slice(values);
            },
            other => bail!("holds {other:?} values where floats are expected"),
        };
        let data = self.bytes()?;
        let width = data.len() / self.len().max(1);
        let mut values = vec![0.0; self.len()];
        values
            .par_chunks_mut(BLOCK)
            .zip(data.par_chunks(BLOCK * width.max(1)))
            .for_each(|(values, bytes)| convert(bytes, values));
        Ok(values)
    }
}

/// The tensors of a model, each under one canonical name whatever file and spelling it came from.
#[derive(Clone, Default)]
pub struct TensorSet {
    files: Vec<Arc<TensorFile>>,
    index: BTreeMap<String, (usize, String)>,
    quantized: bool,
    /// Components that came from elsewhere, by prefix, and whether int8 tensors were there.
    taken: BTreeMap<String, bool>,
    /// Answers for what no file holds, in a model that is only there to be measured.
    random: Option<Arc<RandomTensors>>,
    /// Adapters that change what [`Self::weight`] gives.
    merge: Option<Arc<Merge>>,
}

impl TensorSet {
    /// Every tensor there could be, of random values in whatever shape it is asked for; none has a name or
    /// a [`Self::view`] before that.
    pub fn random() -> Self {
        Self { random: Some(Arc::default()), ..Self::default() }
    }

    /// How much of the time spent in [`Self::weight`] went into making up random values.
    pub fn time_inventing(&self) -> Duration {
        self.random.as_ref().map_or(Duration::ZERO, |random| random.spent())
    }

    /// Adds the tensors of `file` for which `canonical` gives a name.
    ///
    /// # Errors
    /// When two tensors come to the same name.
    pub fn add(&mut self, file: TensorFile, canonical: impl Fn(&str) -> Option<String>) -> Result<()> {
        let number = self.files.len();
        for stored in file.names() {
            let Some(name) = canonical(stored) else { continue };
            self.quantized |= file.entries[stored].dtype == Dtype::I8;
            if self.index.insert(name.clone(), (number, stored.to_owned())).is_some() {
                bail!("tensor '{name}' occurs twice");
            }
        }
        self.files.push(Arc::new(file));
        Ok(())
    }

    /// The same tensors with adapters merged into their weights as these are read.
    #[must_use]
    pub fn merged(&self, merge: Merge) -> Self {
        Self { merge: Some(Arc::new(merge)), ..self.clone() }
    }

    /// Replaces the tensors of the component called `component` by those of `other`.
    pub(super) fn take_component(&mut self, component: &str, other: Self) {
        self.index.retain(|name, _| prefix(name) != component);
        self.taken.insert(component.to_owned(), other.quantized);
        let first = self.files.len();
        self.files.extend(other.files);
        let taken = other.index.into_iter().filter(|(name, _)| prefix(name) == component);
        self.index.extend(taken.map(|(name, (file, stored))| (name, (first + file, stored))));
    }

    /// Whether there are tensors of the component called `component`.
    pub fn has_component(&self, component: &str) -> bool {
        self.random.is_some() || self.contains_below(&format!("{component}."))
    }

    /// Whether some tensor's name begins with `start`.
    pub(super) fn contains_below(&self, start: &str) -> bool {
        let mut from = self.index.range::<str, _>((Bound::Included(start), Bound::Unbounded));
        from.next().is_some_and(|(name, _)| name.starts_with(start))
    }

    /// Whether some tensors are int8.
    pub fn is_quantized(&self) -> bool {
        self.quantized || self.taken.values().any(|quantized| *quantized)
    }

    /// Whether tensor `name` comes from a model with int8 tensors: then what is float there was kept so on
    /// purpose.
    pub fn is_in_quantized(&self, name: &str) -> bool {
        self.taken.get(prefix(name)).copied().unwrap_or(self.quantized)
    }

    /// Canonical names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name) || self.random.as_ref().is_some_and(|random| random.contains(name))
    }

    /// # Errors
    /// When there is no such tensor.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>> {
        self.index
            .get(name)
            .and_then(|(file, stored)| self.files[*file].view(stored))
            .with_context(|| format!("tensor '{name}' is missing"))
    }

    /// The names of all tensors but the scales of int8 ones.
    pub fn parameters(&self) -> impl Iterator<Item = &str> + Clone {
        self.index.keys().map(String::as_str).filter(|name| !self.is_scale(name))
    }

    fn is_scale(&self, name: &str) -> bool {
        let scaled = name.strip_suffix(SCALE).and_then(|weight| self.view(weight).ok());
        scaled.is_some_and(|weight| weight.dtype == Dtype::I8)
    }

    /// A tensor in the form it is stored in, checked to have `shape`. Trailing dimensions of 1 don't count,
    /// since a 1x1 convolution and a linear layer are stored either way.
    ///
    /// # Errors
    /// When the tensor is missing, has another shape or holds neither floats nor int8 values with one scale
    /// for each output.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let stored = self.stored(name, shape)?;
        match &self.merge {
            Some(merge) => merge.apply(name, shape, stored),
            None => Ok(stored),
        }
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        if let Some(random) = &self.random {
            return Ok(Weight::Float(random.values(name, shape)));
        }
        let view = self.view(name)?;
        ensure!(
            without_trailing_ones(view.shape) == without_trailing_ones(shape),
            "tensor '{name}' has shape {:?} where {shape:?} is expected",
            view.shape
        );
        if view.dtype == Dtype::I8 {
            return self.int8(name, view).map(Weight::Int8);
        }
        view.to_f32().map(Weight::Float).with_context(|| format!("tensor '{name}'"))
    }

    /// The values of a tensor in f32, whatever it is stored as, checked as by [`Self::weight`].
    ///
    /// # Errors
    /// As [`Self::weight`].
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.weight(name, shape).map(Weight::into_f32)
    }

    fn int8(&self, name: &str, view: TensorView<'_>) -> Result<QuantizedWeight> {
        let outputs =
            *view.shape.first().with_context(|| format!("int8 tensor '{name}' is a single value"))?;
        let scale_name = format!("{name}{SCALE}");
        let scale = self.view(&scale_name).with_context(|| format!("tensor '{name}' holds int8 values"))?;
        ensure!(
            without_trailing_ones(scale.shape) == without_trailing_ones(&[outputs]),
            "tensor '{scale_name}' has shape {:?} where [{outputs}] is expected",
            scale.shape
        );
        let scales = scale.to_f32().with_context(|| format!("tensor '{scale_name}'"))?;
        ensure!(
            scales.iter().all(|scale| scale.is_finite() && *scale >= 0.0),
            "tensor '{scale_name}' holds scales that are negative, infinite or no numbers"
        );
        let stored = view.bytes().with_context(|| format!("tensor '{name}'"))?;
        let mut values = vec![0; stored.len()];
        let blocks = values.par_chunks_mut(BLOCK).zip(stored.par_chunks(BLOCK));
        let least = blocks.map(|(values, bytes)| {
            for (value, byte) in values.iter_mut().zip(bytes) {
                *value = byte.cast_signed();
            }
            values.iter().copied().min().unwrap_or(0)
        });
        ensure!(
            least.min().is_none_or(|least| least > i8::MIN),
            "tensor '{name}' holds -128, where symmetric int8 values end at -127"
        );
        Ok(QuantizedWeight { values, scales })
    }
}

/// Values that one thread converts at a time.
const BLOCK: usize = 1 << 16;

/// Appended to an int8 tensor's name for that of its scales.
pub(super) const SCALE: &str = "_scale";

/// What stands before a name's first dot.
fn prefix(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn without_trailing_ones(shape: &[usize]) -> &[usize] {
    let kept = shape.iter().rposition(|&size| size != 1).map_or(0, |last| last + 1);
    &shape[..kept]
}
