//! Flags that say how much is said.

use clap::Args;

use crate::cli::printer::{Printer, Verbosity};

/// How much is said on stderr.
#[derive(Debug, Args)]
pub struct TalkArgs {
    /// Print nothing on stderr but errors
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Output")]
    pub quiet: bool,

    /// Say more on stderr: model, device, times, memory
    #[arg(short, long, help_heading = "Output")]
    pub verbose: bool,

    /// Show no progress (it only ever shows on a terminal)
    #[arg(hide_short_help = true, long, help_heading = "Output")]
    pub no_progress: bool,
}

impl TalkArgs {
    /// With `json` a program listens, and there is no progress.
    pub fn printer(&self, json: bool) -> Printer {
        let verbosity = match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        };
        Printer::new(verbosity, !self.no_progress && !json)
    }
}
