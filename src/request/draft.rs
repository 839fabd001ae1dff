//! A request before it is complete: what was typed or embedded, laid over what the model draws best with.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{Hires, Lora, PromptSyntax, Request, Resize, Rng, Sampler, Schedule};
use crate::checkpoint::Defaults;
use crate::picture_in;

/// Of a picture enough is kept to recognise it.
const STRENGTH: f64 = 0.75;
/// Under a mask nothing has to be kept.
const MASKED_STRENGTH: f64 = 1.0;

/// A request whose every field may be missing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Draft {
    pub prompt: Option<String>,
    pub negative_prompt: Option<String>,
    pub width: Option<usize>,
    pub height: Option<usize>,
    pub steps: Option<usize>,
    pub guidance_scale: Option<f64>,
    pub sampler: Option<Sampler>,
    pub schedule: Option<Schedule>,
    pub eta: Option<f64>,
    pub seed: Option<u64>,
    pub rng: Option<Rng>,
    pub prompt_syntax: Option<PromptSyntax>,
    pub clip_skip: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Vec<Lora>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_dir: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Vec<PathBuf>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_dir: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hires: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hires_steps: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hires_strength: Option<f64>,
}

impl Draft {
    /// Fills what is missing here from `below`.
    ///
    /// Schedule and eta belong to their sampler: naming another sampler drops those below, so that the
    /// sampler's own defaults apply.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        let same_sampler = self.sampler.is_none() || self.sampler == below.sampler;
        let schedule = self.schedule.or(if same_sampler { below.schedule } else { None });
        Self {
            prompt: self.prompt.or(below.prompt),
            negative_prompt: self.negative_prompt.or(below.negative_prompt),
            width: self.width.or(below.width),
            height: self.height.or(below.height),
            steps: self.steps.or(below.steps),
            guidance_scale: self.guidance_scale.or(below.guidance_scale),
            sampler: self.sampler.or(below.sampler),
            schedule,
            eta: self.eta.or(if same_sampler { below.eta } else { None }),
            seed: self.seed.or(below.seed),
            rng: self.rng.or(below.rng),
            prompt_syntax: self.prompt_syntax.or(below.prompt_syntax),
            clip_skip: self.clip_skip.or(below.clip_skip),
            lora: self.lora.or(below.lora),
            lora_dir: self.lora_dir.or(below.lora_dir),
            embedding: self.embedding.or(below.embedding),
            embedding_dir: self.embedding_dir.or(below.embedding_dir),
            init: self.init.or(below.init),
            mask: self.mask.or(below.mask),
            strength: self.strength.or(below.strength),
            resize: self.resize.or(below.resize),
            hires: self.hires.or(below.hires),
            hires_steps: self.hires_steps.or(below.hires_steps),
            hires_strength: self.hires_strength.or(below.hires_strength),
        }
    }

    /// Completes the draft with the size of the picture it starts from, if it does and names none, the model's
    /// defaults and, without a seed, one drawn from the system.
    ///
    /// # Errors
    /// Says that the prompt is missing, names the first value out of range or the picture that can't be read.
    pub fn resolve(self, defaults: &Defaults) -> Result<Request> {
        let sampler = self.sampler.unwrap_or(defaults.sampler);
        let schedule = self.schedule.unwrap_or(if sampler == defaults.sampler {
            defaults.schedule
        } else {
            sampler.default_schedule()
        });
        let size = match (&self.init, self.width, self.height) {
            (Some(init), None, None) => picture_in::default_size(init, (defaults.width, defaults.height))?,
            _ => (defaults.width, defaults.height),
        };
        let starts = |default: f64| self.init.is_some().then_some(default);
        let strength = starts(if self.mask.is_some() { MASKED_STRENGTH } else { STRENGTH });
        let mut request = Request {
            prompt: self.prompt.context("the request has no prompt")?,
            negative_prompt: self.negative_prompt.unwrap_or_default(),
            width: self.width.unwrap_or(size.0),
            height: self.height.unwrap_or(size.1),
            steps: self.steps.unwrap_or(defaults.steps),
            guidance_scale: self.guidance_scale.unwrap_or(defaults.guidance_scale),
            sampler,
            schedule,
            eta: self.eta.unwrap_or(0.0),
            seed: self.seed.map_or_else(drawn_seed, Ok)?,
            rng: self.rng.unwrap_or(Rng::Torch),
            prompt_syntax: self.prompt_syntax.unwrap_or(PromptSyntax::Weighted),
            clip_skip: self.clip_skip.unwrap_or(1),
            lora: self.lora.unwrap_or_default(),
            lora_dir: self.lora_dir,
            embedding: self.embedding.unwrap_or_default(),
            embedding_dir: self.embedding_dir,
            strength: self.strength.or(strength),
            resize: self.resize.or(self.init.is_some().then_some(Resize::Crop)),
            init: self.init,
            mask: self.mask,
            hires: self.hires,
            hires_steps: self.hires_steps,
            hires_strength: self.hires_strength,
        };
        request.validate()?;
        if let Some(hires) = Hires::of(&request) {
            request.hires_steps = Some(hires.steps);
            request.hires_strength = Some(hires.strength);
        }
        Ok(request)
    }
}

impl From<Request> for Draft {
    fn from(request: Request) -> Self {
        let Request {
            prompt,
            negative_prompt,
            width,
            height,
            steps,
            guidance_scale,
            sampler,
            schedule,
            eta,
            seed,
            rng,
            prompt_syntax,
            clip_skip,
            lora,
            lora_dir,
            embedding,
            embedding_dir,
            init,
            mask,
            strength,
            resize,
            hires,
            hires_steps,
            hires_strength,
        } = request;
        Self {
            prompt: Some(prompt),
            negative_prompt: Some(negative_prompt),
            width: Some(width),
            height: Some(height),
            steps: Some(steps),
            guidance_scale: Some(guidance_scale),
            sampler: Some(sampler),
            schedule: Some(schedule),
            eta: Some(eta),
            seed: Some(seed),
            rng: Some(rng),
            prompt_syntax: Some(prompt_syntax),
            clip_skip: Some(clip_skip),
            lora: Some(lora).filter(|lora| !lora.is_empty()),
            lora_dir,
            embedding: Some(embedding).filter(|embedding| !embedding.is_empty()),
            embedding_dir,
            init,
            mask,
            strength,
            resize,
            hires,
            hires_steps,
            hires_strength,
        }
    }
}

/// A seed from the system: 32 bits, because PyTorch's CPU generator uses no more: the seed means the same everywhere.
///
/// # Errors
/// When the system gives no random numbers.
pub fn drawn_seed() -> Result<u64> {
    let seed = getrandom::u32().context("the system gives no random seed; pass one with --seed")?;
    Ok(u64::from(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Defaults = Defaults {
        width: 64,
        height: 64,
        steps: 20,
        guidance_scale: 3.0,
        sampler: Sampler::Dpmpp2m,
        schedule: Schedule::Trailing,
    };

    fn prompt() -> Draft {
        Draft { prompt: Some("a cat".into()), ..Draft::default() }
    }

    #[test]
    fn flags_win_over_the_picture_and_the_picture_over_the_model() {
        let flags = Draft { steps: Some(5), seed: Some(1), ..Draft::default() };
        let picture = Draft { steps: Some(30), width: Some(128), ..prompt() };
        let request = flags.over(picture).resolve(&DEFAULTS).unwrap();
        assert_eq!((request.steps, request.seed), (5, 1));
        assert_eq!((request.width, request.prompt.as_str()), (128, "a cat"));
        assert_eq!((request.height, request.guidance_scale), (64, 3.0));
    }

    #[test]
    fn a_schedule_follows_its_sampler() {
        let schedule = |flags: Draft, picture: Draft| {
            flags.over(picture).over(prompt()).resolve(&DEFAULTS).unwrap().schedule
        };
        let sampler = |sampler| Draft { sampler: Some(sampler), ..Draft::default() };
        let nothing = Draft::default;
        let leading_euler = || Draft { schedule: Some(Schedule::Leading), ..sampler(Sampler::Euler) };

        assert_eq!(schedule(nothing(), nothing()), Schedule::Trailing);
        assert_eq!(schedule(sampler(Sampler::Dpmpp2m), nothing()), Schedule::Trailing);
        assert_eq!(schedule(sampler(Sampler::Euler), nothing()), Schedule::Linspace);
        assert_eq!(schedule(nothing(), leading_euler()), Schedule::Leading);
        assert_eq!(schedule(sampler(Sampler::Euler), leading_euler()), Schedule::Leading);
        assert_eq!(schedule(sampler(Sampler::Ddim), leading_euler()), Schedule::Leading);
        assert_eq!(schedule(sampler(Sampler::Unipc), leading_euler()), Schedule::Karras);
        let karras = Draft { schedule: Some(Schedule::Karras), ..nothing() };
        assert_eq!(schedule(karras, leading_euler()), Schedule::Karras);
    }

    #[test]
    fn a_drawn_seed_fits_torch() {
        let seeds: Vec<u64> = (0..8).map(|_| prompt().resolve(&DEFAULTS).unwrap().seed).collect();
        assert!(seeds.iter().all(|&seed| seed <= u64::from(u32::MAX)));
        assert!(seeds.iter().any(|&seed| seed != seeds[0]));
    }

    #[test]
    fn limits_are_checked_and_named() {
        let message = |draft: Draft| draft.over(prompt()).resolve(&DEFAULTS).unwrap_err().to_string();
        let width = |width| message(Draft { width: Some(width), ..Draft::default() });
        assert!(width(513).contains("nearest sizes are 512 and 520"));
        assert!(width(0).contains("nearest size is 8"));
        assert!(width(4096).contains("nearest size is 2048"));
        assert!(message(Draft { steps: Some(0), ..Draft::default() }).contains("steps 0"));
        assert!(message(Draft { eta: Some(f64::NAN), ..Draft::default() }).contains("eta"));
        assert!(message(Draft { prompt: Some("a\0b".into()), ..Draft::default() }).contains("NUL"));
        let no_prompt = Draft::default().resolve(&DEFAULTS).unwrap_err().to_string();
        assert!(no_prompt.contains("no prompt"));
    }
}
