//! What can be typed after `pochade sweep`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::vary::Variation;
use crate::cli::batch::args::ListArgs;

pub const SWEEP_NOTES: &str = "\
Every picture of the list is drawn with every combination of the values. The folder then holds the pictures, \
sheet.png with all of them and their figures, and sweep.json. PSNR is against the combination of the first values. \
Columns of the sheet are the values of the first --vary. The same command goes on where a run was interrupted.

Examples:
  pochade sweep prompts.txt --vary cache=1,2,3 --vary steps=10,20 --out-dir sweep
  pochade sweep prompts.txt --vary sampler=euler,dpmpp_2m,unipc --vary cfg=3,5,7 --out-dir grid
  echo 'a {red|green} apple' | pochade sweep - --expand --vary seed=1,2,3 --out-dir seeds";

#[derive(Debug, Args)]
pub struct SweepArgs {
    #[command(flatten)]
    pub list: ListArgs,

    /// A setting and the values to try, e.g. steps=10,20; several settings give every combination
    ///
    /// Settings are the long flags of `pochade generate`, and prompt. A backslash before a comma makes it part of a
    /// value.
    #[arg(long, required = true, value_name = "SETTING=VALUE,…", help_heading = "Sweep")]
    pub vary: Vec<Variation>,

    /// Width and height of a picture's place on the sheet, in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=1024), help_heading = "Sweep")]
    pub cell: u32,

    /// Folder of the pictures, the sheet and the figures, made when it is missing
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, default_value = "sweep", help_heading = "Output")]
    pub out_dir: PathBuf,

    /// Overwrite files that are not of this sweep
    #[arg(long, help_heading = "Output")]
    pub force: bool,
}
