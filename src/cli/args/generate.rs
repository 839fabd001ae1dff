//! What can be typed after `pochade generate`, or without a subcommand.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};

use super::compute::ComputeArgs;
use super::picture::PictureArgs;
use super::talk::TalkArgs;
use super::time::parse_time;

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What to draw; several words are joined, `-` or a pipe reads it from stdin
    ///
    /// An empty prompt ("") draws whatever the model likes; an empty stdin is an error.
    #[arg(value_name = "PROMPT")]
    pub prompt: Vec<String>,

    #[command(flatten)]
    pub picture: PictureArgs,

    /// Repeat a picture from the parameters embedded in it; flags given here win
    ///
    /// Reads PNG files of pochade and of AUTOMATIC1111's web UI.
    #[arg(long, value_name = "IMAGE.png", value_hint = ValueHint::FilePath, help_heading = "Prompt")]
    pub from: Option<PathBuf>,

    /// Leave out as little as it takes to draw in this time, e.g. 15s
    ///
    /// The time is each picture's; if there is one, loading the model is part of it. What is left out (inner blocks of
    /// some steps, steps, guidance, or all but a few-step recipe's) is told, beside what the picture would take as
    /// asked, and is in its record; what flags say stays as it is. Speeds are those of earlier runs on this machine;
    /// if there are none, three steps are drawn first.
    #[arg(long, value_name = "TIME", value_parser = parse_time, help_heading = "Less work")]
    pub within: Option<Duration>,

    /// Number of pictures; picture k of the run uses seed + k, counting from 0
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Picture")]
    pub count: u32,

    #[command(flatten)]
    pub compute: ComputeArgs,

    /// A file, a folder, a pattern with {seed} {index} {slug} {model}, or - for stdout [default: {slug}-{seed}.png]
    ///
    /// {index} counts from 1; {index:03} and {seed:010} pad with zeros; {{ is a brace. Several pictures with
    /// one plain name get -1, -2, … before the extension, and so does a name that is taken.
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::AnyPath, help_heading = "Output")]
    pub output: Option<PathBuf>,

    /// Overwrite existing files instead of choosing another name
    #[arg(long, help_heading = "Output")]
    pub force: bool,

    /// Also draw each picture in the terminal
    #[arg(long, conflicts_with = "json", help_heading = "Output")]
    pub show: bool,

    /// Draw the current estimate in the terminal while denoising, or into FILE, replaced at each step
    ///
    /// A projection of the latents by one matrix that is fitted to the model's decoder: its colors, not its details.
    #[arg(long, value_name = "FILE.png", num_args = 0..=1, require_equals = true, value_hint = ValueHint::FilePath, help_heading = "Output")]
    pub preview: Option<Option<PathBuf>>,

    /// Keep the estimate of every step as 001.png, 002.png, …: the preview, enlarged to the picture's size
    ///
    /// Of several pictures each has a folder of its own in it, named by its seed.
    #[arg(hide_short_help = true, long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Output")]
    pub steps_dir: Option<PathBuf>,

    /// Print one JSON object per picture instead of its path
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    #[command(flatten)]
    pub talk: TalkArgs,
}
