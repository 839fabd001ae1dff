//! Writes a diffusers folder for other programs; reading one is in `folder`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use serde_json::{Value, json};

use super::names::{Component, to_diffusers};
use super::storage::{FloatType, Storage};
use super::store::{self, Pending};
use super::write_error::WriteError;
use super::{Checkpoint, native};
use crate::files;

/// Writes `checkpoint` to the folder `path`: first to one beside it, which is then renamed.
///
/// # Errors
/// When something but an empty folder is there, a tensor can't be converted, a file can't be written or `stopped` says
/// so.
pub fn write(
    checkpoint: &Checkpoint,
    path: &Path,
    floats: FloatType,
    stopped: &dyn Fn() -> bool,
) -> Result<(), WriteError> {
    if is_taken(path) {
        let message = anyhow!("{} exists already, and is not an empty folder", path.display());
        return Err(WriteError::Disk(message));
    }
    let storage = Storage::Float(floats);
    let bytes = storage.bytes(&checkpoint.tensors, checkpoint.tensors.parameters());
    let written = store::check_space(files::folder_of(path), bytes)
        .and_then(|()| files::save_folder(path, |folder| write_files(checkpoint, folder, storage, stopped)));
    written.map_err(|error| error.of(path))
}

/// Whether something but an empty folder is at `path`.
pub fn is_taken(path: &Path) -> bool {
    let empty = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    !empty && path.symlink_metadata().is_ok()
}

fn write_files(
    checkpoint: &Checkpoint,
    folder: &Path,
    storage: Storage<'_>,
    stopped: &dyn Fn() -> bool,
) -> Result<(), WriteError> {
    let configs = native::without_provenance(&checkpoint.configs);
    let class = |config: &Value, otherwise: &str| match config.get("_class_name") {
        Some(Value::String(name)) => name.clone(),
        _ => otherwise.to_owned(),
    };
    let index = json!({
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
        "requires_safety_checker": false,
        "safety_checker": [null, null],
        "scheduler": ["diffusers", class(&configs.scheduler, "PNDMScheduler")],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", class(&configs.unet, "UNet2DConditionModel")],
        "vae": ["diffusers", class(&configs.vae, "AutoencoderKL")],
    });
    write_json(&folder.join("model_index.json"), &index)?;
    write_json(&subfolder(folder, "scheduler")?.join("scheduler_config.json"), &configs.scheduler)?;
    write_tokenizer(checkpoint, &subfolder(folder, "tokenizer")?)?;
    for (component, config, stem) in [
        (Component::TextEncoder, &configs.text_encoder, "model"),
        (Component::Unet, &configs.unet, "diffusion_pytorch_model"),
        (Component::Vae, &configs.vae, "diffusion_pytorch_model"),
    ] {
        let folder = subfolder(folder, component.name())?;
        write_json(&folder.join("config.json"), config)?;
        let names = checkpoint.tensors.parameters().filter(|name| Component::of(name) == Some(component));
        let names = names.map(|name| (name, to_diffusers(component, name)));
        let mut tensors = store::plan(&checkpoint.tensors, names, storage, stopped)?;
        if component == Component::Vae {
            tensors.iter_mut().for_each(flatten_attention);
        }
        // transformers refuses a file that doesn't say which framework's tensors it holds.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        store::write(tensors, metadata, &folder.join(format!("{stem}.safetensors")), stopped)?;
    }
    Ok(())
}

/// LDM files hold the VAE's attention as 1x1 convolutions, where diffusers has linear layers.
fn flatten_attention((name, tensor): &mut (String, Pending<'_>)) {
    if let (true, &[outputs, inputs, 1, 1]) = (name.contains(".attentions."), tensor.shape()) {
        tensor.reshape(vec![outputs, inputs]);
    }
}

fn write_tokenizer(checkpoint: &Checkpoint, folder: &Path) -> io::Result<()> {
    let positions = checkpoint.configs.text_encoder.get("max_position_embeddings");
    let (start, end) = ("<|startoftext|>", "<|endoftext|>");
    let config = json!({
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": positions.and_then(Value::as_u64).unwrap_or(77),
        "do_lower_case": true,
        "add_prefix_space": false,
        "errors": "replace",
        "bos_token": start,
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
    });
    let special = json!({"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end});
    write_json(&folder.join("tokenizer_config.json"), &config)?;
    write_json(&folder.join("special_tokens_map.json"), &special)?;
    fs::write(folder.join("vocab.json"), checkpoint.vocabulary.vocab.as_bytes())?;
    fs::write(folder.join("merges.txt"), checkpoint.vocabulary.merges.as_bytes())
}

fn subfolder(folder: &Path, name: &str) -> io::Result<PathBuf> {
    let path = folder.join(name);
    fs::create_dir(&path)?;
    Ok(path)
}

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    fs::write(path, format!("{value:#}\n"))
}
