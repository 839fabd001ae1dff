//! Writes the small model in the forms people have: LDM's names, GGUF with quantized blocks, lone components.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Tensor};
use pochade::checkpoint::{Checkpoint, FloatType, Storage};
use pochade::quantize::Policy;

use super::models::{data, load_tensors};

/// Copies the small model to `folder`, where it may be changed.
pub fn copy_small(folder: &Path) {
    for part in ["unet", "vae", "text_encoder", "scheduler"] {
        fs::create_dir_all(folder.join(part)).unwrap();
        for file in fs::read_dir(data("small").join(part)).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), folder.join(part).join(file.file_name())).unwrap();
        }
    }
    fs::copy(data("small").join("model_index.json"), folder.join("model_index.json")).unwrap();
}

/// Puts `bytes` at the start of what the safetensors file at `path` holds of `tensor`.
pub fn overwrite(path: &Path, tensor: &str, bytes: &[u8]) {
    let mut file = fs::read(path).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let offset = header[tensor]["data_offsets"][0].as_u64().unwrap_or_else(|| panic!("no {tensor}"));
    let start = 8 + length + offset as usize;
    file[start..start + bytes.len()].copy_from_slice(bytes);
    fs::write(path, file).unwrap();
}

/// Writes the built-in model as floats, each larger or smaller by up to `most` of it: its own are multiples of what they were rounded
/// to, which rounding to the nearest finds again.
pub fn disturbed_floats(path: &Path, most: f32) {
    Checkpoint::built_in().unwrap().write_native(path, Storage::Float(FloatType::F32)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    let data = 8 + u64::from_le_bytes(bytes.as_chunks().0[0]) as usize;
    let mut state = 1u32;
    for float in bytes[data..].as_chunks_mut::<4>().0 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let factor = 1.0 + 2.0 * most * (state as f32 / u32::MAX as f32 - 0.5);
        *float = (f32::from_le_bytes(*float) * factor).to_le_bytes();
    }
    fs::write(path, bytes).unwrap();
}

/// Writes the built-in model, most of which has four bits, with eight in their place.
pub fn built_in_in_bytes(path: &Path) {
    let floats = path.with_extension("floats");
    Checkpoint::built_in().unwrap().write_native(&floats, Storage::Float(FloatType::F32)).unwrap();
    let (source, policy) = (Checkpoint::open(&floats).unwrap(), Policy::default());
    let balance = source.tensors().balance(&policy).unwrap();
    source.write_native(path, Storage::Balanced(&policy, &balance)).unwrap();
    fs::remove_file(floats).unwrap();
}

/// One line of SD 1.5's inventory.
pub struct Row {
    pub component: String,
    pub diffusers: String,
    pub ldm: String,
    pub ldm_shape: Vec<usize>,
}

/// All tensors of SD 1.5 in both namings.
pub fn inventory() -> Vec<Row> {
    let text = include_str!("../data/sd15_tensors.txt");
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(' ').collect();
        let shape = cells.last().unwrap().split('x').map(|size| size.parse().unwrap());
        Row {
            component: cells[0].to_owned(),
            diffusers: cells[1].to_owned(),
            ldm: cells[2].to_owned(),
            ldm_shape: shape.collect(),
        }
    };
    text.lines().map(row).collect()
}

/// The tensors of one component of the small model, under diffusers' names.
pub fn component(name: &str) -> BTreeMap<String, Tensor> {
    let stem = if name == "text_encoder" { "model" } else { "diffusion_pytorch_model" };
    let path = data("small").join(name).join(format!("{stem}.safetensors"));
    load_tensors(&path).into_iter().collect()
}

/// The small model under LDM's names.
pub fn ldm() -> BTreeMap<String, Tensor> {
    let names: HashMap<(String, String), String> =
        inventory().into_iter().map(|row| ((row.component, row.diffusers), row.ldm)).collect();
    let mut tensors = BTreeMap::new();
    for part in ["unet", "vae", "text_encoder"] {
        for (name, mut tensor) in component(part) {
            // Newer exports leave out the prefix that older ones have.
            let name = if part == "text_encoder" && !name.starts_with("text_model.") {
                format!("text_model.{name}")
            } else {
                name
            };
            let ldm = names[&(part.to_owned(), name)].clone();
            if ldm.contains("attn_1") && tensor.rank() == 2 {
                tensor = tensor.unsqueeze(2).unwrap().unsqueeze(3).unwrap();
            }
            tensors.insert(ldm, tensor);
        }
    }
    tensors
}

/// The small model as stable-diffusion.cpp names a diffusers model.
pub fn prefixed() -> BTreeMap<String, Tensor> {
    let mut tensors = BTreeMap::new();
    for (part, prefix) in [("unet", "unet"), ("vae", "vae"), ("text_encoder", "te")] {
        for (name, tensor) in component(part) {
            tensors.insert(format!("{prefix}.{name}"), tensor);
        }
    }
    tensors
}

pub fn save(tensors: &BTreeMap<String, Tensor>, path: &Path) {
    let tensors: HashMap<String, Tensor> = tensors.clone().into_iter().collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// A tensor as GGUF holds it.
pub struct Stored {
    pub name: String,
    /// As PyTorch counts dimensions, slowest first.
    pub shape: Vec<usize>,
    pub code: u32,
    pub bytes: Vec<u8>,
}

/// `tensors` in `dtype` where the rows are whole blocks, as stable-diffusion.cpp's converter does it, else in F16.
pub fn stored(tensors: &BTreeMap<String, Tensor>, dtype: GgmlDType) -> Vec<Stored> {
    tensors.iter().map(|(name, tensor)| store(name, tensor, tensor.dims(), dtype)).collect()
}

pub fn store(name: &str, tensor: &Tensor, shape: &[usize], dtype: GgmlDType) -> Stored {
    let is_kept = name.ends_with(".bias") || name.contains("embedding") || name.contains("time_embed");
    let row = shape.last().copied().unwrap_or(1);
    let dtype = if is_kept || row % dtype.block_size() != 0 { GgmlDType::F16 } else { dtype };
    let values = tensor.to_dtype(DType::F32).unwrap().reshape(shape).unwrap();
    let bytes = match dtype {
        GgmlDType::F16 => {
            let values = values.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
        }
        dtype => QTensor::quantize(&values, dtype).unwrap().data().unwrap().into_owned(),
    };
    Stored { name: name.to_owned(), shape: shape.to_vec(), code: code(dtype), bytes }
}

/// ggml's number of a type.
fn code(dtype: GgmlDType) -> u32 {
    match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q2K => 10,
        GgmlDType::Q3K => 11,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        GgmlDType::BF16 => 30,
        other => panic!("{other:?} is never written"),
    }
}

/// A text with its length before it.
pub fn gguf_text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A GGUF file of `tensors`, and of `metadata` entries that are encoded already.
pub fn gguf(tensors: &[Stored], metadata: &[Vec<u8>]) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    file.extend(metadata.concat());
    let mut offset = 0u64;
    for tensor in tensors {
        file.extend(gguf_text(&tensor.name));
        file.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            file.extend((*size as u64).to_le_bytes());
        }
        file.extend(tensor.code.to_le_bytes());
        file.extend(offset.to_le_bytes());
        offset += (tensor.bytes.len() as u64).next_multiple_of(32);
    }
    for tensor in tensors {
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&tensor.bytes);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file
}

/// A shape as ComfyUI's converter notes it.
pub fn original_shape(name: &str, shape: &[usize]) -> Vec<u8> {
    let mut entry = gguf_text(&format!("comfy.gguf.orig_shape.{name}"));
    entry.extend(9u32.to_le_bytes());
    entry.extend(5u32.to_le_bytes());
    entry.extend((shape.len() as u64).to_le_bytes());
    entry.extend(shape.iter().flat_map(|size| (*size as i32).to_le_bytes()));
    entry
}

pub fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}
