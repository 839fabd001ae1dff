//! A model's files, whatever their format: configs, tokenizer and tensors by diffusers name; nothing is computed here.

use std::path::Path;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::request::{Sampler, Schedule};

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

/// An opened model: headers and configs are read and checked, tensors are read when asked for.
pub struct Checkpoint {}

impl Checkpoint {
    /// Opens a diffusers folder or a native file, recognised from its content.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn open(_path: &Path) -> Result<Self> {
        bail!("skeleton")
    }

    /// The model embedded in the binary.
    pub fn built_in() -> Result<Self> {
        bail!("skeleton")
    }

    /// The model's short name, e.g. `pocket`.
    pub fn name(&self) -> &str {
        ""
    }

    pub fn defaults(&self) -> Defaults {
        Defaults {
            width: 64,
            height: 64,
            steps: 20,
            guidance_scale: 3.0,
            sampler: Sampler::Dpmpp2m,
            schedule: Schedule::Karras,
        }
    }
}
