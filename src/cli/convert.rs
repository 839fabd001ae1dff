//! `pochade convert`: any readable model to one native file.

use super::args::{ConvertArgs, StorageChoice};
use super::exit::{Exit, Failure, OrExit};
use crate::checkpoint::{Checkpoint, Storage};

/// Reads the source and writes the destination.
///
/// # Errors
/// When the destination exists and may not be replaced, or the source is no usable model.
pub fn run(args: &ConvertArgs) -> Result<Exit, Failure> {
    let destination = args.destination.display();
    if args.destination.exists() && !args.force {
        return Err(Failure::usage(format!("{destination} exists already")).hint("`--force` replaces it"));
    }
    let mut checkpoint = Checkpoint::open(&args.source).or_exit(Exit::Model)?;
    let mut defaults = checkpoint.defaults();
    defaults.guidance_scale = args.cfg.unwrap_or(defaults.guidance_scale);
    defaults.steps = args.steps.unwrap_or(defaults.steps);
    let name = args.name.clone().unwrap_or_else(|| checkpoint.name().to_owned());
    checkpoint.describe(name, defaults);
    let storage = match args.storage {
        StorageChoice::F32 => Storage::F32,
        StorageChoice::F16 => Storage::F16,
    };
    checkpoint.write_native(&args.destination, storage).or_exit(Exit::Model)?;
    Ok(Exit::Done)
}
