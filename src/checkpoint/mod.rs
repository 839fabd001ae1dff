//! A model's files, whatever their format: configs, vocabulary, tensors by diffusers name, LoRAs merged into them.

mod component;
mod entry;
mod export;
mod family;
mod file;
mod folder;
mod gguf;
mod header;
mod infer;
pub mod lora;
mod names;
mod native;
mod prepacked;
mod prepacking;
mod random;
mod sd15;
mod signature;
mod single;
mod sizes;
mod storage;
mod store;
mod summary;
mod tensors;
mod write_error;

use std::borrow::Cow;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use component::Replaceable;
pub use file::{TensorFile, TensorView};
pub use header::{Container, check_header};
pub use names::{Component, Layout};
pub use prepacked::is_packed;
pub use prepacking::{Keeper, Stopped};
pub use signature::refuse_pickle;
pub use storage::{FloatType, Storage};
pub use summary::{ComponentSummary, Summary};
pub use tensors::{Overlay, TensorSet};
pub use write_error::WriteError;

use crate::files;
use crate::request::{Defaults, MAX_SIZE, SIZE_STEP, Sampler, Schedule};

/// The model that is part of the binary.
static BUILT_IN: &[u8] = include_bytes!("../../models/pocket/pocket.safetensors");

/// What a model of these configs draws well with: customary settings at the size the UNet was trained for.
fn customary(configs: &Configs) -> Defaults {
    let side = |key: &str| configs.unet.get(key).and_then(Value::as_u64).unwrap_or(64) as usize;
    let levels = configs.vae.get("block_out_channels").and_then(Value::as_array).map_or(4, Vec::len);
    let factor = 1 << levels.clamp(1, 8).saturating_sub(1);
    let pixels = side("sample_size").saturating_mul(factor).clamp(SIZE_STEP, MAX_SIZE);
    let customary = Defaults {
        width: pixels / SIZE_STEP * SIZE_STEP,
        height: pixels / SIZE_STEP * SIZE_STEP,
        steps: 20,
        guidance_scale: 7.0,
        sampler: Sampler::Dpmpp2m,
        schedule: Schedule::Karras,
    };
    // A UNet that takes the guidance scale as an input is a distilled latent consistency model: a few steps.
    if configs.unet.get("time_cond_proj_dim").is_some_and(Value::is_u64) {
        let schedule = Schedule::Trailing;
        return Defaults { steps: 4, guidance_scale: 8.0, sampler: Sampler::Lcm, schedule, ..customary };
    }
    customary
}

/// The form a model came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    BuiltIn,
    Native,
    Folder,
    /// One safetensors file with the names of LDM's code.
    Ldm,
    /// One safetensors file with other names.
    Single,
    Gguf,
    Synthetic,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BuiltIn => "built in",
            Self::Native => "native file",
            Self::Folder => "diffusers folder",
            Self::Ldm => "LDM file",
            Self::Single => "single safetensors file",
            Self::Gguf => "GGUF file",
            Self::Synthetic => "random weights",
        })
    }
}

/// What a model is written as.
#[derive(Debug, Clone, Copy)]
pub enum Form<'a> {
    Native(Storage<'a>),
    /// A folder for diffusers and other programs; int8 weights become floats.
    Diffusers(FloatType),
}

impl Form<'_> {
    /// Whether something is at `path` that is never replaced.
    pub fn is_taken(self, path: &Path) -> bool {
        match self {
            Self::Native(_) => files::check_replaceable(path).is_err(),
            Self::Diffusers(_) => export::is_taken(path),
        }
    }
}

/// The components' configs as published, parsed by the networks they describe.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Configs {
    pub text_encoder: Value,
    pub unet: Value,
    pub vae: Value,
    pub scheduler: Value,
}

/// A byte-pair vocabulary in CLIP's two files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vocabulary {
    /// `vocab.json`: token to id.
    pub vocab: Cow<'static, str>,
    /// `merges.txt`: pairs in order of rank.
    pub merges: Cow<'static, str>,
}

impl Vocabulary {
    /// OpenAI CLIP's own, which all of SD 1.x uses.
    pub fn clip() -> Self {
        Self {
            vocab: include_str!("../../models/clip/vocab.json").into(),
            merges: include_str!("../../models/clip/merges.txt").into(),
        }
    }
}

/// An opened model: headers and configs are read and checked, tensors are read when asked for. Clones share the files.
#[derive(Clone)]
pub struct Checkpoint {
    name: String,
    origin: Origin,
    defaults: Defaults,
    configs: Configs,
    vocabulary: Vocabulary,
    tensors: TensorSet,
    /// Components from files of their own, and those files' names.
    replaced: Vec<(Replaceable, String)>,
}

impl Checkpoint {
    /// Opens a diffusers folder, a native file, an LDM file or a GGUF file, recognised from its content. A file
    /// that holds just a UNet is opened too: see [`Self::replace`] and [`Self::check_complete`].
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self> {
        let found = fs::metadata(path).with_context(|| format!("can't open model {}", path.display()))?;
        if found.is_dir() {
            return folder::open(path);
        }
        signature::check(path)?;
        let file = TensorFile::open(path)?;
        let read = if file.metadata().contains_key(native::KEY) {
            native::read(file)
        } else {
            single::read(file, path)
        };
        read.with_context(|| format!("{} is not usable", path.display()))
    }

    /// Whether `path` is a folder or begins as a file of tensors does, so that [`Self::open`] is worth trying.
    pub fn is_at(path: &Path) -> bool {
        path.is_dir() || signature::is_tensor_file(path)
    }

    /// The model that is part of the binary.
    ///
    /// # Errors
    /// Only if the binary was built with a damaged file.
    pub fn built_in() -> Result<Self> {
        let read = native::read(TensorFile::embedded(BUILT_IN)?)?;
        Ok(Self { origin: Origin::BuiltIn, ..read })
    }

    /// Takes one component from a file or folder of its own, in any of the namings [`Self::open`] reads.
    ///
    /// # Errors
    /// Names the file and why it can't take the part's place.
    pub fn replace(&mut self, part: Replaceable, path: &Path) -> Result<()> {
        component::replace(self, part, path)
    }

    /// The components that were replaced, each with the name of the file it came from.
    pub fn replaced(&self) -> &[(Replaceable, String)] {
        &self.replaced
    }

    /// Checks that every component is there.
    ///
    /// # Errors
    /// Names those that are missing, and how to add them.
    pub fn check_complete(&self) -> Result<()> {
        single::check_complete(self)
    }

    /// What the model is made of.
    pub fn summary(&self) -> Summary {
        summary::of(self)
    }

    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The size of the model that is part of the binary.
    pub fn built_in_bytes() -> u64 {
        BUILT_IN.len() as u64
    }

    /// SD 1.5's geometry with random weights, which come into being when they are asked for.
    pub fn synthetic_sd15() -> Self {
        let configs = Configs {
            text_encoder: sd15::text_encoder(),
            unet: sd15::unet(),
            vae: sd15::vae(),
            scheduler: sd15::scheduler(),
        };
        Self {
            name: "synthetic-sd15".to_owned(),
            origin: Origin::Synthetic,
            defaults: customary(&configs),
            configs,
            vocabulary: Vocabulary::clip(),
            tensors: TensorSet::random(),
            replaced: Vec::new(),
        }
    }

    /// Writes the model to `path` in `form`, through a sibling temporary file or folder. `stopped` is asked before
    /// each tensor whether to give up.
    ///
    /// # Errors
    /// When a tensor can't be converted, a pattern of layers to keep matches none, the file or folder can't be
    /// written, or something but an empty folder is where a folder is to be.
    pub fn write(&self, path: &Path, form: Form<'_>, stopped: &dyn Fn() -> bool) -> Result<(), WriteError> {
        self.check_complete()?;
        match form {
            Form::Native(storage) => native::write(self, path, storage, stopped),
            Form::Diffusers(floats) => export::write(self, path, floats, stopped),
        }
    }

    /// Writes the model as a native file, come what may.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_native(&self, path: &Path, storage: Storage<'_>) -> Result<(), WriteError> {
        self.write(path, Form::Native(storage), &|| false)
    }

    /// Bytes of the file that [`Self::write_native`] makes of a model whose weights are floats.
    ///
    /// # Errors
    /// When it would have a header that no file may have.
    pub fn native_length(&self, storage: Storage<'_>) -> Result<u64> {
        native::length(self, storage)
    }

    /// Writes the model as a diffusers folder, come what may.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_diffusers(&self, path: &Path, floats: FloatType) -> Result<(), WriteError> {
        self.write(path, Form::Diffusers(floats), &|| false)
    }

    /// The native file of quantized weights that the model is, if it is one: what can be prepacked.
    fn quantized_file(&self) -> Option<(&TensorFile, &Path)> {
        let is_one = self.origin == Origin::Native && self.tensors.is_quantized();
        let file = self.tensors.first_file().filter(|_| is_one)?;
        Some((file, file.path()?))
    }

    /// Where the model's weights belong, packed for the kernels called `kernel`: beside its file, if it is a native one
    /// of quantized weights.
    pub fn prepacked_path(&self, kernel: &str) -> Option<PathBuf> {
        Some(prepacked::path(self.quantized_file()?.1, kernel))
    }

    /// The same model, of whose file's weights those that lie beside it, packed for the kernels called `kernel` in the
    /// layout of this name, are used; why not, if something is there that is of no use.
    pub fn with_prepacked(self, kernel: &str, layout: impl FnOnce() -> String) -> (Self, Option<String>) {
        let Some((model, path)) = self.quantized_file() else { return (self, None) };
        let path = prepacked::path(path, kernel);
        if !path.exists() {
            return (self, None);
        }
        match prepacked::Prepacked::open(&path, model, layout()) {
            Ok(found) => (Self { tensors: self.tensors.with_prepacked(found), ..self }, None),
            Err(error) => {
                let notice = format!("{} is not used: {error:#}", path.display());
                (self, Some(notice))
            }
        }
    }

    /// Writes what `pack` hands to a keeper to where [`Self::prepacked_path`] says; how many bytes.
    ///
    /// # Errors
    /// When the model is no native file of quantized weights, the file can't be written or `stopped` says so.
    pub fn write_prepacked(
        &self,
        kernel: &str,
        layout: String,
        stopped: Stopped,
        pack: &dyn Fn(Arc<dyn Keeper>) -> Result<()>,
    ) -> Result<u64, WriteError> {
        let (model, path) =
            self.quantized_file().context("only a native file of quantized weights can be prepacked")?;
        prepacking::write(&prepacked::path(path, kernel), model, layout, stopped, pack)
    }

    /// The model's short name, e.g. `pocket`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn defaults(&self) -> Defaults {
        self.defaults
    }

    /// Gives the model another name or other defaults, e.g. before it is written.
    pub fn describe(&mut self, name: String, defaults: Defaults) {
        self.name = name;
        self.defaults = defaults;
    }

    pub fn configs(&self) -> &Configs {
        &self.configs
    }

    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    pub fn tensors(&self) -> &TensorSet {
        &self.tensors
    }

    /// The same model with `overlay` merged into its weights as these are read.
    #[must_use]
    pub fn merged(&self, overlay: impl Overlay + 'static) -> Self {
        self.with_tensors(self.tensors.merged(overlay))
    }

    /// The same model with `tensors` in the place of its own, from which they were made.
    #[must_use]
    pub fn with_tensors(&self, tensors: TensorSet) -> Self {
        Self { tensors, ..self.clone() }
    }
}
