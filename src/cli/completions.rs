//! `pochade completions SHELL`: a completion script on stdout.

use clap::CommandFactory;

use super::args::{Cli, CompletionsArgs};
use super::exit::{Exit, Failure, OrExit};
use super::printer;

/// Prints the script.
///
/// # Errors
/// When stdout can't be written.
pub fn run(args: &CompletionsArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pochade", &mut script);
    printer::stdout(&script).or_exit(Exit::PictureFailed)?;
    Ok(Exit::Done)
}
