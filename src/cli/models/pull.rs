//! `pochade models pull`: fetch, check, quantize, and say where the model lies.

use std::path::PathBuf;

use serde_json::json;

use super::super::exit::{Exit, Failure, OrExit};
use super::super::printer::{self, Printer, Verbosity};
use super::super::report::shown;
use super::super::signals::Signals;
use super::super::{backend, model};
use super::args::PullArgs;
use super::fetching::Fetching;
use super::{bytes, size};
use crate::checkpoint::{Checkpoint, Form, Storage, WriteError};
use crate::hub::{self, Cache, Client, ModelId, Natives, Pulled};
use crate::quantize::Policy;

/// Pulls a model; without connections, makes the int8 file of one that is in the cache.
///
/// # Errors
/// When the model can't be fetched, is none, or the disk fails.
pub fn run(args: &PullArgs) -> Result<Exit, Failure> {
    let part = hub::part(&args.model);
    let file = args.file.as_deref().or(part.map(|part| part.file));
    let mut id = part.map_or_else(|| super::id(&args.model), |part| Ok(part.id()))?;
    if let Some(revision) = &args.revision {
        id = id.at(revision).ok_or_else(|| Failure::usage(format!("'{revision}' is no revision")))?;
    }
    // What has been fetched stays and the next pull continues there: until there is something to clean up, a signal
    // may end the run at any moment.
    let signals = Signals::catch().or_exit(Exit::PictureFailed)?;
    let verbosity = if args.quiet { Verbosity::Quiet } else { Verbosity::Normal };
    let printer = Printer::new(verbosity, true);
    backend::start_threads(args.threads, &printer)?;
    let pulled = fetch(file, &id, printer)?;
    let pulled =
        if args.no_quantize || part.is_some() { pulled } else { quantize(pulled, printer, &signals)? };
    if args.json {
        let json = json!({
            "id": pulled.id.repository(),
            "revision": pulled.id.revision(),
            "commit": pulled.commit,
            "name": pulled.name,
            "licence": hub::licence(&pulled),
            "path": shown(pulled.path()),
            "source": pulled.source.as_deref().map(shown),
            "int8": pulled.native.as_deref().map(shown),
            "bytes": size(&pulled),
        });
        printer::stdout_text(&json.to_string()).or_exit(Exit::PictureFailed)?;
    } else {
        printer::stdout_path(pulled.path()).or_exit(Exit::PictureFailed)?;
    }
    Ok(signals.received().unwrap_or(Exit::Done))
}

fn fetch(file: Option<&str>, id: &ModelId, printer: Printer) -> Result<Pulled, Failure> {
    let client = match Client::from_environment() {
        Ok(client) => client,
        // What is in the cache can be used without a connection.
        Err(error) if error.kind == hub::ErrorKind::Offline => {
            return match found(file, id)? {
                Some(pulled) => Ok(pulled),
                None => Err(Failure::from(error).hint(format!("{id} is not in the cache"))),
            };
        }
        Err(error) => return Err(error.into()),
    };
    let cache = Cache::from_environment()?;
    let mut watcher = Fetching::new(id, printer, true);
    hub::pull(&cache, &client, id, file, &mut watcher)?;
    found(file, id)?.ok_or_else(|| {
        Failure::new(Exit::Model, format!("{id} was fetched, but what it holds is no model"))
            .hint(format!("look into {}", cache.repository(id).folder().display()))
    })
}

/// The model, or the one of its files that was asked for.
fn found(file: Option<&str>, id: &ModelId) -> Result<Option<Pulled>, Failure> {
    let Some(file) = file else { return Ok(hub::find(id)?) };
    Ok(hub::find_file(id, file)?)
}

/// Makes the int8 file, unless it is there or the model is int8 already.
fn quantize(pulled: Pulled, printer: Printer, signals: &Signals) -> Result<Pulled, Failure> {
    let natives = Natives::from_environment()?;
    let waiting = || printer.status("another process makes the int8 file; waiting");
    let Some(source) = pulled.source.clone() else { return Ok(pulled) };
    let path = natives.path(&pulled);
    let done = |native: PathBuf| Pulled { native: Some(native), ..pulled.clone() };
    if path.is_file() {
        return Ok(done(path));
    }
    let mut checkpoint: Checkpoint = model::open_pulled(&Pulled { native: None, ..pulled.clone() })?;
    if checkpoint.tensors().is_quantized() {
        return Ok(pulled);
    }
    let (_lock, work) = natives.begin(&pulled, waiting)?;
    signals.exit_at_once(false);
    if path.is_file() {
        hub::remove_folder(&work)?;
        return Ok(done(path));
    }
    printer.status(&format!("quantizing to int8: {}", path.display()));
    let policy = Policy::default();
    checkpoint.describe(pulled.name.clone(), checkpoint.defaults());
    let made = work.join("model.safetensors");
    let stopped = || signals.received().is_some();
    let balance = checkpoint.tensors().balance(&policy).map_err(WriteError::Model);
    let written = balance.and_then(|balance| {
        checkpoint.write(&made, Form::Native(Storage::Balanced(&policy, &balance)), &stopped)
    });
    if let Err(error) = written {
        hub::remove_folder(&work)?;
        let failure = Failure::from(error);
        let exit = signals.received().unwrap_or(failure.exit);
        return Err(
            Failure { exit, ..failure }.hint(format!("what was fetched is kept in {}", source.display()))
        );
    }
    let native = natives.finish(&pulled, &made)?;
    signals.exit_at_once(true);
    let size = native.metadata().map_or(0, |file| file.len());
    printer.status(&format!("{}: {}", native.file_name().unwrap_or_default().display(), bytes(size)));
    Ok(done(native))
}
