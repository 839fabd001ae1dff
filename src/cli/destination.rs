//! Where `convert` and `quantize` write: checked before the work, swept, and left whole when a signal comes.

use std::path::Path;

use super::exit::{Exit, Failure};
use super::signals::Signals;
use crate::checkpoint::{Checkpoint, Form, WriteError};
use crate::files;

/// Makes sure that `path` can become a file, or in the form of a folder a folder, before anything is read.
///
/// # Errors
/// Names what is there already, or the folder that can't be written to.
pub fn check(path: &Path, form: Form<'_>, force: bool) -> Result<(), Failure> {
    let shown = path.display();
    match form {
        // A folder is never replaced, since it may hold more than the model.
        Form::Diffusers(_) if form.is_taken(path) => {
            return Err(Failure::usage(format!("{shown} exists already, and is not an empty folder")));
        }
        Form::Diffusers(_) => {}
        Form::Native(_) => check_file(path, force)?,
    }
    check_folder(path)
}

/// Makes sure that `path` can become a file of `folder_of(path)`, in the place of another file only with `--force`.
///
/// # Errors
/// As [`check`].
pub fn check_file(path: &Path, force: bool) -> Result<(), Failure> {
    let shown = path.display();
    if files::check_replaceable(path).is_err() {
        return Err(Failure::usage(format!("{shown} is not a regular file, and is not replaced"))
            .hint("choose another name"));
    }
    if path.symlink_metadata().is_ok() && !force {
        return Err(Failure::usage(format!("{shown} exists already")).hint("`--force` replaces it"));
    }
    check_folder(path)
}

/// Makes sure that a file can be made in the folder of `path`.
///
/// # Errors
/// Says why not.
pub fn check_folder(path: &Path) -> Result<(), Failure> {
    let folder = files::folder_of(path);
    match files::unusable_folder(folder) {
        None => Ok(()),
        Some(error) => {
            Err(Failure::usage(format!("folder {} can't be written to: {error}", folder.display()))
                .hint("make it first, or choose another one"))
        }
    }
}

/// Writes `checkpoint` to `path`; the answer tells whether it was written or a signal came before.
///
/// # Errors
/// Whether the model or the disk is to blame.
pub fn write(
    checkpoint: &Checkpoint,
    path: &Path,
    form: Form<'_>,
    signals: &Signals,
) -> Result<Exit, Failure> {
    files::sweep(files::folder_of(path));
    signals.exit_at_once(false);
    let written = checkpoint.write(path, form, &|| signals.received().is_some());
    signals.exit_at_once(true);
    match written {
        Ok(()) => Ok(Exit::Done),
        Err(WriteError::Stopped) => Ok(signals.received().unwrap_or(Exit::Interrupted)),
        Err(error) => Err(error.into()),
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Model(error) => Self { exit: Exit::Model, error, hint: None },
            WriteError::Disk(error) => Self { exit: Exit::PictureFailed, error, hint: None },
            WriteError::Stopped => Self::new(Exit::Interrupted, "stopped"),
        }
    }
}
