//! What can be typed: every subcommand and flag with its help, and nothing of what they do.

pub mod bytes;
pub mod compute;
pub mod generate;
pub mod picture;
pub mod talk;
pub mod time;

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use super::batch::args::{BATCH_NOTES, BatchArgs, VERIFY_NOTES, VerifyArgs};
use super::exit::Exit;
use super::model_args::{ConvertArgs, PartArgs, QuantizeArgs};
use super::models::args::ModelsArgs;
use super::sweep::args::{SWEEP_NOTES, SweepArgs};
use crate::request::{self, PromptSyntax};
pub use compute::{ComputeArgs, DeviceChoice, PrecisionChoice};
pub use generate::GenerateArgs;

pub const EXAMPLES: &str = "\
Examples:
  pochade a red apple on a yellow background
  pochade \"portrait of a fox, oil painting\" -n blurry -s 42 --steps 30
  pochade -m ./stable-diffusion-v1-5 --size 512x768 -c 4 -o 'fox-{seed}.png' \"a fox\"
  pochade --from fox-42.png --cfg 9
  echo \"a lighthouse\" | pochade -o - > lighthouse.png";

const BENCH_NOTES: &str = "\
Rates are in 10^9 multiply-accumulates per second. Cost is seconds times the rate of an f32 matrix \
product, measured in the same run, for each multiply-accumulate: 1 is as fast as that product, less is \
better. Seconds are medians.";

const PREPACK_NOTES: &str = "\
The packed weights lie beside the file and are used whenever it is drawn with, as long as it stays what it was; they are \
for one instruction set and one version of pochade, and take about as much room as the model. They can be deleted at \
any time. Pictures are the same.";

const LONG_ABOUT: &str = "\
Draws pictures from text with Stable Diffusion 1.5, on an ordinary CPU.

`pochade PROMPT…` is short for `pochade generate PROMPT…`. When the first argument is the \
name of a subcommand, the subcommand is meant: quote the prompt, or write `pochade -- info …`.";

/// Draw pictures from text with Stable Diffusion 1.5.
#[derive(Debug, Parser)]
#[command(
    name = "pochade",
    version,
    long_about = LONG_ABOUT,
    after_help = EXAMPLES,
    after_long_help = long_help_end(),
    args_conflicts_with_subcommands = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    #[command(flatten)]
    pub generate: GenerateArgs,

    /// Forbid any connection, as HF_HUB_OFFLINE=1 does; only `models pull` ever opens one
    #[arg(long, global = true)]
    pub offline: bool,
}

fn long_help_end() -> String {
    format!("{EXAMPLES}\n\nExit codes:\n{}", Exit::table())
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Draw one or more pictures (the default)
    #[command(after_help = EXAMPLES, after_long_help = long_help_end())]
    Generate(Box<GenerateArgs>),
    /// Draw every picture of a list
    #[command(after_help = BATCH_NOTES)]
    Batch(Box<BatchArgs>),
    /// Draw every picture of a list and compare it with the stored one
    #[command(after_help = VERIFY_NOTES)]
    Verify(Box<VerifyArgs>),
    /// Draw a list with every combination of some settings, side by side
    #[command(after_help = SWEEP_NOTES)]
    Sweep(Box<SweepArgs>),
    /// Show the tokens, weights and chunks of a prompt
    Tokens(TokensArgs),
    /// Show how a picture was made, or what a model is made of
    Info(InfoArgs),
    /// Show what this machine and this build offer
    Doctor(DoctorArgs),
    /// Write a model as one native file
    Convert(ConvertArgs),
    /// Write a model as one file with int8 weights
    Quantize(QuantizeArgs),
    /// Keep a quantized file's weights as this CPU reads them: it then loads at once
    #[command(after_help = PREPACK_NOTES)]
    Prepack(PrepackArgs),
    /// Pull models from the Hugging Face Hub; list, show, check and remove them
    Models(ModelsArgs),
    /// Measure speed and memory on this machine
    #[command(after_help = BENCH_NOTES)]
    Bench(BenchArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page (roff)
    Man,
}

#[derive(Debug, Args)]
pub struct TokensArgs {
    /// The prompt; several words are joined, `-` or a pipe reads it from stdin
    #[arg(value_name = "PROMPT")]
    pub prompt: Vec<String>,

    /// How the prompt is understood: brackets are weights (weighted), or every sign is a token (plain)
    #[arg(long, value_name = "NAME", value_parser = named::<PromptSyntax>(PromptSyntax::NAMES), default_value = "weighted")]
    pub prompt_syntax: PromptSyntax,

    /// Textual inversion; its file name is its word, several add up
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub embedding: Vec<PathBuf>,

    /// Folder of textual inversions
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub embedding_dir: Option<PathBuf>,

    /// The model whose vocabulary is used [default: $POCHADE_MODEL, else pocket]
    #[arg(short, long, value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub model: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InfoArgs {
    /// A picture made by pochade or by AUTOMATIC1111's web UI, or a model's file or folder
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub image: PathBuf,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PrepackArgs {
    /// File that `pochade quantize` made, or a pulled model's id or alias
    #[arg(value_name = "MODEL", value_hint = ValueHint::FilePath)]
    pub model: PathBuf,

    /// CPU threads [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// A diffusers folder, an LDM, GGUF or pochade file, a pulled model's id or alias, or `pocket` (built in)
    #[arg(short, long, value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub model: Option<PathBuf>,

    #[command(flatten)]
    pub parts: PartArgs,

    /// Random weights in the shape of a published model instead [default without --model: sd15]
    #[arg(long, value_enum, value_name = "NAME", conflicts_with = "model")]
    pub synthetic: Option<Geometry>,

    /// Width and height in pixels, e.g. 512x768 [default: the model's]
    #[arg(long, value_name = "WxH", value_parser = parse_size)]
    pub size: Option<(usize, usize)>,

    /// Numbers to compute in; auto is int8
    #[arg(long, value_name = "NAME", value_enum, default_value_t = PrecisionChoice::Auto)]
    pub precision: PrecisionChoice,

    /// Denoising steps of each picture
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub steps: u16,

    /// Pictures
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub repeats: u16,

    /// CPU threads [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Draw even where the estimated memory exceeds what is available
    #[arg(long)]
    pub ignore_memory: bool,

    /// Take no more memory than this, e.g. 600MB: weights then stay in their file, if need be [default: what the machine has]
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse_bytes, conflicts_with = "ignore_memory")]
    pub memory: Option<u64>,

    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Geometry {
    Sd15,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// Accepts the names of one of the request's enums, so that help and completions list them.
fn named<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: TryFrom<String, Error = anyhow::Error> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(T::try_from)
}

pub fn parse_size(text: &str) -> Result<(usize, usize), String> {
    request::parse_size(text).ok_or_else(|| "expected WIDTHxHEIGHT, e.g. 512x768".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn prompt(args: &[&str]) -> Option<Vec<String>> {
        let cli = Cli::try_parse_from(["pochade"].iter().chain(args)).ok()?;
        match cli.command {
            None => Some(cli.generate.prompt),
            Some(Command::Generate(generate)) => Some(generate.prompt),
            Some(_) => None,
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bare_prompt_is_generate() {
        assert_eq!(prompt(&["a", "cat"]).unwrap(), ["a", "cat"]);
        assert_eq!(prompt(&["generate", "a", "cat"]).unwrap(), ["a", "cat"]);
        assert_eq!(prompt(&["a", "-W", "64", "cat"]).unwrap(), ["a", "cat"]);
        assert_eq!(prompt(&["-"]).unwrap(), ["-"]);
        assert_eq!(prompt(&[""]).unwrap(), [""]);
    }

    #[test]
    fn a_subcommand_wins_only_as_the_first_argument() {
        assert_eq!(prompt(&["doctor"]), None);
        assert_eq!(prompt(&["the", "doctor"]).unwrap(), ["the", "doctor"]);
        assert_eq!(prompt(&["--", "doctor"]).unwrap(), ["doctor"]);
        assert_eq!(prompt(&["-q", "doctor"]).unwrap(), ["doctor"]);
        assert_eq!(prompt(&["man on a horse"]).unwrap(), ["man on a horse"]);
        // A word near a subcommand's name is still a prompt.
        assert_eq!(prompt(&["doctors"]).unwrap(), ["doctors"]);
        assert_eq!(prompt(&["generate", "info"]).unwrap(), ["info"]);
    }

    #[test]
    fn sizes_are_read_in_both_spellings() {
        assert_eq!(parse_size("512x768"), Ok((512, 768)));
        assert_eq!(parse_size("512X768"), Ok((512, 768)));
        for wrong in ["512", "x", "512x", "-1x8", "512x768x3", "512 by 768"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
