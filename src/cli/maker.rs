//! What made a picture beside its request, as its record tells; how records are written stands in `request`.

use std::collections::BTreeMap;

use crate::request::{Precision, Record, Request, UsedFile};

/// What pictures of a run are made by. Kernel and device are part of the record but not of the comparison: a
/// run that is resumed on another machine keeps what the first one finished.
pub struct Maker {
    pub model: String,
    /// Those that are not the model's own.
    pub components: BTreeMap<String, String>,
    pub precision: Precision,
    pub kernel: String,
    pub device: &'static str,
}

impl Maker {
    /// `files` are those beside the model that the picture was made with.
    pub fn record(&self, request: Request, files: Vec<UsedFile>, tiled: bool) -> Record<Request> {
        Record {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.model.clone(),
            components: self.components.clone(),
            precision: self.precision,
            kernel: self.kernel.clone(),
            device: self.device.to_owned(),
            files,
            tiled,
            request,
        }
    }
}
