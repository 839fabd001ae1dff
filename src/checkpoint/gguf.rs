//! GGUF: its header, checked before anything is allocated, and its blocks of quantized values as floats.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use rayon::prelude::*;
use safetensors::Dtype;

use super::entry::{Entry, LONGEST, Packed};

pub const MAGIC: &[u8] = b"GGUF";

/// ComfyUI's converter flattens convolutions, and notes their shape under this and the tensor's name.
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";
const ALIGNMENT: &str = "general.alignment";

/// What ggml itself allows.
const MAX_DIMENSIONS: usize = 4;
const MAX_NAME: usize = 1 << 16;
/// The fewest bytes a tensor takes in the header: name length, dimensions, type, offset.
const MIN_TENSOR: usize = 8 + 4 + 4 + 8;
/// The fewest bytes a metadata entry takes: key length, type, a one-byte value.
const MIN_ENTRY: usize = 8 + 4 + 1;
/// Arrays of arrays of arrays hold nothing a model needs.
const MAX_NESTING: usize = 4;

/// Tensors and texts by name.
type Found = (BTreeMap<String, Entry>, HashMap<String, String>);

/// Reads the header at the start of a file of `length` bytes (the format is ggml's `docs/gguf.md`, versions 2 and 3).
///
/// # Errors
/// Names the tensor or the entry that is damaged or does not fit the file.
pub fn read(file: &mut impl Read, length: u64) -> Result<Found> {
    let end = usize::try_from(length).context("it is larger than this machine can address")?;
    let mut cursor = Cursor { file, at: 0, end: end.min(LONGEST) };
    cursor.pass_over(MAGIC.len())?;
    let version = cursor.u32()?;
    ensure!(!(2..=3).contains(&version.swap_bytes()), "it is a big-endian GGUF file, which is not supported");
    ensure!((2..=3).contains(&version), "it has GGUF version {version}; this build reads 2 and 3");
    let tensors = cursor.count("tensors", MIN_TENSOR)?;
    let entries = cursor.count("metadata entries", MIN_ENTRY)?;

    let mut metadata = HashMap::new();
    let mut shapes = HashMap::new();
    let mut alignment = 32;
    for _ in 0..entries {
        let key = cursor.text()?;
        let kind = cursor.u32()?;
        match (key.as_str(), kind) {
            (ALIGNMENT, kind::U32) => {
                let value = cursor.u32()? as usize;
                ensure!(
                    value.is_power_of_two() && value <= 1 << 20,
                    "its GGUF header sets the alignment {value}"
                );
                alignment = value;
            }
            (_, kind::STRING) => {
                metadata.insert(key, cursor.text()?);
            }
            (key, kind) => {
                let shape = key.strip_prefix(ORIGINAL_SHAPE).filter(|_| kind == kind::ARRAY);
                let context = || format!("metadata entry '{key}'");
                match shape {
                    Some(name) => {
                        shapes.insert(name.to_owned(), cursor.dimensions().with_context(context)?);
                    }
                    None => cursor.skip(kind, 0).with_context(context)?,
                }
            }
        }
    }

    let mut infos = Vec::new();
    for _ in 0..tensors {
        infos.push(cursor.tensor()?);
    }
    let data_start = cursor.at.checked_next_multiple_of(alignment).context("its GGUF header is too long")?;
    let mut found = BTreeMap::new();
    for info in infos {
        let entry = info
            .entry(data_start, alignment, end, shapes.remove(&info.name))
            .with_context(|| format!("tensor '{}'", info.name))?;
        ensure!(!found.contains_key(&info.name), "tensor '{}' occurs twice", info.name);
        found.insert(info.name, entry);
    }
    check_overlaps(&found)?;
    Ok((found, metadata))
}

/// The header's codes for types of metadata values.
mod kind {
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
}

/// Bytes of a value of fixed size.
fn width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        kind::U32 | kind::I32 | 6 => Some(4),
        kind::U64 | kind::I64 | 12 => Some(8),
        _ => None,
    }
}

/// The header as far as it has been read.
struct Cursor<'a, R> {
    file: &'a mut R,
    at: usize,
    /// Where the file ends, or where a header does at the latest.
    end: usize,
}

impl<R: Read> Cursor<'_, R> {
    /// Goes on by `length` bytes, which `read` takes from the file.
    fn advance<T>(&mut self, length: usize, read: impl FnOnce(&mut R) -> io::Result<T>) -> Result<T> {
        let at = self.at;
        let damaged = || format!("its GGUF header is cut short or damaged at byte {at}");
        ensure!(length <= self.end - at, damaged());
        self.at += length;
        read(self.file).with_context(damaged)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.advance(N, |file| file.read_exact(&mut bytes))?;
        Ok(bytes)
    }

    fn pass_over(&mut self, length: usize) -> Result<()> {
        let passed = |file: &mut R| io::copy(&mut file.take(length as u64), &mut io::sink());
        let passed = self.advance(length, passed)?;
        ensure!(passed == length as u64, "its GGUF header is cut short");
        Ok(())
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of things that take at least `least` bytes each, so that there is room for them in the file.
    fn count(&mut self, what: &str, least: usize) -> Result<usize> {
        let count = self.u64()?;
        let left = self.end - self.at;
        let fits = usize::try_from(count).ok().filter(|count| *count <= left / least);
        fits.with_context(|| format!("its GGUF header claims {count} {what}, more than the file can hold"))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.count("characters in a text", 1)?;
        let at = self.at;
        let mut text = vec![0; length];
        self.advance(length, |file| file.read_exact(&mut text))?;
        String::from_utf8(text)
            .with_context(|| format!("its GGUF header has a text that is no UTF-8 at byte {at}"))
    }

    /// Passes over a value of type `kind`.
    fn skip(&mut self, kind: u32, nesting: usize) -> Result<()> {
        match kind {
            kind::STRING => self.text().map(drop),
            kind::ARRAY => {
                ensure!(nesting < MAX_NESTING, "holds arrays within arrays");
                let kind = self.u32()?;
                if let Some(width) = width(kind) {
                    let count = self.count("values in an array", width)?;
                    return self.pass_over(count * width);
                }
                for _ in 0..self.count("values in an array", 8)? {
                    self.skip(kind, nesting + 1)?;
                }
                Ok(())
            }
            kind => {
                let width = width(kind).with_context(|| format!("has the unknown type {kind}"))?;
                self.pass_over(width)
            }
        }
    }

    /// An array of integers as a shape.
    fn dimensions(&mut self) -> Result<Vec<usize>> {
        let kind = self.u32()?;
        let count = self.count("dimensions", 4)?;
        ensure!(count <= MAX_DIMENSIONS, "holds {count} dimensions");
        let dimension = |cursor: &mut Self| -> Result<u64> {
            match kind {
                kind::U32 | kind::I32 => cursor.u32().map(u64::from),
                kind::U64 | kind::I64 => cursor.u64(),
                kind => bail!("holds dimensions of type {kind}"),
            }
        };
        (0..count).map(|_| Ok(usize::try_from(dimension(self)?)?)).collect()
    }

    fn tensor(&mut self) -> Result<Info> {
        let name = self.text()?;
        ensure!(name.len() <= MAX_NAME, "its GGUF header has a name of {} bytes", name.len());
        let dimensions = self.u32()? as usize;
        ensure!(dimensions <= MAX_DIMENSIONS, "tensor '{name}' has {dimensions} dimensions");
        // The fastest one comes first.
        let mut shape = Vec::with_capacity(dimensions);
        for _ in 0..dimensions {
            let size = self.u64()?;
            shape.insert(0, usize::try_from(size).with_context(|| format!("tensor '{name}'"))?);
        }
        Ok(Info { name, shape, code: self.u32()?, offset: self.u64()? })
    }
}

/// A tensor as the header describes it.
struct Info {
    name: String,
    shape: Vec<usize>,
    code: u32,
    offset: u64,
}

impl Info {
    fn entry(
        &self,
        start: usize,
        alignment: usize,
        end: usize,
        original: Option<Vec<usize>>,
    ) -> Result<Entry> {
        let (dtype, blocks) = stored_type(self.code)?;
        let (block, size) = match blocks {
            Some(blocks) => (blocks.block_size(), blocks.type_size()),
            None => (1, dtype.bitsize() / 8),
        };
        let product =
            |shape: &[usize]| shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let count = product(&self.shape);
        let count =
            count.with_context(|| format!("has the shape {:?}, which no memory holds", self.shape))?;
        let row = self.shape.last().copied().unwrap_or(1);
        ensure!(row.is_multiple_of(block), "has rows of {row} values, not of whole blocks of {block}");
        let bytes = (count / block).checked_mul(size);
        let range = bytes.and_then(|bytes| {
            let first = start.checked_add(usize::try_from(self.offset).ok()?)?;
            Some(first..first.checked_add(bytes)?)
        });
        let bytes = range
            .filter(|range| range.end <= end)
            .context("reaches beyond the end of the file, which is cut short or damaged")?;
        ensure!(self.offset.is_multiple_of(alignment as u64), "starts at an offset of {}", self.offset);
        let shape = match original {
            Some(original) => {
                ensure!(
                    product(&original) == Some(count),
                    "is noted as {original:?}, but holds {count} values"
                );
                original
            }
            None => self.shape.clone(),
        };
        Ok(Entry { dtype, packed: blocks.map(Packed::Blocks), shape, bytes })
    }
}

fn check_overlaps(entries: &BTreeMap<String, Entry>) -> Result<()> {
    let mut ranges: Vec<_> = entries.iter().map(|(name, entry)| (entry.bytes.clone(), name)).collect();
    ranges.sort_by_key(|(range, _)| (range.start, range.end));
    for pair in ranges.windows(2) {
        let [(first, one), (second, other)] = pair else { continue };
        ensure!(first.end <= second.start, "tensors '{one}' and '{other}' overlap");
    }
    Ok(())
}

/// ggml's number of a type.
fn stored_type(code: u32) -> Result<(Dtype, Option<GgmlDType>)> {
    let blocks = match code {
        0 => return Ok((Dtype::F32, None)),
        1 => return Ok((Dtype::F16, None)),
        26 => return Ok((Dtype::I32, None)),
        27 => return Ok((Dtype::I64, None)),
        28 => return Ok((Dtype::F64, None)),
        30 => return Ok((Dtype::BF16, None)),
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        16..=23 | 29 => bail!("is stored in an IQ type (number {code}), which is not supported"),
        _ => bail!("is stored in the unknown type {code}"),
    };
    Ok((Dtype::U8, Some(blocks)))
}

/// As ggml spells it, e.g. `Q4_K`.
pub fn type_name(blocks: GgmlDType) -> String {
    let name = format!("{blocks:?}");
    name.strip_suffix('K').map_or_else(|| name.clone(), |kind| format!("{kind}_K"))
}

/// Values that one thread converts at a time: whole blocks of every type.
const VALUES: usize = 1 << 16;

/// The `count` values in `bytes`, on every thread of the current pool.
///
/// # Errors
/// None for as many bytes as a checked header says.
pub fn dequantize(blocks: GgmlDType, bytes: &[u8], count: usize) -> Result<Vec<f32>> {
    let length = VALUES / blocks.block_size() * blocks.type_size();
    let mut values = vec![0.0; count];
    values.par_chunks_mut(VALUES).zip(bytes.par_chunks(length)).try_for_each(|(values, bytes)| {
        // A copy begins at an address that is aligned for every type of block.
        let storage = QStorage::from_data(bytes.to_vec().into(), &Device::Cpu, blocks)?;
        let tensor = QTensor::new(storage, values.len())?.dequantize(&Device::Cpu)?;
        values.copy_from_slice(&tensor.to_vec1::<f32>()?);
        anyhow::Ok(())
    })?;
    Ok(values)
}
