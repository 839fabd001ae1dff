//! The native file: one safetensors file that is a whole model, read and written here.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use super::file::TensorFile;
use super::names::Component;
use super::storage::Storage;
use super::store;
use super::tensors::{COLUMNS, TensorSet};
use super::write_error::WriteError;
use super::{Checkpoint, Configs, Origin, Vocabulary};
use crate::files;
use crate::quantize::Bits;
use crate::quantize::grid::GROUP;
use crate::request::{Defaults, Precision};

/// The header's key whose presence makes a safetensors file a native one.
pub const KEY: &str = "pochade";
const VERSION: u32 = 1;
/// Of files that hold factors of columns, which readers of version 1 would overlook.
const VERSION_WITH_COLUMNS: u32 = 2;
/// Of files that hold weights of four bits.
const VERSION_WITH_FOUR_BITS: u32 = 3;

/// What the header holds beside the tensors, as one JSON value.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    name: String,
    /// What most weights are stored as; absent in early files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    precision: Option<Precision>,
    /// How to read int8 weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quantization: Option<Quantization>,
    /// How to read weights of four bits, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    four_bits: Option<FourBits>,
    defaults: Defaults,
    configs: Configs,
    /// Absent for CLIP's own vocabulary, which every build carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vocabulary: Option<Vocabulary>,
}

/// The int8 format in the words of the compressed-tensors library: `X.weight` holds integers in the original
/// shape, `X.weight_scale` one f32 for each output channel, and a weight is their product; of some linear layers times
/// `X.weight_columns`, one f32 for each input, which is ours.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Quantization {
    #[serde(rename = "type")]
    kind: String,
    num_bits: u32,
    symmetric: bool,
    strategy: String,
}

impl Quantization {
    fn ours() -> Self {
        Self { kind: "int".to_owned(), num_bits: 8, symmetric: true, strategy: "channel".to_owned() }
    }
}

/// The four-bit format: of a weight in `shapes`, `X.weight` holds bytes, `[out][bytes of a row]`, each with two
/// neighbors of a row in the original order, the first in its lower half, each 8 more than the integer it stands for;
/// `X.weight_scale` holds one f16 for each group of 32 inputs of an output at one position of its kernel,
/// `[out][groups][kernel]`. What it stands for is the product, times `X.weight_columns` as of int8.
#[derive(Debug, Serialize, Deserialize)]
struct FourBits {
    #[serde(rename = "type")]
    kind: String,
    num_bits: u32,
    symmetric: bool,
    strategy: String,
    group_size: usize,
    /// Original shapes by name.
    shapes: BTreeMap<String, Vec<usize>>,
}

impl FourBits {
    fn ours(shapes: BTreeMap<String, Vec<usize>>) -> Self {
        let (kind, strategy) = ("int".to_owned(), "group".to_owned());
        Self { kind, num_bits: 4, symmetric: true, strategy, group_size: GROUP, shapes }
    }

    fn is_ours(&self) -> bool {
        let Self { kind, num_bits, symmetric, strategy, group_size, .. } = self;
        kind == "int" && *num_bits == 4 && *symmetric && strategy == "group" && *group_size == GROUP
    }
}

/// Takes a file whose header holds [`KEY`] as a model.
///
/// # Errors
/// When the header is of a newer version or damaged.
pub fn read(mut file: TensorFile) -> Result<Checkpoint> {
    let text = file.metadata().get(KEY).context("its header is not one of pochade's")?;
    let version = serde_json::from_str::<serde_json::Value>(text)
        .ok()
        .and_then(|header| header.get("version")?.as_u64())
        .context("its pochade header is damaged")?;
    ensure!(
        (u64::from(VERSION)..=u64::from(VERSION_WITH_FOUR_BITS)).contains(&version),
        "it has format version {version}; this build reads {VERSION} to {VERSION_WITH_FOUR_BITS}"
    );
    let header: Header = serde_json::from_str(text).context("its pochade header is damaged")?;
    if let Some(quantization) = &header.quantization {
        ensure!(
            *quantization == Quantization::ours(),
            "its weights are quantized in a way this build does not read ({quantization:?})"
        );
    }
    if let Some(four_bits) = header.four_bits {
        ensure!(
            four_bits.is_ours(),
            "its weights of four bits are quantized in a way this build does not read"
        );
        for (name, shape) in four_bits.shapes {
            file.unpack(&name, shape)?;
        }
    }
    let mut tensors = TensorSet::default();
    tensors.add(file, |name| Some(name.to_owned()))?;
    Ok(Checkpoint {
        name: header.name,
        origin: Origin::Native,
        defaults: header.defaults,
        configs: header.configs,
        vocabulary: header.vocabulary.unwrap_or_else(Vocabulary::clip),
        tensors,
        replaced: Vec::new(),
    })
}

/// Writes `checkpoint` to `path`: first to a file beside it, which is then renamed.
///
/// # Errors
/// When a tensor can't be converted, the file can't be written or `stopped` says so.
pub fn write(
    checkpoint: &Checkpoint,
    path: &Path,
    storage: Storage<'_>,
    stopped: &dyn Fn() -> bool,
) -> Result<(), WriteError> {
    let names = checkpoint.tensors.parameters().filter(|name| Component::of(name).is_some());
    let bytes = storage.bytes(&checkpoint.tensors, names.clone());
    store::check_space(files::folder_of(path), bytes).map_err(|error| error.of(path))?;
    let names = names.map(|name| (name, name.to_owned()));
    let tensors = store::plan(&checkpoint.tensors, names, storage, stopped)?;
    if tensors.is_empty() {
        let name = &checkpoint.name;
        return Err(WriteError::Model(anyhow!("the model '{name}' has no tensors that could be written")));
    }
    let columns = tensors.iter().any(|(name, _)| name.ends_with(COLUMNS));
    let shapes =
        tensors.iter().filter_map(|(name, tensor)| Some((name.clone(), tensor.four_bit_shape()?.to_vec())));
    let metadata = metadata(checkpoint, storage, columns, shapes.collect())?;
    store::write(tensors, metadata, path, stopped)
}

/// Bytes of the file that [`write`] makes of a model whose weights are floats.
///
/// # Errors
/// When there would be none.
pub fn length(checkpoint: &Checkpoint, storage: Storage<'_>) -> Result<u64> {
    let mut slots = Vec::new();
    let mut shapes = BTreeMap::new();
    for name in checkpoint.tensors.parameters().filter(|name| Component::of(name).is_some()) {
        let shape = checkpoint.tensors.view(name)?.shape;
        if storage.bits(name, shape) == Bits::Four {
            shapes.insert(name.to_owned(), shape.to_vec());
        }
        slots.append(&mut storage.slots(&checkpoint.tensors, name, name));
    }
    let columns = slots.iter().any(|slot| slot.name.ends_with(COLUMNS));
    store::length(slots, metadata(checkpoint, storage, columns, shapes)?)
}

/// What the file's header holds beside the tensors: whether some have columns' factors, and the shapes of those of
/// four bits.
fn metadata(
    checkpoint: &Checkpoint,
    storage: Storage<'_>,
    columns: bool,
    shapes: BTreeMap<String, Vec<usize>>,
) -> Result<HashMap<String, String>> {
    let four_bits = (!shapes.is_empty()).then(|| FourBits::ours(shapes));
    let header = Header {
        version: match (&four_bits, columns) {
            (Some(_), _) => VERSION_WITH_FOUR_BITS,
            (None, true) => VERSION_WITH_COLUMNS,
            (None, false) => VERSION,
        },
        four_bits,
        name: checkpoint.name.clone(),
        precision: Some(storage.precision()),
        quantization: (storage.precision() == Precision::Int8).then(Quantization::ours),
        defaults: checkpoint.defaults,
        configs: without_provenance(&checkpoint.configs),
        vocabulary: (checkpoint.vocabulary != Vocabulary::clip()).then(|| checkpoint.vocabulary.clone()),
    };
    let header = serde_json::to_string(&header).context("writing the header as JSON")?;
    Ok(HashMap::from([(KEY.to_owned(), header)]))
}

/// The configs without the notes diffusers leaves in them, such as the path a model was once loaded from.
pub(super) fn without_provenance(configs: &Configs) -> Configs {
    let mut configs = configs.clone();
    for config in [&mut configs.text_encoder, &mut configs.unet, &mut configs.vae, &mut configs.scheduler] {
        if let Some(entries) = config.as_object_mut() {
            entries.retain(|key, _| !key.starts_with('_') || key == "_class_name");
        }
    }
    configs
}
