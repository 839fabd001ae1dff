//! What can be typed about models: components of other files, LoRAs to merge, the flags of `convert` and `quantize`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum, ValueHint};

use super::args::bytes::parse_bytes;
use super::exit::{Exit, Failure, OrExit};
use super::printer::Printer;
use crate::checkpoint::{Checkpoint, Replaceable};
use crate::pipeline::{Adapted, Observer};
use crate::quantize::{Learning, Rule};
use crate::request::{Lora, SIZE_STEP};

/// The largest size of a report that names none: a quarter of the work at 512 pixels.
pub const REPORT_PIXELS: usize = 256;

/// Components that take the place of the model's own.
#[derive(Debug, Clone, Default, Args)]
pub struct PartArgs {
    /// Autoencoder to use instead of the model's: a .safetensors or GGUF file or a diffusers folder
    #[arg(hide_short_help = true, long, value_name = "FILE", value_hint = ValueHint::AnyPath, help_heading = "Model")]
    pub vae: Option<PathBuf>,

    /// Tiny autoencoder (TAESD) to decode with: faster and smaller, slightly softer pictures
    #[arg(hide_short_help = true, long, value_name = "FILE", value_hint = ValueHint::AnyPath, conflicts_with = "vae", help_heading = "Model")]
    pub taesd: Option<PathBuf>,

    /// Text encoder to use instead of the model's, e.g. for a file that holds only a UNet
    #[arg(hide_short_help = true, long, value_name = "FILE", value_hint = ValueHint::AnyPath, help_heading = "Model")]
    pub text_encoder: Option<PathBuf>,
}

impl PartArgs {
    /// Puts the components into `checkpoint`, which then must be a whole model.
    ///
    /// # Errors
    /// Names the file that can't be used, or the component that is still missing.
    pub fn apply(&self, checkpoint: &mut Checkpoint) -> Result<(), Failure> {
        for (part, path) in [
            (Replaceable::Vae, &self.vae),
            (Replaceable::Taesd, &self.taesd),
            (Replaceable::TextEncoder, &self.text_encoder),
        ] {
            if let Some(path) = path {
                checkpoint.replace(part, path).or_exit(Exit::Model)?;
            }
        }
        checkpoint.check_complete().or_exit(Exit::Model)
    }
}

/// LoRAs that become part of what is written.
#[derive(Debug, Clone, Default, Args)]
pub struct MergeArgs {
    /// LoRA, LoHa or LoKr to merge into the weights for good, with its weight [default: 1]; several add up
    #[arg(long, value_name = "FILE[:WEIGHT]", value_hint = ValueHint::FilePath, value_parser = parse_lora)]
    pub lora: Vec<Lora>,
}

impl MergeArgs {
    /// `checkpoint` with the LoRAs in its weights; how they fit is told.
    ///
    /// # Errors
    /// Names the file that can't be used for this model.
    pub fn apply(&self, checkpoint: &Checkpoint, printer: Printer) -> Result<Checkpoint, Failure> {
        let adapted = Adapted::open(&self.lora, checkpoint.tensors()).or_exit(Exit::Usage)?;
        adapted.tell(&mut Told(printer));
        Ok(checkpoint.with_tensors(adapted.tensors(checkpoint).clone()))
    }
}

/// Passes on what is told, where nothing is drawn.
struct Told(Printer);

impl Observer for Told {
    fn warn(&mut self, message: &str) {
        self.0.note(message);
    }

    fn inform(&mut self, message: &str) {
        self.0.status(message);
    }
}

fn parse_lora(text: &str) -> Result<Lora, String> {
    text.parse().map_err(|error: anyhow::Error| error.to_string())
}

#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// Diffusers folder, LDM, GGUF or native file to read; quantized weights become floats
    #[arg(value_name = "SRC", value_hint = ValueHint::AnyPath)]
    pub source: PathBuf,

    /// File or folder to write, e.g. model.safetensors
    #[arg(value_name = "DST", value_hint = ValueHint::AnyPath)]
    pub destination: PathBuf,

    /// native: one file that is a whole model; diffusers: a folder for diffusers and other programs
    #[arg(long, value_enum, default_value_t = Format::Native)]
    pub format: Format,

    /// Type of the weights in the file
    #[arg(long, value_enum, default_value = "f16")]
    pub storage: StorageChoice,

    /// Name of the model in the file (default: the source's)
    #[arg(long)]
    pub name: Option<String>,

    /// Guidance scale the model draws best with (default: the source's)
    #[arg(long, value_name = "SCALE")]
    pub cfg: Option<f64>,

    /// Steps the model needs (default: the source's)
    #[arg(long)]
    pub steps: Option<usize>,

    #[command(flatten)]
    pub merge: MergeArgs,

    #[command(flatten)]
    pub parts: PartArgs,

    /// Replace the destination if it is a file that exists
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Native,
    Diffusers,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum StorageChoice {
    F32,
    F16,
}

#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("goal").args(["size", "quality"]))]
#[command(group = ArgGroup::new("measures").args(["compare", "report", "size", "quality"]).multiple(true))]
pub struct QuantizeArgs {
    /// Diffusers folder, LDM, GGUF or native file to read
    #[arg(value_name = "SRC", value_hint = ValueHint::AnyPath)]
    pub source: PathBuf,

    /// Native file to write, e.g. model-int8.safetensors
    #[arg(value_name = "DST", value_hint = ValueHint::FilePath)]
    pub destination: PathBuf,

    /// Keep the layers of this name in f16, e.g. 'unet.mid_block.*'; * is anything, several --keep add up
    ///
    /// Beside int8 ones, linear layers and 1x1 convolutions of the UNet are multiplied in 16-bit integers on x86, 65 dB
    /// above the error; a part that is kept whole is computed in f32.
    #[arg(long, value_name = "PATTERN")]
    pub keep: Vec<String>,

    /// Give the weights of these layers 4 bits, or 8 as the others, or 16, e.g. 'conv3x3=4,text_encoder.*=4'
    ///
    /// Patterns are those of --keep, or conv3x3, the UNet's 3x3 convolutions. The last one that matches counts. Sensitive
    /// layers are f16 unless a pattern names them, and get 8 bits at least; those that are too sensitive stay f16. Weights
    /// of four bits have a scale for each 32 inputs.
    #[arg(long, value_name = "PATTERN=BITS", value_delimiter = ',', value_parser = parse_rule)]
    pub bits: Vec<Rule>,

    /// Choose each layer's bits so that the file is no larger than this, e.g. 650MB, and as near to the floats as it gets
    ///
    /// What each layer costs with 4 and with 8 bits is measured first: the UNet runs in f32 twice per layer, prompt and
    /// timestep, so a full-size model takes long. Layers of 16 bits take longer to compute.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, conflicts_with = "bits")]
    pub size: Option<u64>,

    /// Choose each layer's bits so that the UNet's output is this far above its error, e.g. 30dB, in a file as small as
    /// can be
    ///
    /// The figure is the one that --compare prints, on average over the timesteps. Layers are measured as for --size.
    #[arg(long, value_name = "DECIBEL", value_parser = parse_decibel, conflicts_with = "bits")]
    pub quality: Option<f64>,

    /// Choose by what layers of this model cost by the --report FILE of an earlier --size or --quality
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "goal", conflicts_with = "report_steps")]
    pub measured: Option<PathBuf>,

    /// How weights are rounded
    ///
    /// What a method that learns has come to is kept in DST.learning until the file is written: after an interruption the
    /// same command goes on from there.
    #[arg(long, value_enum, default_value_t = Method::Nearest)]
    pub method: Method,

    /// Learn from the prompts in FILE, one a line or JSONL as for `batch` [default: sixteen of our own]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub calibrate: Option<PathBuf>,

    /// Learn from pictures of this width and height [default: the model's, at most 256]
    #[arg(long, value_name = "PIXELS", value_parser = parse_pixels)]
    pub calibrate_size: Option<usize>,

    /// Learn from this many timesteps of each picture, others for each [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub calibrate_steps: Option<u16>,

    /// Draw with the file and with the floats it was made from, and say how far apart they are
    ///
    /// Compared are the UNet's output at every timestep along the float run (signal to error), the final latents, and
    /// the pictures (PSNR), beside pictures of the same prompts with another seed.
    #[arg(long)]
    pub compare: bool,

    /// Measure what each layer's int8 costs: a table on stdout, the same and the comparison as JSON in FILE
    ///
    /// The UNet runs in f32 once per layer, prompt and timestep, so a full-size model takes long. With --size or --quality
    /// it holds what each layer costs with 4 and with 8 bits, and which it got.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub report: Option<PathBuf>,

    /// Measure with this prompt; several add up [default: two of our own]
    #[arg(long, value_name = "TEXT", requires = "measures")]
    pub report_prompt: Vec<String>,

    /// Measure layers at this many timesteps, from the first to the last of a run
    #[arg(long, value_name = "N", requires = "measures", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub report_steps: u16,

    /// Measure at this width and height [default: the model's, at most 256]
    #[arg(long, value_name = "PIXELS", requires = "measures", value_parser = parse_pixels)]
    pub report_size: Option<usize>,

    /// Print one JSON object on stdout: the file, what has how many bits, what was measured
    #[arg(long)]
    pub json: bool,

    /// Name of the model in the file [default: the source's]
    #[arg(long)]
    pub name: Option<String>,

    /// CPU threads [default: one per core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Learn and measure even where the estimated memory exceeds what is available
    #[arg(long)]
    pub ignore_memory: bool,

    #[command(flatten)]
    pub merge: MergeArgs,

    #[command(flatten)]
    pub parts: PartArgs,

    /// Replace the destination and the report if they exist
    #[arg(long)]
    pub force: bool,
}

impl QuantizeArgs {
    /// Whether bits are chosen by what is measured.
    pub fn has_goal(&self) -> bool {
        self.size.is_some() || self.quality.is_some()
    }

    /// Whether anything is measured.
    pub fn measures(&self) -> bool {
        self.compare || self.report.is_some() || self.has_goal()
    }

    /// Makes sure that nothing is typed that would be passed over.
    ///
    /// # Errors
    /// When there is something to learn from and nothing is learned.
    pub fn check(&self) -> Result<(), Failure> {
        let learns =
            self.calibrate.is_some() || self.calibrate_size.is_some() || self.calibrate_steps.is_some();
        if learns && self.method.learning().is_none() {
            return Err(Failure::usage("the --calibrate flags are for a method that learns")
                .hint("add `--method gptq`, or leave them out"));
        }
        Ok(())
    }
}

/// How weights become integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Each to the nearest
    Nearest,
    /// So that errors cancel in what layers compute of inputs as they occur (GPTQ): slow, and nearer to the floats
    Gptq,
    /// The same by gradient descent over all weights of a layer (AdaRound): much slower, for small models
    Adaround,
}

impl Method {
    /// How it learns, if it does.
    pub fn learning(self) -> Option<Learning> {
        match self {
            Self::Nearest => None,
            Self::Gptq => Some(Learning::Gptq),
            Self::Adaround => Some(Learning::AdaRound),
        }
    }
}

fn parse_rule(text: &str) -> Result<Rule, String> {
    text.parse().map_err(|error: anyhow::Error| error.to_string())
}

fn parse_decibel(text: &str) -> Result<f64, String> {
    let number = text.trim();
    let unit = number.len().saturating_sub(2);
    let number = match number.split_at_checked(unit) {
        Some((number, unit)) if unit.eq_ignore_ascii_case("db") => number.trim_end(),
        _ => number,
    };
    let decibel = number.parse().ok().filter(|decibel| (0.0..=200.0).contains(decibel));
    decibel.ok_or_else(|| "expected decibel from 0 to 200, e.g. 30dB".to_owned())
}

fn parse_pixels(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|pixels: &usize| (64..=1024).contains(pixels) && pixels.is_multiple_of(SIZE_STEP))
        .ok_or_else(|| format!("expected a multiple of {SIZE_STEP} from 64 to 1024"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decibel_may_have_their_unit() {
        for (text, decibel) in [("30dB", 30.0), ("30", 30.0), ("27.5 DB", 27.5), (" 0db", 0.0)] {
            assert_eq!(parse_decibel(text), Ok(decibel), "{text}");
        }
        for text in ["", "dB", "-1dB", "NaN", "inf", "1e3dB", "30d", "30 dBm", "é", "30é"] {
            assert!(parse_decibel(text).is_err(), "{text}");
        }
    }
}
