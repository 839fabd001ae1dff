//! The native file: one safetensors file that is a whole model, read and written here.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::Dtype;
use safetensors::tensor::View;
use serde::{Deserialize, Serialize};

use super::names::Component;
use super::tensors::{TensorFile, TensorSet, TensorView};
use super::{Checkpoint, Configs, Defaults, Vocabulary};

/// The header's key whose presence makes a safetensors file a native one.
pub const KEY: &str = "pochade";
const VERSION: u32 = 1;

/// What the header holds beside the tensors, as one JSON value.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    name: String,
    defaults: Defaults,
    configs: Configs,
    /// Absent for CLIP's own vocabulary, which every build carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vocabulary: Option<Vocabulary>,
}

/// In which type `write` stores floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    F32,
    F16,
}

/// Takes a file whose header holds [`KEY`] as a model.
///
/// # Errors
/// When the header is of a newer version or damaged.
pub fn read(file: TensorFile) -> Result<Checkpoint> {
    let text = file.metadata().get(KEY).context("its header is not one of pochade's")?;
    let version = serde_json::from_str::<serde_json::Value>(text)
        .ok()
        .and_then(|header| header.get("version")?.as_u64())
        .context("its pochade header is damaged")?;
    ensure!(version == u64::from(VERSION), "it has format version {version}; this build reads {VERSION}");
    let header: Header = serde_json::from_str(text).context("its pochade header is damaged")?;
    let mut tensors = TensorSet::default();
    tensors.add(file, |name| Some(name.to_owned()))?;
    Ok(Checkpoint {
        name: header.name,
        defaults: header.defaults,
        configs: header.configs,
        vocabulary: header.vocabulary.unwrap_or_else(Vocabulary::clip),
        tensors,
    })
}

/// Writes `checkpoint` to `path`: first to a file beside it, which is then renamed.
///
/// # Errors
/// When a tensor can't be converted or the file can't be written.
pub fn write(checkpoint: &Checkpoint, path: &Path, storage: Storage) -> Result<()> {
    let header = Header {
        version: VERSION,
        name: checkpoint.name.clone(),
        defaults: checkpoint.defaults,
        configs: without_provenance(&checkpoint.configs),
        vocabulary: (checkpoint.vocabulary != Vocabulary::clip()).then(|| checkpoint.vocabulary.clone()),
    };
    let metadata = HashMap::from([(KEY.to_owned(), serde_json::to_string(&header)?)]);
    let names = checkpoint
        .tensors
        .names()
        .filter(|name| Component::ALL.iter().any(|part| name.starts_with(part.name())));
    let mut tensors = Vec::new();
    for name in names {
        let view = checkpoint.tensors.view(name)?;
        let floats = matches!(view.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64);
        if !floats {
            bail!("tensor '{name}' holds {:?} values, which can't be stored as floats", view.dtype);
        }
        tensors.push((name.to_owned(), Converted { view, storage }));
    }
    ensure!(!tensors.is_empty(), "the model '{}' has no tensors that could be written", checkpoint.name);
    safetensors::serialize_to_file(tensors, Some(metadata), path)
        .map_err(|error| anyhow::anyhow!("can't write {}: {error}", path.display()))?;
    share(path).with_context(|| format!("can't set the permissions of {}", path.display()))
}

/// The configs without the notes diffusers leaves in them, such as the path a model was once loaded from.
fn without_provenance(configs: &Configs) -> Configs {
    let mut configs = configs.clone();
    for config in [&mut configs.text_encoder, &mut configs.unet, &mut configs.vae, &mut configs.scheduler] {
        if let Some(entries) = config.as_object_mut() {
            entries.retain(|key, _| !key.starts_with('_') || key == "_class_name");
        }
    }
    configs
}

/// Gives a file that was written as private the permissions of any new file.
#[cfg(unix)]
fn share(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let everyone = std::fs::Permissions::from_mode(0o666);
    let ordinary = tempfile::Builder::new().permissions(everyone).tempfile_in(folder)?;
    std::fs::set_permissions(path, ordinary.as_file().metadata()?.permissions())
}

#[cfg(not(unix))]
fn share(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// A float tensor that is converted when it is written, so that only one is in memory at a time.
struct Converted<'a> {
    view: TensorView<'a>,
    storage: Storage,
}

impl View for Converted<'_> {
    fn dtype(&self) -> Dtype {
        match self.storage {
            Storage::F32 => Dtype::F32,
            Storage::F16 => Dtype::F16,
        }
    }

    fn shape(&self) -> &[usize] {
        self.view.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.dtype() == self.view.dtype {
            return Cow::Borrowed(self.view.data);
        }
        // `write` lets only float types through, which all convert.
        let values = self.view.to_f32().unwrap_or_default();
        Cow::Owned(match self.storage {
            Storage::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Storage::F16 => {
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(&values);
                halves.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
        })
    }

    fn data_len(&self) -> usize {
        let width = match self.storage {
            Storage::F32 => 4,
            Storage::F16 => 2,
        };
        self.view.len() * width
    }
}
