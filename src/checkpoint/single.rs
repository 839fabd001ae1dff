//! Single files, safetensors or GGUF, that hold a whole model or a UNet under LDM's or diffusers' names.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::file::TensorFile;
use super::header::Container;
use super::names::{Component, Layout};
use super::tensors::TensorSet;
use super::{Checkpoint, Configs, Origin, Vocabulary, customary, family, infer, sd15};

/// Takes the file opened from `path` as a model.
///
/// # Errors
/// Says what it is instead.
pub fn read(file: TensorFile, path: &Path) -> Result<Checkpoint> {
    let layout = Layout::of(file.names().collect::<Vec<_>>().into_iter());
    family::check(&file, &layout)?;
    if !layout.has(Component::Unet) {
        bail!("{}", without_unet(&file, &layout));
    }
    let origin = match file.container() {
        Container::Gguf => Origin::Gguf,
        Container::Safetensors if layout.is_ldm() => Origin::Ldm,
        Container::Safetensors => Origin::Single,
    };
    let mut tensors = TensorSet::default();
    tensors.add(file, |name| layout.canonical(name))?;
    let configs = Configs {
        text_encoder: infer::config(&tensors, Component::TextEncoder),
        unet: infer::config(&tensors, Component::Unet),
        vae: infer::config(&tensors, Component::Vae),
        scheduler: sd15::scheduler(),
    };
    Ok(Checkpoint {
        name: stem(path),
        origin,
        defaults: customary(&configs),
        configs,
        vocabulary: Vocabulary::clip(),
        tensors,
        replaced: Vec::new(),
    })
}

/// A file's name without its ending.
pub fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned())
}

fn without_unet(file: &TensorFile, layout: &Layout) -> String {
    let flag = match layout.components() {
        [Component::Vae] if is_tiny(file, layout) => "a tiny autoencoder: pass it with --taesd",
        [Component::Vae] => "an autoencoder: pass it with --vae",
        [Component::TextEncoder] => "a text encoder: pass it with --text-encoder",
        [] => {
            let first = file.names().next();
            return first.map_or_else(
                || "it holds no tensors".to_owned(),
                |first| format!("its tensors are of no model pochade knows (the first is '{first}')"),
            );
        }
        _ => return "it holds an autoencoder and a text encoder, but no unet".to_owned(),
    };
    format!("it is no whole model but {flag}, beside a model")
}

fn is_tiny(file: &TensorFile, layout: &Layout) -> bool {
    file.names().any(|name| layout.canonical(name).is_some_and(|name| name.contains("coder.layers.")))
}

/// Checks that nothing is missing but what `Checkpoint::replace` can add.
///
/// # Errors
/// Names the components that are missing, and the flags that add them.
pub fn check_complete(checkpoint: &Checkpoint) -> Result<()> {
    let missing: Vec<(&str, &str)> = [
        (Component::TextEncoder, "text encoder", "--text-encoder"),
        (Component::Unet, "unet", "--model"),
        (Component::Vae, "autoencoder", "--vae"),
    ]
    .into_iter()
    .filter(|(component, ..)| !checkpoint.tensors.has_component(component.name()))
    .map(|(_, what, flag)| (what, flag))
    .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(what, _)| format!("no {what}")).collect();
    let flags: Vec<_> = missing.iter().map(|(_, flag)| format!("`{flag} FILE`")).collect();
    Err(anyhow::anyhow!("add what is missing with {}", flags.join(" and ")))
        .with_context(|| format!("the model '{}' holds {}", checkpoint.name, names.join(" and ")))
}
