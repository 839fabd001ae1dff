//! `pochade models path`: where a pulled model, or a part to use with one, lies.

use super::super::exit::{Exit, Failure, OrExit};
use super::super::printer;
use super::args::PathArgs;
use crate::hub;

/// Prints what `-m` would open, or a part's file.
///
/// # Errors
/// When it has not been pulled.
pub fn run(args: &PathArgs) -> Result<Exit, Failure> {
    if let Some(part) = hub::part(&args.model) {
        let pulled = hub::find_file(&part.id(), part.file)?.and_then(|pulled| pulled.source);
        let path = pulled.ok_or_else(|| {
            Failure::new(Exit::Model, format!("'{}' has not been pulled", part.name))
                .hint(format!("`pochade models pull {}` fetches it", part.name))
        })?;
        return printer::stdout_path(&path).or_exit(Exit::PictureFailed).map(|()| Exit::Done);
    }
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
