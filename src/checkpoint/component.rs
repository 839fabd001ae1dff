//! Reads one component from a file or folder of its own, to take the place of a model's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::file::TensorFile;
use super::names::{Component, Layout, from_diffusers};
use super::tensors::TensorSet;
use super::{Checkpoint, Origin, family, folder, infer, native, signature, single};

/// A component that can be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Replaceable {
    Vae,
    Taesd,
    TextEncoder,
}

impl Replaceable {
    /// Also the flag, without its dashes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vae => "vae",
            Self::Taesd => "taesd",
            Self::TextEncoder => "text-encoder",
        }
    }

    fn component(self) -> Component {
        match self {
            Self::Vae | Self::Taesd => Component::Vae,
            Self::TextEncoder => Component::TextEncoder,
        }
    }
}

/// Puts `part` from `path` into `checkpoint`.
///
/// # Errors
/// Names the file and why it can't take the part's place.
pub fn replace(checkpoint: &mut Checkpoint, part: Replaceable, path: &Path) -> Result<()> {
    ensure!(checkpoint.origin != Origin::Synthetic, "random weights can't be mixed with --{}", part.name());
    let component = part.component();
    let mut tensors = TensorSet::default();
    let mut config = None;
    if path.is_dir() {
        let folder = folder_of(path, part)?;
        config = folder::config(&folder.join("config.json"))?;
        for file in folder::weight_files(&folder, component)? {
            let file_tensors = TensorFile::open(&file)?;
            tensors
                .add(file_tensors, |name| from_diffusers(component, name))
                .with_context(|| format!("in {}", file.display()))?;
        }
    } else {
        signature::check(path)?;
        let file = TensorFile::open(path)?;
        let context = || format!("{} is not usable", path.display());
        if file.metadata().contains_key(native::KEY) {
            let native = native::read(file).with_context(context)?;
            config = Some(match component {
                Component::TextEncoder => native.configs.text_encoder,
                Component::Unet => native.configs.unet,
                Component::Vae => native.configs.vae,
            });
            tensors = native.tensors;
        } else {
            let layout = Layout::of(file.names().collect::<Vec<_>>().into_iter());
            family::check(&file, &layout).with_context(context)?;
            tensors.add(file, |name| layout.canonical(name)).with_context(context)?;
        }
    }
    ensure!(
        tensors.has_component(component.name()),
        "{} holds no {} (of --{})",
        path.display(),
        component.name().replace('_', " "),
        part.name()
    );
    let config = config.unwrap_or_else(|| infer::config(&tensors, component));
    let is_tiny = config.get("_class_name").and_then(Value::as_str) == Some("AutoencoderTiny");
    match (part, is_tiny) {
        (Replaceable::Vae, true) => bail!("{} is a tiny autoencoder: pass it with --taesd", path.display()),
        (Replaceable::Taesd, false) => bail!("{} is no tiny autoencoder: pass it with --vae", path.display()),
        _ => {}
    }
    checkpoint.tensors.take_component(component.name(), tensors);
    match component {
        Component::TextEncoder => checkpoint.configs.text_encoder = config,
        Component::Unet => checkpoint.configs.unet = config,
        Component::Vae => checkpoint.configs.vae = config,
    }
    checkpoint.replaced.push((part, single::stem(path)));
    Ok(())
}

/// The component's own folder: `path`, or the one inside it if it is a whole model's.
fn folder_of(path: &Path, part: Replaceable) -> Result<PathBuf> {
    let names: &[&str] = match part {
        Replaceable::Vae => &["vae"],
        Replaceable::Taesd => &["taesd", "vae"],
        Replaceable::TextEncoder => &["text_encoder"],
    };
    let inside = names.iter().map(|name| path.join(name)).find(|folder| folder.is_dir());
    Ok(inside.unwrap_or_else(|| path.to_owned()))
}
