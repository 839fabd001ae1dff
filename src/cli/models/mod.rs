//! `pochade models`: one file per subcommand, and what they share about pulled models.

pub mod args;
mod fetching;
mod list;
mod path;
mod pull;
mod remove;
mod show;
mod verify;

use std::path::Path;

use args::{ModelsArgs, ModelsCommand};

use super::exit::{Exit, Failure};
use super::model;
use crate::checkpoint::Checkpoint;
use crate::hub::{self, ModelId, Pulled};

/// Runs the subcommand.
///
/// # Errors
/// As the subcommand.
pub fn run(args: &ModelsArgs) -> Result<Exit, Failure> {
    match &args.command {
        ModelsCommand::Pull(args) => pull::run(args),
        ModelsCommand::List(args) => list::run(args),
        ModelsCommand::Show(args) => show::run(args),
        ModelsCommand::Path(args) => path::run(args),
        ModelsCommand::Verify(args) => verify::run(args),
        ModelsCommand::Remove(args) => remove::run(args),
    }
}

/// Every pulled model.
///
/// # Errors
/// When the environment names no cache folder.
pub fn pulled() -> hub::Result<Vec<Pulled>> {
    hub::all(|path| Checkpoint::open(path).is_ok())
}

/// Bytes of a pulled model's files on disk, the int8 file included.
pub fn size(pulled: &Pulled) -> u64 {
    // Links are followed: what they lead to is the model's, even if other commits share it.
    let of = |path: &Path| path.metadata().map_or(0, |file| file.len());
    let source = match &pulled.source {
        Some(folder) if folder.is_dir() => hub::files(folder).iter().map(|file| of(&folder.join(file))).sum(),
        Some(file) => of(file),
        None => 0,
    };
    source + pulled.native.as_deref().map_or(0, of)
}

/// A number of bytes as a person would say it.
pub fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        _ if count >= 1e9 => format!("{:.2} GB", count / 1e9),
        _ if count >= 1e6 => format!("{:.1} MB", count / 1e6),
        _ if count >= 1e3 => format!("{:.1} kB", count / 1e3),
        _ => format!("{count} bytes"),
    }
}

fn id(text: &str) -> Result<ModelId, Failure> {
    ModelId::parse(text).ok_or_else(|| {
        let aliases = hub::ALIASES.map(|alias| alias.name).join(", ");
        Failure::usage(format!(
            "'{text}' is no model on the Hub: expected org/name[@revision] or an alias ({aliases})"
        ))
    })
}

/// The pulled model called `text`.
fn find(text: &str) -> Result<Pulled, Failure> {
    let id = id(text)?;
    hub::find(&id)?.ok_or_else(|| model::not_pulled(&id, "by its id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_human() {
        assert_eq!(
            [0, 999, 1_500, 246_144_152, 1_719_125_304].map(bytes),
            ["0 bytes", "999 bytes", "1.5 kB", "246.1 MB", "1.72 GB"]
        );
    }
}
