//! `pochade convert`: any readable model to one native file.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use crate::checkpoint::{Checkpoint, Storage};

/// Write a model as one native file: weights, configs, vocabulary and defaults together.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// Diffusers folder or native file to read
    source: PathBuf,

    /// Native file to write, e.g. model.safetensors
    destination: PathBuf,

    /// Type of the weights in the file
    #[arg(long, value_enum, default_value = "f16")]
    storage: StorageArg,

    /// Name of the model in the file (default: the source's)
    #[arg(long)]
    name: Option<String>,

    /// Guidance scale the model draws best with (default: the source's)
    #[arg(long, value_name = "SCALE")]
    cfg: Option<f64>,

    /// Steps the model needs (default: the source's)
    #[arg(long)]
    steps: Option<usize>,

    /// Replace the destination if it exists
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum StorageArg {
    F32,
    F16,
}

pub fn run(args: &ConvertArgs) -> Result<()> {
    ensure!(
        args.force || !args.destination.exists(),
        "{} exists already (--force replaces it)",
        args.destination.display()
    );
    let mut checkpoint = Checkpoint::open(&args.source)?;
    let mut defaults = checkpoint.defaults();
    defaults.guidance_scale = args.cfg.unwrap_or(defaults.guidance_scale);
    defaults.steps = args.steps.unwrap_or(defaults.steps);
    let name = args.name.clone().unwrap_or_else(|| checkpoint.name().to_owned());
    checkpoint.describe(name, defaults);
    let storage = match args.storage {
        StorageArg::F32 => Storage::F32,
        StorageArg::F16 => Storage::F16,
    };
    checkpoint.write_native(&args.destination, storage)
}
