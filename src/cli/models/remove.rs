//! `pochade models remove`: a commit's snapshot, what only it uses, and its int8 files.

use std::io::{self, BufRead, IsTerminal, Write};

use super::super::exit::{Exit, Failure, OrExit};
use super::super::printer::{Printer, Verbosity};
use super::args::RemoveArgs;
use super::bytes;
use crate::hub::{self, Cache, Natives};

/// Removes the model after asking.
///
/// # Errors
/// When the model is not there, nobody can be asked, or the disk refuses.
pub fn run(args: &RemoveArgs) -> Result<Exit, Failure> {
    let id = super::id(&args.model)?;
    let commit = hub::commit(&id)?.ok_or_else(|| super::model::not_pulled(&id, "by its id"))?;
    let printer = Printer::new(Verbosity::Normal, false);
    if !args.yes && !agreed(&format!("remove {id} at {}?", &commit[..12]))? {
        printer.status("nothing was removed");
        return Ok(Exit::Done);
    }
    let freed = Cache::from_environment()?.repository(&id).remove(&commit)?
        + Natives::from_environment()?.remove(&id, &commit)?;
    printer.status(&format!("removed {id} at {}: {} freed", &commit[..12], bytes(freed)));
    Ok(Exit::Done)
}

fn agreed(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(
            "nobody can be asked whether to remove it: stdin or stderr is no terminal",
        )
        .hint("`--yes` removes without asking"));
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush()).or_exit(Exit::PictureFailed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).or_exit(Exit::PictureFailed)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
