//! `pochade models path`: where a pulled model lies.

use super::super::exit::{Exit, Failure, OrExit};
use super::super::printer;
use super::args::PathArgs;

/// Prints what `-m` would open.
///
/// # Errors
/// When the model has not been pulled.
pub fn run(args: &PathArgs) -> Result<Exit, Failure> {
    let pulled = super::find(&args.model)?;
    let path = match (&pulled.source, args.source) {
        (Some(source), true) => source,
        (None, true) => {
            return Err(Failure::new(Exit::Model, format!("of {} only the int8 file is there", pulled.id)));
        }
        (_, false) => pulled.path(),
    };
    printer::stdout_path(path).or_exit(Exit::PictureFailed)?;
    Ok(Exit::Done)
}
