//! Everything a request can say, one row a field: type, default, limits, flag with its help, spellings.
//!
//! A row is all that another flag needs, beside the place that uses its value: flags, lists, records, `info` and
//! `parameters` texts are made from here.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::defaults::Basis;
use super::fields::{Parameter, Row, Section, request_fields};
use super::files::Lora;
use super::limits::{self, MAX_STEPS};
use super::names::{PromptSyntax, Resize};
use super::recipes::Recipe;
use super::saving::{DEFAULT_LIKENESS, Reuse, StepRange};
use super::second_pass;
use super::size::parse_size;
use super::spelled::{Given, Held, Spelled};
use crate::noise::Rng;
use crate::samplers::{Sampler, Schedule};

/// One row of the table.
pub type Field = Row<Request, Draft>;

request_fields! {
    each {
        /// What to draw.
        prompt: String = |_| String::new(), {
            limits: |request| limits::text("prompt", &request.prompt),
            info: "prompt",
        };

        /// What not to draw.
        negative_prompt: String = |_| String::new(), {
            limits: |request| limits::text("negative prompt", &request.negative_prompt),
            flag: "-n, --negative <TEXT>",
            section: Section::Prompt,
            help: "What not to draw",
            info: "negative",
        };

        /// Pixels.
        width: usize = |basis| basis.size.0, {
            limits: |request| limits::side("width", request.width),
            flag: "-W, --width <PIXELS>",
            section: Section::Size,
            help: "Width in pixels, a multiple of 8 up to 2048 [default: the model's]",
        };

        /// Pixels.
        height: usize = |basis| basis.size.1, {
            limits: |request| limits::side("height", request.height),
            flag: "-H, --height <PIXELS>",
            section: Section::Size,
            help: "Height in pixels, a multiple of 8 up to 2048 [default: the model's]",
        } also size {
            covers: &["width", "height"],
            flag: "--size <WxH>",
            section: Section::Size,
            help: "Width and height together, e.g. 512x768",
            parameter: Parameter::of("Size"),
            info: "size",
            get: |draft| Some(format!("{}x{}", draft.width?, draft.height?)),
            set: |draft, text| {
                let sides = text.to_str().and_then(parse_size).ok_or("expected WIDTHxHEIGHT, e.g. 512x768")?;
                (draft.width, draft.height) = (Some(sides.0), Some(sides.1));
                Ok(())
            },
            put: |draft, value| {
                let expected = || serde::de::Error::custom("expected WIDTHxHEIGHT, e.g. \"512x768\"");
                let sides = value.as_str().and_then(parse_size).ok_or_else(expected)?;
                (draft.width, draft.height) = (Some(sides.0), Some(sides.1));
                Ok(())
            },
        };

        /// Denoising steps.
        steps: usize = |basis| basis.steps, {
            limits: |request| limits::within("steps", request.steps, 1..=MAX_STEPS),
            flag: "--steps <N>",
            section: Section::Sampling,
            help: "Denoising steps, 1 to 1000 [default: the model's]",
            parameter: Parameter::of("Steps"),
            info: "steps",
        };

        /// Classifier-free guidance (Ho & Salimans 2022); 1 switches the second pass off.
        guidance_scale: f64 = |basis| basis.guidance_scale, {
            limits: |request| limits::within("guidance scale", request.guidance_scale, 0.0..=100.0),
            flag: "--cfg <SCALE>",
            section: Section::Sampling,
            help: "Guidance: how closely to follow the prompt, 1 is off [default: the model's]",
            parameter: Parameter::of("CFG scale"),
            info: "guidance",
        };

        /// A few-step LoRA, and the settings that are its own where nothing else is said.
        fast: Option<Recipe> = |_| None, {
            flag: "--fast <RECIPE>",
            section: Section::Saving,
            help: "Draw in a few steps by a LoRA made for that",
            more: "With sampler, schedule, steps and guidance of its own, each of which can be said otherwise. The \
                   LoRAs are for Stable Diffusion 1.5; `pochade models pull lcm-lora` fetches that of the recipe \
                   lcm. That of pocket is built in, and for the built-in model.",
            info: "recipe",
        };

        /// The steps that are guided; the others take the prompt alone, in half the work (Kynkäänniemi et al. 2024).
        guidance_range: Option<StepRange> = |_| None, {
            limits: |request| request.guidance_range.iter().try_for_each(StepRange::validate),
            flag: "--cfg-range <START..END>",
            section: Section::Saving,
            help: "Guide only the steps in this share of all, e.g. 0..0.5; the others take half the work",
            more: "A step counts by its middle: of 20 steps 0..0.5 guides the first 10. Each pass of --hires is \
                   counted by itself; 0..1 guides all.",
            info: "guidance range",
            seldom: true,
        };

        /// How alike the outputs for both prompts are, as a cosine, when guidance ends (Castillo et al. 2023).
        guidance_auto: Option<f64> = |_| None, {
            limits: |request| match request.guidance_auto {
                Some(likeness) => limits::share("guidance auto", likeness, "above 0, up to 1"),
                None => Ok(()),
            },
            flag: "--cfg-auto <COSINE>",
            alone: DEFAULT_LIKENESS,
            section: Section::Saving,
            help: "End guidance once the UNet's answers with and without the prompt point the same way [default: \
                   0.991]",
            more: "Adaptive Guidance: measured as the cosine between both answers; from the step after it exceeds \
                   this, one pass is taken instead of two. 1 guides to the end.",
            info: "guidance auto",
            seldom: true,
        };

        /// The solver; in a `parameters` text the schedule may be part of its name.
        sampler: Sampler = |basis| basis.sampler, {
            flag: "--sampler <NAME>",
            section: Section::Sampling,
            help: "Sampler [default: the model's]",
            info: "sampler",
        };

        /// How its steps are spread.
        schedule: Schedule = |basis| basis.schedule, {
            flag: "--schedule <NAME>",
            section: Section::Sampling,
            help: "Spacing of the steps [default: the sampler's]",
            info: "schedule",
        };

        /// Share of fresh noise in DDIM and TCD: 0 is deterministic; with 1 they are DDPM and a consistency model's.
        eta: f64 = |basis| basis.eta, {
            limits: |request| {
                let (eta, sampler) = (request.eta, request.sampler);
                limits::within("eta", eta, 0.0..=1.0)?;
                ensure!(
                    eta == 0.0 || sampler.takes_eta(),
                    "eta {eta} has no meaning for {sampler}: leave it out, or use the sampler ddim or tcd"
                );
                Ok(())
            },
            flag: "--eta <SHARE>",
            section: Section::Sampling,
            help: "Share of fresh noise in each step of the samplers ddim and tcd, 0 to 1 [default: ddim 0, tcd 0.3]",
            seldom: true,
            parameter: Parameter { absent: Some("0"), left_out: true, ..Parameter::of("Eta DDIM") },
            info: "eta",
        };

        /// Of the noise.
        seed: u64 = |basis| basis.seed, {
            flag: "-s, --seed <N>",
            section: Section::Noise,
            help: "Seed of the noise, 0 to 2^64-1 [default: random, printed and embedded]",
            parameter: Parameter::of("Seed"),
            info: "seed",
        };

        /// Whose random numbers the seed stands for.
        rng: Rng = |_| Rng::Torch, {
            flag: "--rng <NAME>",
            section: Section::Noise,
            help: "Whose random numbers a seed stands for: torch (diffusers), philox (CUDA, AUTOMATIC1111) \
                   [default: torch]",
            seldom: true,
            tells_names: true,
            // NV is Philox computed on the CPU; a text without RNG means the same numbers from a GPU.
            parameter: Parameter {
                names: &[("torch", "CPU"), ("philox", "NV"), ("philox", "GPU"), ("philox", "CUDA")],
                absent: Some("philox"),
                ..Parameter::of("RNG")
            },
            info: "rng",
        };

        /// How both prompts are understood.
        prompt_syntax: PromptSyntax = |_| PromptSyntax::Weighted, {
            flag: "--prompt-syntax <NAME>",
            section: Section::Prompt,
            help: "How prompts are understood: AUTOMATIC1111's weights, BREAK and tags, or every sign a token \
                   [default: weighted]",
            more: "weighted: (x) weighs 1.1 times as much, [x] 1.1 times less, (x:1.3) as it says; a backslash \
                   makes a bracket text; more than 75 tokens and BREAK begin another chunk; <lora:name:weight> \
                   is looked for in --lora-dir. plain: one chunk, as in diffusers.",
            seldom: true,
            tells_names: true,
            parameter: Parameter {
                names: &[("plain", "None"), ("weighted", "Original")],
                absent: Some("weighted"),
                left_out: true,
                ..Parameter::of("Emphasis")
            },
            info: "syntax",
        };

        /// 1 uses all of the text encoder's layers, 2 leaves out the last one, and so on.
        clip_skip: usize = |_| 1, {
            limits: |request| {
                let skip = request.clip_skip;
                ensure!(skip >= 1, "clip skip {skip} is out of range: 1 uses all layers, 2 leaves out the last");
                Ok(())
            },
            flag: "--clip-skip <N>",
            section: Section::Prompt,
            help: "Last layer of the text encoder to use, from the end [default: 1]",
            parameter: Parameter { absent: Some("1"), left_out: true, ..Parameter::of("Clip skip") },
            info: "clip skip",
        };

        /// Merged in this order, before those the prompt names; tags of the prompt in a `parameters` text.
        lora: Vec<Lora> = |_| Vec::new(), {
            limits: |request| request.lora.iter().try_for_each(Lora::validate),
            flag: "--lora <FILE[:WEIGHT]>",
            section: Section::Model,
            help: "LoRA, LoHa or LoKr to merge, with its weight [default: 1]; several add up",
            info: "lora",
        };

        /// Where the prompt's `<lora:name:weight>` are looked for.
        lora_dir: Option<PathBuf> = |_| None, {
            flag: "--lora-dir <DIR>",
            section: Section::Model,
            help: "Folder of the LoRAs that prompts name as <lora:name:weight>",
            seldom: true,
            info: "lora folder",
        };

        /// Textual inversions; each file's name is its word.
        embedding: Vec<PathBuf> = |_| Vec::new(), {
            flag: "--embedding <FILE>",
            section: Section::Prompt,
            help: "Textual inversion, used where a prompt has its file name as a word",
            info: "embedding",
        };

        /// More of them, read when the prompt has their word.
        embedding_dir: Option<PathBuf> = |_| None, {
            flag: "--embedding-dir <DIR>",
            section: Section::Prompt,
            help: "Folder of textual inversions, each read when a prompt has its file name as a word",
            seldom: true,
            info: "embedding folder",
        };
    }

    /// A picture to start from.
    together init: Init, "has no meaning without a picture to start from (init)" {
        /// Its file.
        init as picture: PathBuf, {
            flag: "--init <IMAGE>",
            section: Section::PictureIn,
            help: "Picture to start from (PNG, JPEG, WebP) instead of noise alone; gives the size too, unless one \
                   is named",
            more: "Turned as its EXIF orientation says; transparency is laid on white. Its size is rounded to \
                   multiples of 8 and kept to a quarter to nine quarters of the model's own area.",
            info: "init",
        };

        /// Which part of it to repaint: the white one.
        mask as mask: Option<PathBuf> = |_| None, {
            flag: "--mask <IMAGE>",
            section: Section::PictureIn,
            help: "Repaint only the white part of this picture, of --init's shape; the black part stays as it is, \
                   to the pixel",
            more: "Gray blends. Any model can do it; an inpainting model sees the rest of the picture while it \
                   draws.",
            info: "mask",
        };

        /// How far to go from it: the share of the steps that are taken. Of a picture enough is kept to recognize
        /// it; under a mask nothing has to be kept.
        strength as strength: f64 = |basis| if basis.masked { 1.0 } else { 0.75 }, {
            limits: |request| match &request.init {
                Some(init) => limits::strength(init.strength, request.steps),
                None => Ok(()),
            },
            flag: "--strength <SHARE>",
            section: Section::PictureIn,
            help: "How far to go from --init: the share of the steps taken, above 0 to 1 [default: 0.75, with \
                   --mask 1]",
            parameter: Parameter::of("Denoising strength"),
            info: "strength",
        };

        /// How picture and mask are brought to size.
        resize as resize: Resize = |_| Resize::Crop, {
            flag: "--resize <NAME>",
            section: Section::PictureIn,
            help: "How --init and --mask are brought to the size: crop, fit (edges continue), stretch [default: \
                   crop]",
            more: "crop covers the size and cuts off what hangs over; fit lies within it and fills the rest with \
                   the colors of the nearest edge; stretch ignores the shape.",
            tells_names: true,
            info: "resize",
        };
    }

    /// A step cache (DeepCache, Ma et al. 2023): some steps compute the UNet's outer blocks alone and take what the
    /// inner ones gave in an earlier step.
    together cache: Cache, "has no meaning without cache" {
        /// Which steps do so.
        cache as reuse: Reuse, {
            limits: |request| match &request.cache {
                Some(cache) => cache.reuse.validate(),
                None => Ok(()),
            },
            flag: "--cache <N|auto[=CHANGE]>",
            section: Section::Saving,
            help: "Compute the UNet whole in every Nth step, or when it has changed (auto), else its outer blocks \
                   alone",
            more: "The first and the last step are always whole. auto=CHANGE [default: 0.1]: a step is whole when the \
                   map that goes into the inner blocks has changed by more than this share since the last whole \
                   one. 1 computes every step whole.",
            info: "cache",
        };

        /// The skip connection up to which a step is computed anew, counted from the outermost.
        cache_branch as branch: usize = |_| 0, {
            flag: "--cache-branch <N>",
            section: Section::Saving,
            help: "How deep the outer blocks of --cache reach: 0 is the outermost skip connection, up to 11 in \
                   SD 1.5 [default: 0]",
            seldom: true,
            info: "cache branch",
        };
    }

    /// A second pass over enlarged latents, as AUTOMATIC1111's "Hires. fix" with its upscaler "Latent"; width and
    /// height are the first pass's.
    together hires: Hires, "have no meaning without hires, the scale of the second pass" {
        /// How much wider and higher the picture is made.
        hires as scale: f64, {
            limits: |request| match &request.hires {
                Some(Hires { scale, steps, strength }) => {
                    ensure!(
                        request.init.is_none(),
                        "hires has no meaning with a picture to start from (init): use a larger size"
                    );
                    second_pass::limits((request.width, request.height), *scale, *steps, *strength)
                }
                None => Ok(()),
            },
            flag: "--hires <SCALE>",
            section: Section::SecondPass,
            help: "Make the picture this much wider and higher in a second pass over its enlarged latents, 1 to 4",
            more: "Width and height are then those of the first pass; the final ones are rounded down to multiples \
                   of 8.",
            parameter: Parameter::of("Hires upscale"),
            info: "hires",
        };

        /// Steps that are taken, whatever the strength.
        hires_steps as steps: usize = |basis| basis.steps, {
            flag: "--hires-steps <N>",
            section: Section::SecondPass,
            help: "Steps the second pass takes [default: as many as --steps]",
            seldom: true,
            parameter: Parameter::of("Hires steps"),
            info: "hires steps",
        };

        /// How much of the enlarged latents is replaced.
        hires_strength as strength: f64 = |_| second_pass::DEFAULT_STRENGTH, {
            flag: "--hires-strength <SHARE>",
            section: Section::SecondPass,
            help: "How much the second pass changes, above 0 up to 1 [default: 0.7]",
            seldom: true,
            parameter: Parameter::of("Denoising strength"),
            info: "hires strength",
        };
    }
}

/// As its draft, flat.
impl Serialize for Request {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Draft::from(self.clone()).serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_rows_share_a_key_or_a_flag() {
        let keys: BTreeSet<&str> = FIELDS.iter().map(|field| field.key).collect();
        assert_eq!(keys.len(), FIELDS.len());
        let flags: Vec<&str> = FIELDS.iter().filter_map(Field::long).collect();
        assert_eq!(flags.iter().collect::<BTreeSet<_>>().len(), flags.len());
    }

    #[test]
    fn every_row_can_be_read() {
        for field in FIELDS {
            let named = field.long().is_some() && field.value_name().is_some() && !field.help.is_empty();
            assert!(field.flag.is_empty() || named, "{}: {}", field.key, field.flag);
            let Parameter { names, absent, .. } = field.parameter;
            for text in names.iter().map(|(ours, _)| *ours).chain(absent) {
                let mut draft = Draft::default();
                assert_eq!((field.set)(&mut draft, text.as_ref()), Ok(()), "{}", field.key);
                assert_eq!((field.get)(&draft).as_deref(), Some(text), "{}", field.key);
            }
            assert!(!field.covers.is_empty(), "{} sets nothing", field.key);
        }
        let flags = |key: &str| FIELDS.iter().find(|field| field.key == key).unwrap();
        let width = flags("width");
        assert_eq!(
            (width.short(), width.long(), width.value_name()),
            (Some('W'), Some("width"), Some("PIXELS"))
        );
        assert_eq!((flags("prompt").long(), flags("steps").short()), (None, None));
    }
}
