//! The command line: from raw arguments to an exit code; tensors are not known here.

mod args;
mod backend;
mod batch;
mod bench;
mod by_product;
mod completions;
mod convert;
mod destination;
mod doctor;
mod exit;
mod fast;
mod generate;
mod info;
mod man;
mod memory_guard;
mod model;
mod model_args;
mod model_info;
mod models;
mod named_files;
mod output;
mod prepack;
mod preview;
mod printer;
mod progress;
mod prompt;
mod quantize;
mod report;
mod session;
mod show;
mod signals;
mod slug;
mod speeds;
mod sweep;
mod table;
mod template;
mod tokens;
mod verify;
mod watched;
mod within;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::hub;
use args::{Cli, Command};
use exit::{Exit, Failure};

/// Runs the program on the process's own arguments.
pub fn run() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &words).into(),
    };
    let exit = dispatch(cli).unwrap_or_else(|failure| {
        printer::failure(&failure);
        failure.exit
    });
    exit.into()
}

fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    if cli.offline {
        hub::environment::forbid_connections();
    }
    if cli.command.as_ref().is_none_or(computes) {
        backend::kernel()?;
    }
    match cli.command {
        None => generate::run(&cli.generate),
        Some(Command::Generate(args)) => generate::run(&args),
        Some(Command::Tokens(args)) => tokens::run(&args),
        Some(Command::Batch(args)) => batch::run(&args),
        Some(Command::Verify(args)) => verify::run(&args),
        Some(Command::Sweep(args)) => sweep::run(&args),
        Some(Command::Info(args)) => info::run(&args),
        Some(Command::Doctor(args)) => doctor::run(&args),
        Some(Command::Convert(args)) => convert::run(&args),
        Some(Command::Quantize(args)) => quantize::run(&args),
        Some(Command::Prepack(args)) => prepack::run(&args),
        Some(Command::Models(args)) => models::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Completions(args)) => completions::run(&args),
        Some(Command::Man) => man::run(),
    }
}

/// Whether kernels may run.
fn computes(command: &Command) -> bool {
    match command {
        Command::Generate(_)
        | Command::Batch(_)
        | Command::Verify(_)
        | Command::Sweep(_)
        | Command::Quantize(_)
        | Command::Prepack(_)
        | Command::Bench(_) => true,
        Command::Tokens(_)
        | Command::Info(_)
        | Command::Doctor(_)
        | Command::Convert(_)
        | Command::Models(_)
        | Command::Completions(_)
        | Command::Man => false,
    }
}

/// Prints help, the version or what is wrong with the arguments.
fn usage(error: &clap::Error, words: &[OsString]) -> Exit {
    // A reader that closed the pipe has seen enough.
    let _ = error.print();
    if !error.use_stderr() {
        return Exit::Done;
    }
    let first = words.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    let is_subcommand = Cli::command().find_subcommand(first).is_some();
    if is_subcommand && words.len() > 2 && first != "generate" {
        printer::hint(&format!(
            "if '{first}' begins a prompt, quote the prompt or write `pochade -- {first} …`"
        ));
    }
    Exit::Usage
}
