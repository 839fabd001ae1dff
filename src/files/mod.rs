//! Files as such: opened without waiting, read within bounds, written whole or not at all, hashed.

mod hash;
mod open;
mod save;

pub use hash::{Fingerprint, digest, fingerprint, sha256};
pub use open::{append, bytes, open, start, text};
pub use save::{
    Scratch, check_replaceable, folder_of, replace, save, save_folder, save_new, sweep, unusable_folder,
    with_suffix,
};
