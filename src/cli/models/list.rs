//! `pochade models list`: the built-in model and every pulled one.

use serde::Serialize;

use super::super::exit::{Exit, Failure, OrExit};
use super::super::printer;
use super::super::report::shown;
use super::args::ListArgs;
use super::{bytes, show, size};
use crate::checkpoint::Checkpoint;
use crate::hub::Pulled;

/// One model, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Entry {
    id: String,
    commit: Option<String>,
    name: String,
    kind: &'static str,
    /// Types of the weights that are drawn with; empty when the model can't be opened.
    types: Vec<String>,
    bytes: u64,
    path: Option<String>,
    source: Option<String>,
    int8: Option<String>,
}

/// Prints one line per model.
///
/// # Errors
/// When the environment names no cache folder, or stdout can't be written.
pub fn run(args: &ListArgs) -> Result<Exit, Failure> {
    let built_in = Checkpoint::built_in().or_exit(Exit::Model)?;
    let mut entries = vec![Entry {
        id: super::model::BUILT_IN.to_owned(),
        commit: None,
        name: built_in.name().to_owned(),
        kind: "built in",
        types: show::types(built_in.tensors()),
        bytes: Checkpoint::built_in_bytes(),
        path: None,
        source: None,
        int8: None,
    }];
    entries.extend(super::pulled()?.iter().map(Entry::new));
    let text = if args.json {
        serde_json::to_string(&entries).or_exit(Exit::PictureFailed)?
    } else {
        table(&entries)
    };
    printer::stdout_text(&text).or_exit(Exit::PictureFailed)?;
    Ok(Exit::Done)
}

impl Entry {
    fn new(pulled: &Pulled) -> Self {
        let kind = match &pulled.source {
            _ if pulled.native.is_some() => "int8 file",
            Some(source) if source.is_dir() => "diffusers folder",
            _ => "single file",
        };
        let opened = Checkpoint::open(pulled.path());
        Self {
            id: pulled.id.repository(),
            commit: Some(pulled.commit.clone()),
            name: pulled.name.clone(),
            kind,
            types: opened.map(|model| show::types(model.tensors())).unwrap_or_default(),
            bytes: size(pulled),
            path: Some(shown(pulled.path())),
            source: pulled.source.as_deref().map(shown),
            int8: pulled.native.as_deref().map(shown),
        }
    }
}

fn table(entries: &[Entry]) -> String {
    let rows: Vec<[String; 5]> = entries
        .iter()
        .map(|entry| {
            let commit = entry.commit.as_deref().map_or("-", |commit| &commit[..12]).to_owned();
            let types = if entry.types.is_empty() { "unusable".to_owned() } else { entry.types.join(" ") };
            [entry.id.clone(), commit, entry.kind.to_owned(), types, bytes(entry.bytes)]
        })
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths = [width(0), width(1), width(2), width(3)];
    let line = |row: &[String; 5]| {
        let cells =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  ")).collect::<String>();
        cells + &row[4]
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
