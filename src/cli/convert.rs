//! `pochade convert`: any readable model to one native file, or to a diffusers folder for other programs.

use super::exit::{Exit, Failure, OrExit};
use super::model_args::{ConvertArgs, Format, StorageChoice};
use crate::checkpoint::{Checkpoint, FloatType, Storage};

/// Reads the source and writes the destination.
///
/// # Errors
/// When the destination exists and may not be replaced, or the source is no usable model.
pub fn run(args: &ConvertArgs) -> Result<Exit, Failure> {
    let destination = args.destination.display();
    // A folder is never replaced, since it may hold more than the model.
    if args.format == Format::Native && args.destination.exists() && !args.force {
        return Err(Failure::usage(format!("{destination} exists already")).hint("`--force` replaces it"));
    }
    let mut checkpoint = Checkpoint::open(&args.source).or_exit(Exit::Model)?;
    args.parts.apply(&mut checkpoint)?;
    let mut defaults = checkpoint.defaults();
    defaults.guidance_scale = args.cfg.unwrap_or(defaults.guidance_scale);
    defaults.steps = args.steps.unwrap_or(defaults.steps);
    let name = args.name.clone().unwrap_or_else(|| checkpoint.name().to_owned());
    checkpoint.describe(name, defaults);
    let floats = match args.storage {
        StorageChoice::F32 => FloatType::F32,
        StorageChoice::F16 => FloatType::F16,
    };
    let written = match args.format {
        Format::Native => checkpoint.write_native(&args.destination, Storage::Float(floats)),
        Format::Diffusers => checkpoint.write_diffusers(&args.destination, floats),
    };
    written.or_exit(Exit::Model)?;
    Ok(Exit::Done)
}
