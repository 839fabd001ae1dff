//! The Hugging Face Hub: models are named, fetched into the cache shared with Python tools, and found there; no
//! picture is made and no model is parsed here.

mod cache;
pub mod environment;
mod error;
mod hash;
mod id;
mod info;
mod plan;
mod pull;
mod pulled;
mod transfer;

pub use cache::{Cache, Repository, files, remove_folder};
pub use error::{Error, ErrorKind, Result};
pub use id::{ALIASES, Alias, DEFAULT, ModelId, PARTS, Part, part};
pub use info::ModelInfo;
pub use plan::needed;
pub use pull::{Plan, Watcher, pull};
pub use pulled::{Natives, Pulled, all, commit, find, find_file, licence, verify};
pub use transfer::Client;
