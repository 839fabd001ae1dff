//! `pochade prepack`: a quantized file's weights as this CPU's kernels read them, beside it, so that runs need not pack them.

use std::sync::Arc;

use super::args::PrepackArgs;
use super::exit::{Exit, Failure, OrExit};
use super::model::{Choice, Rule, Source};
use super::printer::{Printer, Verbosity};
use super::signals::Signals;
use super::{backend, destination, printer};
use crate::checkpoint::{WriteError, is_packed};
use crate::files;
use crate::pipeline::{Model, Numerics};
use crate::request::Precision;

/// Writes the file and prints its name.
///
/// # Errors
/// When the model is no native file of quantized weights, something else has the file's name, or the disk fails.
pub fn run(args: &PrepackArgs) -> Result<Exit, Failure> {
    let signals = Signals::catch().or_exit(Exit::PictureFailed)?;
    let printer = Printer::new(Verbosity::Normal, false);
    backend::start_threads(args.threads, &printer)?;
    let checkpoint = Choice { source: Source::named(&args.model), rule: Rule::Argument }.open()?;
    // Files that are mapped can't be replaced on every system.
    let model = Model::open_plain(checkpoint, &Numerics::on_cpu(Precision::Int8)).or_exit(Exit::Model)?;
    let Some(path) = model.prepacked_path() else {
        return Err(Failure::usage(format!("{} is no file of quantized weights", args.model.display()))
            .hint("make one with `pochade quantize`, and prepack that"));
    };
    if path.symlink_metadata().is_ok() && !is_packed(&path) {
        return Err(Failure::usage(format!("{} exists, and holds no packed weights", path.display()))
            .hint("move it out of the way"));
    }
    destination::check_folder(&path)?;
    files::sweep(files::folder_of(&path));
    signals.exit_at_once(false);
    let stopped = signals.clone();
    let written = model.prepack(Arc::new(move || stopped.received().is_some()));
    signals.exit_at_once(true);
    match written {
        Ok(bytes) => {
            printer.status(&format!("{:.1} MB for {}", bytes as f64 / 1e6, model.kernel()));
            printer::stdout_path(&path).or_exit(Exit::PictureFailed)?;
            Ok(Exit::Done)
        }
        Err(WriteError::Stopped) => Ok(signals.received().unwrap_or(Exit::Interrupted)),
        Err(error) => Err(error.into()),
    }
}
