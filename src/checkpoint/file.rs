//! One safetensors or GGUF file: which tensors are in it, and their values read when they are asked for.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::io::{BufReader, Cursor, Result as IoResult};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::entry::{Entry, Packed};
use super::gguf;
use super::header::{Container, Header};
use crate::files;
use crate::quantize::grouped::{self, packed_len};

/// Where the bytes of a weight file are: on disk, or part of the binary.
enum Storage {
    File(File, PathBuf),
    Embedded(&'static [u8]),
}

impl Storage {
    /// Reads on demand rather than through a map: mapped pages would count as memory of ours as long as the
    /// model is open, and a file that is cut meanwhile is an error here, not a signal.
    fn read(&self, range: Range<usize>) -> IoResult<Cow<'_, [u8]>> {
        match self {
            Self::Embedded(bytes) => Ok(Cow::Borrowed(&bytes[range])),
            Self::File(file, _) => {
                let mut bytes = vec![0; range.len()];
                read_exact_at(file, &mut bytes, range.start as u64)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    #[cfg_attr(not(any(target_os = "linux", target_os = "android")), expect(unused_variables))]
    fn read_ahead(&self, range: &Range<usize>) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let (Self::File(file, _), Some(len)) = (self, std::num::NonZero::new(range.len() as u64)) {
            // Advice: whoever needs the bytes hears what is wrong.
            let _ = rustix::fs::fadvise(file, range.start as u64, Some(len), rustix::fs::Advice::WillNeed);
        }
    }

    /// The same with a buffer of at least as many bytes to read into.
    fn read_into<'a>(&'a self, range: Range<usize>, buffer: &'a mut [u8]) -> IoResult<&'a [u8]> {
        match self {
            Self::Embedded(bytes) => Ok(&bytes[range]),
            Self::File(file, _) => {
                let bytes = &mut buffer[..range.len()];
                read_exact_at(file, bytes, range.start as u64)?;
                Ok(bytes)
            }
        }
    }
}

/// Fills `bytes` with those from `offset` on, whatever other threads read.
#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> IoResult<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

/// Fills `bytes` with those from `offset` on, whatever other threads read.
#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> IoResult<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => {
                bytes = &mut bytes[read..];
                offset += read as u64;
            }
        }
    }
    Ok(())
}

/// One safetensors or GGUF file whose header has been checked against its length.
pub struct TensorFile {
    storage: Storage,
    entries: BTreeMap<String, Entry>,
    metadata: HashMap<String, String>,
    container: Container,
}

impl TensorFile {
    /// Opens `path` and reads its header.
    ///
    /// # Errors
    /// Names the file, and what in its header is wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || -> std::io::Result<(File, u64)> {
            let file = files::open(path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().with_context(|| format!("can't open {}", path.display()))?;
        let header = Header::read(&mut BufReader::new(&file), length)
            .with_context(|| format!("{} is not usable", path.display()))?;
        Ok(Self::new(Storage::File(file, path.to_owned()), header))
    }

    /// Reads the header of a file that is part of the binary.
    ///
    /// # Errors
    /// Says what in the header is wrong.
    pub fn embedded(bytes: &'static [u8]) -> Result<Self> {
        let header = Header::read(&mut Cursor::new(bytes), bytes.len() as u64)
            .context("what is embedded is not usable")?;
        Ok(Self::new(Storage::Embedded(bytes), header))
    }

    fn new(storage: Storage, Header { entries, metadata, container }: Header) -> Self {
        Self { storage, entries, metadata, container }
    }

    /// Where it lies, unless it is part of the binary.
    pub fn path(&self) -> Option<&Path> {
        match &self.storage {
            Storage::File(_, path) => Some(path),
            Storage::Embedded(_) => None,
        }
    }

    /// What the system says of it.
    ///
    /// # Errors
    /// When that fails, or it is part of the binary.
    pub(super) fn stat(&self) -> IoResult<Metadata> {
        match &self.storage {
            Storage::File(file, _) => file.metadata(),
            Storage::Embedded(_) => Err(std::io::ErrorKind::Unsupported.into()),
        }
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

    /// Has the tensor called `name`, whose rows are bytes, taken as one of `shape` of values of four bits.
    ///
    /// # Errors
    /// When there is no such tensor, or it has other rows.
    pub(super) fn unpack(&mut self, name: &str, shape: Vec<usize>) -> Result<()> {
        let entry = self.entries.get_mut(name).with_context(|| format!("tensor '{name}' is missing"))?;
        let [rows, inner @ ..] = shape.as_slice() else { bail!("tensor '{name}' has no shape") };
        let width = inner.iter().try_fold(1, |product: usize, size| product.checked_mul(*size));
        let width = width.filter(|width| *width > 0 && !inner.is_empty());
        let width =
            width.with_context(|| format!("tensor '{name}' has no rows of four-bit values: {shape:?}"))?;
        let expected = [*rows, packed_len(width)];
        ensure!(
            entry.dtype == Dtype::U8 && entry.packed.is_none() && entry.shape == expected,
            "tensor '{name}' has {:?} of shape {:?} where bytes of {expected:?} hold four-bit values of {shape:?}",
            entry.dtype,
            entry.shape
        );
        (entry.packed, entry.shape) = (Some(Packed::Nibbles), shape);
        Ok(())
    }

    /// Whether values of the tensor called `name` are integers that have scales.
    pub(super) fn is_rounded(&self, name: &str) -> bool {
        self.view(name).is_some_and(|view| view.is_int8() || view.is_int4())
    }

    /// The shape of the tensor stored as `name`.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The tensor called `name`, if there is one.
    pub fn view(&self, name: &str) -> Option<TensorView<'_>> {
        let Entry { dtype, packed, shape, bytes } = self.entries.get(name)?;
        Some(TensorView { dtype: *dtype, packed: *packed, shape, file: self, range: bytes.clone() })
    }
}

/// A tensor in its file, not read yet.
#[derive(Clone)]
pub struct TensorView<'a> {
    /// U8 for packed values.
    pub dtype: Dtype,
    packed: Option<Packed>,
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
        self.file.storage.read(self.range.clone()).context(UNREADABLE)
    }

    /// Has the system read the tensor from disk in the meantime, where it can: its bytes are asked for soon.
    pub fn read_ahead(&self) {
        self.file.storage.read_ahead(&self.range);
    }

    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the rows of a matrix can be read one by one: blocks can go on from one row to the next.
    pub fn has_rows(&self) -> bool {
        let rows = self.shape.first().copied().unwrap_or(0);
        let width = self.len().checked_div(rows).unwrap_or(0);
        let whole = match self.packed {
            Some(Packed::Blocks(blocks)) => width.is_multiple_of(blocks.block_size()),
            Some(Packed::Nibbles) | None => true,
        };
        width > 0 && whole
    }

    /// One row, where [rows can be read](Self::has_rows).
    ///
    /// # Panics
    /// If there are not as many.
    pub fn row(&self, row: usize) -> Self {
        assert!(row < self.shape[0], "row {row} of {}", self.shape[0]);
        let bytes = self.range.len() / self.shape[0];
        let start = self.range.start + row * bytes;
        Self { shape: &self.shape[1..], range: start..start + bytes, ..self.clone() }
    }

    /// Bytes in the file.
    pub fn stored_len(&self) -> usize {
        self.range.len()
    }

    /// What the values are stored as, e.g. `F16` or `Q4_0`.
    pub fn type_name(&self) -> String {
        match self.packed {
            Some(Packed::Blocks(blocks)) => gguf::type_name(blocks),
            Some(Packed::Nibbles) => "I4".to_owned(),
            None => format!("{:?}", self.dtype),
        }
    }

    pub(super) fn is_int8(&self) -> bool {
        self.dtype == Dtype::I8
    }

    pub(super) fn is_int4(&self) -> bool {
        self.packed == Some(Packed::Nibbles)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All values as `convert` makes them of their bytes, read and converted part by part on every thread of the
    /// current pool, so that their bytes are never there as a whole.
    fn converted<T: Copy + Default + Send>(
        &self,
        convert: impl Fn(&[u8], &mut [T]) -> Result<()> + Sync,
    ) -> Result<Vec<T>> {
        let width = self.range.len() / self.len().max(1);
        let mut values = vec![T::default(); self.len()];
        let blocks = values.par_chunks_mut(BLOCK).enumerate();
        blocks.try_for_each_init(
            || vec![0; BLOCK.min(self.len()) * width],
            |buffer, (block, values)| {
                let start = self.range.start + block * BLOCK * width;
                let bytes = self.file.storage.read_into(start..start + values.len() * width, buffer);
                convert(bytes.context(UNREADABLE)?, values)
            },
        )?;
        Ok(values)
    }

    /// All values of a tensor of symmetric int8.
    ///
    /// # Errors
    /// When the file can't be read any more, or a value is -128.
    pub fn to_i8(&self) -> Result<Vec<i8>> {
        self.converted(|bytes, values| {
            for (value, byte) in values.iter_mut().zip(bytes) {
                *value = byte.cast_signed();
            }
            ensure!(!values.contains(&i8::MIN), "holds -128, where symmetric int8 values end at -127");
            Ok(())
        })
    }

    /// All values of a tensor of four bits.
    ///
    /// # Errors
    /// When the file can't be read any more.
    pub(super) fn to_i4(&self) -> Result<Vec<i8>> {
        // A row of a matrix is a vector.
        let row = if self.shape.len() > 1 { self.len() / self.shape[0].max(1) } else { self.len() };
        Ok(grouped::unpack(&self.bytes()?, row))
    }

    /// All values as f32, converted on every thread of the current pool.
    ///
    /// # Errors
    /// When the type is none of F32, F16, BF16, F64 and GGUF's blocks, or the file can't be read any more.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        if let Some(Packed::Blocks(blocks)) = self.packed {
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
        self.converted(|bytes, values| {
            convert(bytes, values);
            Ok(())
        })
    }
}

const UNREADABLE: &str = "can't be read from its file";

/// Values that one thread converts at a time.
pub(super) const BLOCK: usize = 1 << 16;
