//! A model's files, whatever their format: configs, vocabulary and tensors by diffusers name; nothing is computed here.

mod export;
mod fingerprint;
mod folder;
pub mod lora;
mod names;
mod native;
mod pickle;
mod random;
mod sd15;
mod store;
mod tensors;

use std::borrow::Cow;
use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use fingerprint::fingerprint;
pub use names::Component;
pub use pickle::refuse_pickle;
pub use store::{FloatType, Storage};
pub use tensors::{TensorFile, TensorSet, TensorView};

use crate::request::{SIZE_STEP, Sampler, Schedule};

/// The model that is part of the binary.
static BUILT_IN: &[u8] = include_bytes!("../../models/pocket/pocket.safetensors");

/// What a model draws best with, used where a request says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    pub width: usize,
    pub height: usize,
    pub steps: usize,
    pub guidance_scale: f64,
    pub sampler: Sampler,
    pub schedule: Schedule,
}

impl Defaults {
    /// Customary settings at the size the UNet was trained for.
    fn for_configs(configs: &Configs) -> Self {
        let side = |key: &str| configs.unet.get(key).and_then(Value::as_u64).unwrap_or(64) as usize;
        let levels = configs.vae.get("block_out_channels").and_then(Value::as_array).map_or(4, Vec::len);
        let factor = 1 << levels.clamp(1, 8).saturating_sub(1);
        let pixels = side("sample_size").saturating_mul(factor).clamp(SIZE_STEP, crate::request::MAX_SIZE);
        Self {
            width: pixels / SIZE_STEP * SIZE_STEP,
            height: pixels / SIZE_STEP * SIZE_STEP,
            steps: 20,
            guidance_scale: 7.0,
            sampler: Sampler::Dpmpp2m,
            schedule: Schedule::Karras,
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

/// An opened model: headers and configs are read and checked, tensors are read when asked for.
pub struct Checkpoint {
    name: String,
    defaults: Defaults,
    configs: Configs,
    vocabulary: Vocabulary,
    tensors: TensorSet,
}

impl Checkpoint {
    /// Opens a diffusers folder or a native file, recognised from its content.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = fs::metadata(path).with_context(|| format!("can't open model {}", path.display()))?;
        if kind.is_dir() {
            return folder::open(path);
        }
        let mut magic = [0; 4];
        let complete = fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok();
        if complete && &magic == b"GGUF" {
            bail!("{} is a GGUF file, which this version does not read", path.display());
        }
        let file = TensorFile::open(path)?;
        if file.metadata().contains_key(native::KEY) {
            return native::read(file).with_context(|| format!("{} is not usable", path.display()));
        }
        if file.names().any(|name| name.starts_with("model.diffusion_model.")) {
            bail!("{} is a single LDM file, which this version does not read", path.display());
        }
        bail!("{} is a safetensors file, but no model pochade knows", path.display())
    }

    /// The model that is part of the binary.
    ///
    /// # Errors
    /// Only if the binary was built with a damaged file.
    pub fn built_in() -> Result<Self> {
        native::read(TensorFile::embedded(BUILT_IN)?)
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
            defaults: Defaults::for_configs(&configs),
            configs,
            vocabulary: Vocabulary::clip(),
            tensors: TensorSet::random(),
        }
    }

    /// Writes the model as a native file, through a sibling temporary file.
    ///
    /// # Errors
    /// When a tensor can't be converted, a pattern of layers to keep matches none, or the file can't be written.
    pub fn write_native(&self, path: &Path, storage: Storage<'_>) -> Result<()> {
        native::write(self, path, storage)
    }

    /// Writes the model as a diffusers folder, through a sibling temporary one; int8 weights become floats.
    ///
    /// # Errors
    /// When something but an empty folder is at `path`, a tensor can't be converted or a file not be written.
    pub fn write_diffusers(&self, path: &Path, floats: FloatType) -> Result<()> {
        export::write(self, path, floats)
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
}
