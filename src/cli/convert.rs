//! `pochade convert`: any readable model to one native file, or to a diffusers folder for other programs.

use super::backend;
use super::destination;
use super::exit::{Exit, Failure, OrExit};
use super::model_args::{ConvertArgs, Format, StorageChoice};
use super::printer::{Printer, Verbosity};
use super::signals::Signals;
use crate::checkpoint::{Checkpoint, FloatType, Form, Storage};

/// Reads the source and writes the destination.
///
/// # Errors
/// When the destination exists and may not be replaced, the source is no usable model, or the disk fails.
pub fn run(args: &ConvertArgs) -> Result<Exit, Failure> {
    let signals = Signals::catch().or_exit(Exit::PictureFailed)?;
    let floats = match args.storage {
        StorageChoice::F32 => FloatType::F32,
        StorageChoice::F16 => FloatType::F16,
    };
    let form = match args.format {
        Format::Native => Form::Native(Storage::Float(floats)),
        Format::Diffusers => Form::Diffusers(floats),
    };
    destination::check(&args.destination, form, args.force)?;
    let printer = Printer::new(Verbosity::Normal, false);
    backend::start_threads(None, &printer)?;
    let mut checkpoint = Checkpoint::open(&args.source).or_exit(Exit::Model)?;
    args.parts.apply(&mut checkpoint)?;
    let mut checkpoint = args.merge.apply(&checkpoint, printer)?;
    let mut defaults = checkpoint.defaults();
    defaults.guidance_scale = args.cfg.unwrap_or(defaults.guidance_scale);
    defaults.steps = args.steps.unwrap_or(defaults.steps);
    let name = args.name.clone().unwrap_or_else(|| checkpoint.name().to_owned());
    checkpoint.describe(name, defaults);
    destination::write(&checkpoint, &args.destination, form, &signals)
}
