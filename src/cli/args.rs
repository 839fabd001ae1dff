//! What can be typed: every subcommand and flag with its help, and nothing of what they do.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use super::batch::args::{BATCH_NOTES, BatchArgs, VERIFY_NOTES, VerifyArgs};
use super::exit::Exit;
use super::model_args::{ConvertArgs, PartArgs, QuantizeArgs};
use super::models::args::ModelsArgs;
use super::printer::{Printer, Verbosity};
use crate::pipeline::tiling::Tile;
use crate::request::{self, Draft, Lora, Precision, PromptSyntax, Resize, Rng, Sampler, Schedule};

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

/// What a picture is asked to be, whichever command draws it.
#[derive(Debug, Args)]
pub struct PictureArgs {
    /// What not to draw
    #[arg(short, long, value_name = "TEXT", help_heading = "Prompt")]
    pub negative: Option<String>,

    /// How prompts are understood: AUTOMATIC1111's weights, BREAK and tags, or every sign a token [default: weighted]
    ///
    /// weighted: (x) weighs 1.1 times as much, [x] 1.1 times less, (x:1.3) as it says; a backslash makes a
    /// bracket text; more than 75 tokens and BREAK begin another chunk; <lora:name:weight> is looked for in
    /// --lora-dir. plain: one chunk, as in diffusers.
    #[arg(hide_short_help = true, long, value_name = "NAME", value_parser = named::<PromptSyntax>(PromptSyntax::NAMES), hide_possible_values = true, help_heading = "Prompt")]
    pub prompt_syntax: Option<PromptSyntax>,

    /// Text encoder's last layer to use: 1 is the last, 2 the one before [default: 1]
    #[arg(long, value_name = "N", help_heading = "Prompt")]
    pub clip_skip: Option<usize>,

    /// Textual inversion, used where a prompt has its file name as a word
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Prompt")]
    pub embedding: Vec<PathBuf>,

    /// Folder of textual inversions, each read when a prompt has its file name as a word
    #[arg(hide_short_help = true, long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Prompt")]
    pub embedding_dir: Option<PathBuf>,

    /// Width in pixels, a multiple of 8 up to 2048 [default: the model's]
    #[arg(short = 'W', long, value_name = "PIXELS", help_heading = "Picture")]
    pub width: Option<usize>,

    /// Height in pixels, a multiple of 8 up to 2048 [default: the model's]
    #[arg(short = 'H', long, value_name = "PIXELS", help_heading = "Picture")]
    pub height: Option<usize>,

    /// Width and height together, e.g. 512x768
    #[arg(long, value_name = "WxH", value_parser = parse_size, conflicts_with_all = ["width", "height"], help_heading = "Picture")]
    pub size: Option<(usize, usize)>,

    /// Make the picture this much wider and higher in a second pass over its enlarged latents, 1 to 4
    ///
    /// Width and height are then those of the first pass; the final ones are rounded down to multiples of 8.
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, help_heading = "Picture")]
    pub hires: Option<f64>,

    /// Steps the second pass takes [default: as many as --steps]
    #[arg(
        hide_short_help = true,
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Picture"
    )]
    pub hires_steps: Option<usize>,

    /// How much the second pass changes, above 0 up to 1 [default: 0.7]
    #[arg(
        hide_short_help = true,
        long,
        value_name = "SHARE",
        allow_negative_numbers = true,
        help_heading = "Picture"
    )]
    pub hires_strength: Option<f64>,

    /// Picture to start from (PNG, JPEG, WebP) instead of noise alone; gives the size too, unless one is named
    ///
    /// Turned as its EXIF orientation says; transparency is laid on white. Its size is rounded to multiples of 8
    /// and kept to a quarter to nine quarters of the model's own area.
    #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath, help_heading = "Picture in")]
    pub init: Option<PathBuf>,

    /// Repaint only the white part of this picture, of --init's shape; the black part stays as it is, to the pixel
    ///
    /// Gray blends. Any model can do it; an inpainting model sees the rest of the picture while it draws.
    #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath, help_heading = "Picture in")]
    pub mask: Option<PathBuf>,

    /// How far to go from --init: the share of the steps taken, above 0 to 1 [default: 0.75, with --mask 1]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, help_heading = "Picture in")]
    pub strength: Option<f64>,

    /// How --init and --mask are brought to the size: crop, fit (edges continue), stretch [default: crop]
    ///
    /// crop covers the size and cuts off what hangs over; fit lies within it and fills the rest with the colours of
    /// the nearest edge; stretch ignores the shape.
    #[arg(long, value_name = "NAME", value_parser = named::<Resize>(Resize::NAMES), hide_possible_values = true, help_heading = "Picture in")]
    pub resize: Option<Resize>,

    /// Seed of the noise, 0 to 2^64-1 [default: random, printed and embedded]
    #[arg(short, long, value_name = "N", value_parser = parse_seed, allow_negative_numbers = true, help_heading = "Picture")]
    pub seed: Option<u64>,

    /// Whose random numbers a seed stands for: torch (diffusers), philox (CUDA, AUTOMATIC1111) [default: torch]
    #[arg(hide_short_help = true, long, value_name = "NAME", value_parser = named::<Rng>(Rng::NAMES), hide_possible_values = true, help_heading = "Picture")]
    pub rng: Option<Rng>,

    /// Denoising steps, 1 to 1000 [default: the model's]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Sampling")]
    pub steps: Option<usize>,

    /// Guidance: how closely to follow the prompt, 1 is off [default: the model's]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, help_heading = "Sampling")]
    pub cfg: Option<f64>,

    /// Sampler [default: the model's]
    #[arg(long, value_name = "NAME", value_parser = named::<Sampler>(Sampler::NAMES), help_heading = "Sampling")]
    pub sampler: Option<Sampler>,

    /// Spacing of the steps [default: the sampler's]
    #[arg(long, value_name = "NAME", value_parser = named::<Schedule>(Schedule::NAMES), help_heading = "Sampling")]
    pub schedule: Option<Schedule>,

    /// Share of fresh noise in each step of the sampler ddim, 0 to 1 [default: 0]
    #[arg(
        hide_short_help = true,
        long,
        value_name = "SHARE",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub eta: Option<f64>,

    /// LoRA, LoHa or LoKr to merge, with its weight [default: 1]; several add up
    #[arg(long, value_name = "FILE[:WEIGHT]", value_hint = ValueHint::FilePath, help_heading = "Model")]
    pub lora: Vec<Lora>,

    /// Folder of the LoRAs that prompts name as <lora:name:weight>
    #[arg(hide_short_help = true, long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Model")]
    pub lora_dir: Option<PathBuf>,
}

/// The model and where it computes.
#[derive(Debug, Args)]
pub struct ComputeArgs {
    /// A diffusers folder, an LDM, GGUF or pochade file, a pulled model's id or alias, or `pocket` (built in)
    ///
    /// Without it: $POCHADE_MODEL, else `sd15` if it has been pulled, else `pocket`. See `pochade models`.
    #[arg(short, long, value_name = "MODEL", value_hint = ValueHint::AnyPath, help_heading = "Model")]
    pub model: Option<PathBuf>,

    #[command(flatten)]
    pub parts: PartArgs,

    /// Where to compute; auto is the GPU this build supports, else the CPU
    ///
    /// On the CPU, $POCHADE_KERNEL names the instruction set, one of those that `pochade doctor` lists; else the
    /// fastest computes.
    #[arg(long, value_name = "NAME", value_enum, default_value_t = DeviceChoice::Auto, help_heading = "Model")]
    pub device: DeviceChoice,

    /// Numbers to compute in; auto is int8 on the CPU, f16 on a GPU [default: auto, or as in --from]
    #[arg(long, value_name = "NAME", value_enum, help_heading = "Model")]
    pub precision: Option<PrecisionChoice>,

    /// Decode large pictures in parts, slower and in less memory [default: auto, when memory is short]
    ///
    /// There are no seams, but a few pixels may differ by one level. A picture that says it was decoded so is
    /// repeated so by --from.
    #[arg(hide_short_help = true, long, value_name = "WHEN", value_enum, help_heading = "Model")]
    pub tile: Option<TileChoice>,

    /// CPU threads [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Model")]
    pub threads: Option<u16>,

    /// Draw even where the estimated memory exceeds what is available
    #[arg(hide_short_help = true, long, help_heading = "Model")]
    pub ignore_memory: bool,
}

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

impl PictureArgs {
    /// The part of a request that the flags spell out.
    pub fn draft(&self) -> Draft {
        Draft {
            prompt: None,
            negative_prompt: self.negative.clone(),
            width: self.size.map(|(width, _)| width).or(self.width),
            height: self.size.map(|(_, height)| height).or(self.height),
            steps: self.steps,
            guidance_scale: self.cfg,
            sampler: self.sampler,
            schedule: self.schedule,
            eta: self.eta,
            seed: self.seed,
            rng: self.rng,
            prompt_syntax: self.prompt_syntax,
            clip_skip: self.clip_skip,
            lora: given(&self.lora),
            lora_dir: self.lora_dir.clone(),
            embedding: given(&self.embedding),
            embedding_dir: self.embedding_dir.clone(),
            init: self.init.clone(),
            mask: self.mask.clone(),
            strength: self.strength,
            resize: self.resize,
            hires: self.hires,
            hires_steps: self.hires_steps,
            hires_strength: self.hires_strength,
        }
    }
}

/// A list, if anything is in it.
fn given<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TileChoice {
    Auto,
    On,
    Off,
}

impl From<TileChoice> for Tile {
    fn from(choice: TileChoice) -> Self {
        match choice {
            TileChoice::Auto => Self::Auto,
            TileChoice::On => Self::On,
            TileChoice::Off => Self::Off,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    Cuda,
    Metal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionChoice {
    Auto,
    F32,
    F16,
    Int8,
}

impl PrecisionChoice {
    /// The precision asked for, if one is.
    pub fn asked(self) -> Option<Precision> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(Precision::F32),
            Self::F16 => Some(Precision::F16),
            Self::Int8 => Some(Precision::Int8),
        }
    }
}

/// Accepts the names of one of the request's enums, so that help and completions list them.
fn named<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: TryFrom<String, Error = anyhow::Error> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(T::try_from)
}

pub fn parse_seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
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
