//! What can be typed after `pochade batch` and `pochade verify`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};

use super::shard::Shard;
use crate::cli::args::compute::ComputeArgs;
use crate::cli::args::picture::PictureArgs;
use crate::cli::args::talk::TalkArgs;
use crate::cli::args::time::parse_time;

/// The file names of a list's pictures.
pub const DEFAULT_NAME: &str = "{index:05}-{slug}.png";

pub const BATCH_NOTES: &str = "\
A FILE.txt has a prompt on each line; blank lines and lines that begin with # are left out. A FILE.jsonl has \
a JSON object on each line, whose keys are the long flags of `pochade generate`, prompt, id and output:
  {\"prompt\": \"a red apple\", \"seed\": 7, \"size\": \"128x128\", \"id\": \"apple\"}
What a line leaves open is taken from the flags, else from the model. An item without a seed has --seed plus \
its index in the whole list, counting from 0.

Examples:
  pochade batch prompts.txt --out-dir pictures --seed 1
  pochade batch items.jsonl --out-dir out -o '{id}.png' --skip-existing --results results.jsonl
  pochade batch million.txt --out-dir out -o '{thousand:04}/{index:07}.png' --seed 1 --shard 17/1000";

pub const VERIFY_NOTES: &str = "\
The list is read as `pochade batch` reads it, and pictures have the same names.

Examples:
  pochade verify smoke.jsonl --against smoke --update
  pochade verify smoke.jsonl --against smoke --min-psnr 35";

#[derive(Debug, Args)]
pub struct ListArgs {
    /// A list of pictures: FILE.jsonl, FILE.txt, or - for stdin
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub list: PathBuf,

    /// Expand {red|blue} and @words.txt in prompts: an item for each choice, or line of the file
    ///
    /// Several in one prompt give every combination. Files of words are looked for beside the list; blank lines and
    /// lines that begin with # are left out. A backslash takes {, |, } and @ literally.
    #[arg(long, help_heading = "Prompt")]
    pub expand: bool,

    #[command(flatten)]
    pub picture: PictureArgs,

    #[command(flatten)]
    pub compute: ComputeArgs,

    /// Names of the pictures, with {index} {thousand} {seed} {slug} {model} {id}; a line's own output wins
    ///
    /// {index} is the item's place in the whole list, counting from 1, and {thousand} a number that changes
    /// every thousand items, for folders; {index:05} pads with zeros; {{ is a brace.
    #[arg(short, long, value_name = "PATTERN", default_value = DEFAULT_NAME, help_heading = "Output")]
    pub output: String,

    /// Print one JSON object per item
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    #[command(flatten)]
    pub talk: TalkArgs,
}

#[derive(Debug, Args)]
pub struct BatchArgs {
    #[command(flatten)]
    pub list: ListArgs,

    /// Leave out as little as it takes to draw in this time, e.g. 15s
    ///
    /// The time is each picture's, without loading the model. Another run may know other speeds and choose otherwise: to
    /// go on with a list or to share it, name what was chosen, which is told and in the pictures' records.
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with_all = ["skip_existing", "shard", "dry_run"], help_heading = "Less work")]
    pub within: Option<Duration>,

    /// Folder of the pictures, made when it is missing
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, default_value = ".", help_heading = "Output")]
    pub out_dir: PathBuf,

    /// Keep pictures that exist and were made from the same request by the same model
    ///
    /// One made from another request is an error, or drawn again with --force.
    #[arg(long, help_heading = "Output")]
    pub skip_existing: bool,

    /// Overwrite existing files
    #[arg(long, help_heading = "Output")]
    pub force: bool,

    /// Let items name files outside of --out-dir
    #[arg(long, help_heading = "Output")]
    pub allow_absolute: bool,

    /// Append one JSON object per item to a file as soon as the item has ended
    #[arg(long, value_name = "FILE.jsonl", value_hint = ValueHint::FilePath, help_heading = "Output")]
    pub results: Option<PathBuf>,

    /// Draw the next item when one has failed [default]
    #[arg(long, conflicts_with = "fail_fast", help_heading = "Run")]
    pub keep_going: bool,

    /// End the run with the first item that fails
    #[arg(long, help_heading = "Run")]
    pub fail_fast: bool,

    /// Draw only part I of N: the items I, I + N, I + 2 N, … of the list
    #[arg(long, value_name = "I/N", help_heading = "Run")]
    pub shard: Option<Shard>,

    /// Check the list, print what would be drawn and load no weights
    #[arg(long, conflicts_with_all = ["results"], help_heading = "Run")]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub list: ListArgs,

    /// Folder of the stored pictures
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Comparison")]
    pub against: PathBuf,

    /// The smallest peak signal-to-noise ratio that passes, in dB
    #[arg(long, value_name = "DB", default_value_t = 35.0, value_parser = decibels, help_heading = "Comparison")]
    pub min_psnr: f64,

    /// Folder for a picture of each failure: expected, got and difference side by side
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, default_value = "pochade-diff", help_heading = "Comparison")]
    pub diff_dir: PathBuf,

    /// Write the pictures to --against instead of comparing
    #[arg(long, help_heading = "Comparison")]
    pub update: bool,
}

fn decibels(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| "expected a number of dB, e.g. 35".to_owned())
}
