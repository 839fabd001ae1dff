//! One resolved description of one picture: its fields, limits and spellings; flags and files are read elsewhere.

mod draft;
mod files;
mod hires;
pub mod list;
mod parameters;
mod record;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Defaults;

pub use draft::{Draft, drawn_seed};
pub use files::{FileKind, Lora, UsedFile};
pub use hires::Hires;
pub use parameters::{Parameters, parse_parameters, print_parameters};
pub use record::{Embedded, PARAMETERS_KEYWORD, RECORD_KEYWORD, Record};

/// Declares an enum whose variants have one spelling each, shared by flags, JSON and messages.
macro_rules! named_enum {
    ($(#[$meta:meta])* $name:ident, $what:literal, { $($(#[$vmeta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum $name { $($(#[$vmeta])* $variant,)+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            pub const NAMES: &'static [&'static str] = &[$($text,)+];

            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = anyhow::Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => bail!("unknown {} '{text}' (one of: {})", $what, Self::NAMES.join(", ")),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = anyhow::Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.name().to_owned()
            }
        }
    };
}

named_enum!(
    /// The solver that walks from noise to latents.
    Sampler, "sampler", {
        Ddim = "ddim",
        Ddpm = "ddpm",
        Pndm = "pndm",
        Euler = "euler",
        EulerA = "euler_a",
        Heun = "heun",
        Lms = "lms",
        Dpmpp2m = "dpmpp_2m",
        Dpmpp2mSde = "dpmpp_2m_sde",
        Dpmpp2s = "dpmpp_2s",
        Unipc = "unipc",
        Lcm = "lcm",
    }
);

named_enum!(
    /// How the sampler's timesteps are spread over the training schedule.
    Schedule, "schedule", {
        Leading = "leading",
        Linspace = "linspace",
        Trailing = "trailing",
        Karras = "karras",
    }
);

named_enum!(
    /// Whose random numbers the noise equals.
    Rng, "rng", {
        /// PyTorch on the CPU, as diffusers uses it.
        Torch = "torch",
        /// PyTorch on CUDA, as AUTOMATIC1111 uses it.
        Philox = "philox",
    }
);

named_enum!(
    /// How a prompt's text is understood.
    PromptSyntax, "prompt syntax", {
        /// AUTOMATIC1111's: brackets are weights, `BREAK` and more than 75 tokens make chunks, `<lora:…>` works.
        Weighted = "weighted",
        /// Every sign is a token, as in diffusers.
        Plain = "plain",
    }
);

named_enum!(
    /// How a picture of another shape is brought to the request's size.
    Resize, "resize", {
        /// Scaled to cover it; what hangs over on both sides is cut off.
        Crop = "crop",
        /// Scaled to lie within it; the rest is filled with the colours of the nearest edge.
        Fit = "fit",
        /// Scaled to its width and height, whatever becomes of the shape.
        Stretch = "stretch",
    }
);

named_enum!(
    /// In which numbers the networks compute.
    Precision, "precision", {
        F32 = "f32",
        F16 = "f16",
        Int8 = "int8",
    }
);

impl Sampler {
    /// The schedule used when only the sampler is named: what its authors or its users pair it with.
    pub fn default_schedule(self) -> Schedule {
        match self {
            Self::Ddim | Self::Ddpm | Self::Pndm | Self::Lcm => Schedule::Leading,
            Self::Euler | Self::EulerA | Self::Heun | Self::Lms => Schedule::Linspace,
            Self::Dpmpp2m | Self::Dpmpp2mSde | Self::Dpmpp2s | Self::Unipc => Schedule::Karras,
        }
    }
}

/// The largest width and height, in pixels.
pub const MAX_SIZE: usize = 2048;
/// Width and height are multiples of this: the VAE's factor.
pub const SIZE_STEP: usize = 8;
/// The most steps: as many as the schedule was trained with.
pub const MAX_STEPS: usize = 1000;

/// The longest prompt, in bytes: more than the most chunks a prompt may make.
pub const MAX_PROMPT: usize = 1 << 16;

/// One picture, fully resolved: the same request with the same model, version and kernel gives the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub prompt: String,
    #[serde(default)]
    pub negative_prompt: String,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    pub steps: usize,
    /// Classifier-free guidance (Ho & Salimans 2022); 1 switches the second pass off.
    pub guidance_scale: f64,
    pub sampler: Sampler,
    pub schedule: Schedule,
    /// Share of ancestral noise in DDIM: 0 is deterministic, 1 is DDPM-like.
    pub eta: f64,
    pub seed: u64,
    pub rng: Rng,
    #[serde(default = "weighted")]
    pub prompt_syntax: PromptSyntax,
    /// 1 uses all of the text encoder's layers, 2 leaves out the last one, and so on.
    #[serde(default = "all_layers")]
    pub clip_skip: usize,
    /// Merged in this order, before those the prompt names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lora: Vec<Lora>,
    /// Where the prompt's `<lora:name:weight>` are looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_dir: Option<PathBuf>,
    /// Textual inversions; each file's name is its word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embedding: Vec<PathBuf>,
    /// More of them, read when the prompt has their word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_dir: Option<PathBuf>,
    /// The picture to start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Which part of it to repaint: the white one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<PathBuf>,
    /// How far to go from `init`: the share of the steps that are taken. Present with `init` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// How `init` and `mask` are brought to size. Present with `init` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// How much wider and higher the picture is made in a second pass; `width` and `height` are the first one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hires: Option<f64>,
    /// Steps of the second pass; without them, as many as in the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hires_steps: Option<usize>,
    /// How much of the enlarged latents the second pass replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hires_strength: Option<f64>,
}

fn weighted() -> PromptSyntax {
    PromptSyntax::Weighted
}

fn all_layers() -> usize {
    1
}

impl Request {
    /// A prompt and a seed, and for the rest what a model draws best with.
    pub fn new(prompt: impl Into<String>, seed: u64, defaults: &Defaults) -> Self {
        let Defaults { width, height, steps, guidance_scale, sampler, schedule } = *defaults;
        Self {
            prompt: prompt.into(),
            negative_prompt: String::new(),
            width,
            height,
            steps,
            guidance_scale,
            sampler,
            schedule,
            eta: 0.0,
            seed,
            rng: Rng::Torch,
            prompt_syntax: PromptSyntax::Weighted,
            clip_skip: 1,
            lora: Vec::new(),
            lora_dir: None,
            embedding: Vec::new(),
            embedding_dir: None,
            init: None,
            mask: None,
            strength: None,
            resize: None,
            hires: None,
            hires_steps: None,
            hires_strength: None,
        }
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// Names the first value out of range and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        for (field, text) in [("prompt", &self.prompt), ("negative prompt", &self.negative_prompt)] {
            // A PNG text chunk ends at a NUL character.
            ensure!(!text.contains('\0'), "the {field} holds a NUL character");
            ensure!(
                text.len() <= MAX_PROMPT,
                "the {field} is {} bytes long: the most is {MAX_PROMPT}",
                text.len()
            );
        }
        for (side, pixels) in [("width", self.width), ("height", self.height)] {
            validate_side(side, pixels)?;
        }
        ensure!(
            (1..=MAX_STEPS).contains(&self.steps),
            "steps {} is out of range (1 to {MAX_STEPS})",
            self.steps
        );
        ensure!(
            self.guidance_scale.is_finite() && (0.0..=100.0).contains(&self.guidance_scale),
            "guidance scale {} is out of range (0 to 100)",
            self.guidance_scale
        );
        ensure!(
            self.eta.is_finite() && (0.0..=1.0).contains(&self.eta),
            "eta {} is out of range (0 to 1)",
            self.eta
        );
        ensure!(
            self.eta == 0.0 || self.sampler == Sampler::Ddim,
            "eta {} has no meaning for {}: leave it out, or use the sampler ddim",
            self.eta,
            self.sampler
        );
        ensure!(self.clip_skip >= 1, "clip skip 0 is out of range: 1 uses all layers, 2 leaves out the last");
        Hires::validate(self)?;
        self.lora.iter().try_for_each(Lora::validate)?;
        self.validate_picture_in()
    }

    fn validate_picture_in(&self) -> Result<()> {
        if self.init.is_none() {
            let given = [
                ("mask", self.mask.is_some()),
                ("strength", self.strength.is_some()),
                ("resize", self.resize.is_some()),
            ];
            if let Some((field, _)) = given.iter().find(|(_, given)| *given) {
                bail!("{field} has no meaning without a picture to start from (init)");
            }
        }
        if let Some(strength) = self.strength {
            ensure!(
                strength > 0.0 && strength <= 1.0,
                "strength {strength} is out of range (above 0, up to 1)"
            );
            ensure!(
                self.steps as f64 * strength >= 1.0,
                "strength {strength} leaves none of {} steps: take more steps, or a strength of at least {}",
                self.steps,
                (1000.0 / self.steps as f64).ceil() / 1000.0
            );
        }
        Ok(())
    }
}

/// The sides in `512x768`.
pub fn parse_size(text: &str) -> Option<(usize, usize)> {
    let (width, height) = text.split_once(['x', 'X'])?;
    Some((width.trim().parse().ok()?, height.trim().parse().ok()?))
}

fn validate_side(side: &str, pixels: usize) -> Result<()> {
    if (SIZE_STEP..=MAX_SIZE).contains(&pixels) && pixels.is_multiple_of(SIZE_STEP) {
        return Ok(());
    }
    let below = (pixels / SIZE_STEP * SIZE_STEP).clamp(SIZE_STEP, MAX_SIZE);
    let above = (below + SIZE_STEP).min(MAX_SIZE);
    if pixels < below || below == above {
        bail!("{side} {pixels} is not possible: the nearest size is {below}");
    }
    bail!("{side} {pixels} is not a multiple of {SIZE_STEP}: the nearest sizes are {below} and {above}");
}
