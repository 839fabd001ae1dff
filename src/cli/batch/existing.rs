//! Whether a picture on disk is the one an item asks for.

use std::io::ErrorKind;
use std::path::Path;

use crate::cli::session::Provenance;
use crate::png;
use crate::request::{Draft, Embedded, Request, UsedFile};

/// What is where a picture goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Existing {
    Nothing,
    /// A whole picture of the same request and model.
    Same,
    /// Another picture or file, and in which way.
    Other(String),
    /// What can't be replaced by a picture.
    NoFile,
}

/// Looks at `path`, where a picture of `request` made with `files` should be.
pub fn look(path: &Path, request: &Request, files: &[UsedFile], provenance: &Provenance) -> Existing {
    match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Existing::Nothing,
        Err(error) => return Existing::Other(format!("can't be looked at: {error}")),
        Ok(_) if path.is_file() => {}
        Ok(_) => return Existing::NoFile,
    }
    let header = match png::read_header(path) {
        Ok(header) => header,
        Err(_) => return Existing::Other("is no finished picture".to_owned()),
    };
    let record = match Embedded::find(header.chunks()) {
        Ok(Some(Embedded::Record(record))) => record,
        Ok(_) => return Existing::Other("does not say how it was made".to_owned()),
        Err(_) => return Existing::Other("was made by another version".to_owned()),
    };
    if record.model != provenance.model || record.precision != provenance.precision {
        let (model, precision) = (record.model, record.precision);
        return Existing::Other(format!("was made by {model} in {precision}"));
    }
    if record.components != provenance.components {
        return Existing::Other("was made with other components".to_owned());
    }
    if record.files != files {
        return Existing::Other("was made with other LoRA or embedding files".to_owned());
    }
    if record.request != Draft::from(request.without_folders()) {
        return Existing::Other("was made from another request".to_owned());
    }
    Existing::Same
}
