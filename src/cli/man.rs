//! `pochade man`: the manual page, in roff, on stdout.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::args::{Cli, EXAMPLES};
use super::exit::{Exit, Failure, OrExit};
use super::{model, printer};
use crate::kernels;

/// Prints the page.
///
/// # Errors
/// When stdout can't be written.
pub fn run() -> Result<Exit, Failure> {
    let mut page = Vec::new();
    write(&mut page).or_exit(Exit::PictureFailed)?;
    printer::stdout(&page).or_exit(Exit::PictureFailed)?;
    Ok(Exit::Done)
}

fn write(page: &mut Vec<u8>) -> io::Result<()> {
    let mut command = Cli::command();
    command.build();
    let man = Man::new(command.clone()).manual("User Commands");
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    writeln!(page, ".SH SUBCOMMANDS")?;
    for subcommand in command.get_subcommands_mut() {
        write_subcommand(page, subcommand)?;
    }
    writeln!(page, ".SH ENVIRONMENT")?;
    write_entry(page, model::VARIABLE, "the model used when no \\-\\-model is given")?;
    for (name, text) in [
        (
            "HF_HUB_CACHE",
            "where pulled models lie, shared with Python tools; else $HF_HOME/hub, else \
             $XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub",
        ),
        (
            "POCHADE_CACHE",
            "where the int8 files made from them lie, and how fast pictures were drawn; else $XDG_CACHE_HOME/pochade, else ~/.cache/pochade",
        ),
        (
            kernels::VARIABLE,
            "the instruction set to compute with on the CPU, of those that `pochade doctor` lists; else the fastest",
        ),
        ("HF_ENDPOINT", "the server that models are pulled from, e.g. a mirror"),
        (
            "HF_TOKEN",
            "a token for private and gated models; else the file $HF_TOKEN_PATH, else the one that \
             `hf auth login` writes",
        ),
        ("HF_HUB_OFFLINE", "when 1, no connection is opened, as with --offline"),
    ] {
        write_entry(page, name, &escaped(text))?;
    }
    write_entry(page, "NO_COLOR", "when set, nothing is coloured")?;
    writeln!(page, ".SH EXIT STATUS")?;
    for (exit, meaning) in Exit::ALL {
        write_entry(page, &exit.code().to_string(), &escaped(meaning))?;
    }
    writeln!(page, ".SH EXAMPLES\n.nf")?;
    for line in EXAMPLES.lines().skip(1) {
        writeln!(page, "{}", escaped(line.trim_start()))?;
    }
    writeln!(page, ".fi")
}

fn write_subcommand(page: &mut Vec<u8>, subcommand: &mut Command) -> io::Result<()> {
    let usage = subcommand.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").lines().next().unwrap_or_default();
    let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
    write_entry(page, &escaped(usage), &escaped(&about))
}

fn write_entry(page: &mut Vec<u8>, tag: &str, text: &str) -> io::Result<()> {
    writeln!(page, ".TP\n\\fB{tag}\\fR\n{text}")
}

/// Text in which roff sees no command: examples and meanings never start with a dot.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq")
}
