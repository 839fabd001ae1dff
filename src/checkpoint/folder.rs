//! Reads a diffusers folder: which files make up each component, and their configs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::file::TensorFile;
use super::names::{Component, from_diffusers};
use super::tensors::TensorSet;
use super::{Checkpoint, Configs, Origin, Vocabulary, customary, family, sd15};
use crate::files;

/// The largest config, vocabulary or index that is read; CLIP's vocabulary has 1 MB.
const LARGEST_TEXT: u64 = 32 << 20;

/// Opens the folder at `path`. Configs that are missing are those of SD 1.5, a missing tokenizer is CLIP's.
pub fn open(path: &Path) -> Result<Checkpoint> {
    check_family(path)?;
    let mut tensors = TensorSet::default();
    for component in Component::ALL {
        let folder = path.join(component.name());
        ensure!(
            folder.is_dir(),
            "{} is no diffusers folder: it has no '{}' inside",
            path.display(),
            component.name()
        );
        for file in weight_files(&folder, component)? {
            tensors
                .add(TensorFile::open(&file)?, |name| from_diffusers(component, name))
                .with_context(|| format!("in {}", file.display()))?;
        }
    }
    let configs = Configs {
        text_encoder: config(&path.join("text_encoder/config.json"))?.unwrap_or_else(sd15::text_encoder),
        unet: config(&path.join("unet/config.json"))?.unwrap_or_else(sd15::unet),
        vae: config(&path.join("vae/config.json"))?.unwrap_or_else(sd15::vae),
        scheduler: config(&path.join("scheduler/scheduler_config.json"))?.unwrap_or_else(sd15::scheduler),
    };
    let name = fs::canonicalize(path)
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "model".to_owned());
    Ok(Checkpoint {
        name,
        origin: Origin::Folder,
        defaults: customary(&configs),
        vocabulary: vocabulary(&path.join("tokenizer"))?,
        configs,
        tensors,
        replaced: Vec::new(),
    })
}

/// Fails for a folder that says it is of another family, before its other components are looked for.
fn check_family(path: &Path) -> Result<()> {
    let index = config(&path.join("model_index.json"))?.unwrap_or_default();
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or_default();
    let unet = config(&path.join("unet/config.json"))?.unwrap_or_default();
    let context = unet.get("cross_attention_dim").and_then(Value::as_u64).unwrap_or_default();
    match family::of_pipeline(class).or_else(|| family::of_context(context)) {
        Some(what) => bail!("{} is {what}; pochade reads Stable Diffusion 1.x", path.display()),
        None => Ok(()),
    }
}

/// The JSON file at `path`, if there is one.
pub(super) fn config(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = files::text(path, LARGEST_TEXT)?;
    serde_json::from_str(&text).map(Some).with_context(|| format!("{} is no valid JSON", path.display()))
}

fn vocabulary(folder: &Path) -> Result<Vocabulary> {
    let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if !vocab.exists() && !merges.exists() {
        return Ok(Vocabulary::clip());
    }
    let read = |path: &Path| files::text(path, LARGEST_TEXT);
    Ok(Vocabulary { vocab: read(&vocab)?.into(), merges: read(&merges)?.into() })
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// The safetensors files of one component: one file, or the shards its index names; full precision first.
pub(super) fn weight_files(folder: &Path, component: Component) -> Result<Vec<PathBuf>> {
    let stem = match component {
        Component::TextEncoder => "model",
        Component::Unet | Component::Vae => "diffusion_pytorch_model",
    };
    for variant in ["", ".fp16"] {
        let single = folder.join(format!("{stem}{variant}.safetensors"));
        if single.exists() {
            return Ok(vec![single]);
        }
        // Both orders of suffixes are in use.
        for index in [
            format!("{stem}.safetensors.index{variant}.json"),
            format!("{stem}{variant}.safetensors.index.json"),
        ] {
            let index = folder.join(index);
            if index.exists() {
                return shards(&index);
            }
        }
    }
    if folder.join(format!("{stem}.bin")).exists() {
        bail!("{} holds only PyTorch pickles: save the model as safetensors first", folder.display());
    }
    bail!("{} holds no {stem}.safetensors", folder.display())
}

fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let text = files::text(index, LARGEST_TEXT)?;
    let parsed: ShardIndex =
        serde_json::from_str(&text).with_context(|| format!("{} is no shard index", index.display()))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    let folder = index.parent().unwrap_or(Path::new(""));
    names
        .into_iter()
        .map(|name| {
            // A shard lies beside its index; anything else could point anywhere on the disk.
            ensure!(
                Path::new(&name).file_name().is_some_and(|file| file == name.as_str()),
                "{} names the shard '{name}', which is not a plain file name",
                index.display()
            );
            Ok(folder.join(name))
        })
        .collect()
}
