//! The adapter that is part of the binary: it draws the built-in model's pictures in a few steps.

use std::path::{Path, PathBuf};

/// Where embedded adapters would lie if they were files; none of theirs has an ending.
const FOLDER: &str = "built-in";

const POCKET_LCM: (&str, &[u8]) =
    ("pocket-lcm", include_bytes!("../../../models/pocket/pocket-lcm.safetensors"));

/// What stands for the path of the embedded adapter called `name`.
pub fn built_in(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// The file that is embedded, if `path` stands for one.
pub(super) fn bytes(path: &Path) -> Option<&'static [u8]> {
    let (name, bytes) = POCKET_LCM;
    (path == built_in(name)).then_some(bytes)
}
