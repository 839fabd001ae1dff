//! From a draft to a request: what was typed or embedded, laid over what the model draws best with.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::defaults::{Basis, Defaults};
use super::recipes::{Ingredients, Recipe};
use super::saving::{Reuse, StepRange};
use super::second_pass;
use super::size::sensible_size;
use super::table::{Draft, FIELDS, Hires, Request};

impl Draft {
    /// Fills what is missing here from `below`.
    ///
    /// Schedule and eta belong to their sampler: naming another sampler drops those below, so that the
    /// sampler's own defaults apply. So does naming another recipe with all that recipes set.
    #[must_use]
    pub fn over(self, mut below: Self) -> Self {
        if self.fast.is_some() && self.fast != below.fast {
            (below.sampler, below.schedule, below.eta) = (None, None, None);
            (below.steps, below.guidance_scale) = (None, None);
        }
        if self.sampler.is_some() && self.sampler != below.sampler {
            (below.schedule, below.eta) = (None, None);
        }
        self.or(below)
    }

    /// Completes the draft with the model's defaults and, without a seed, one drawn from the system. `size_of`
    /// tells width and height of a picture file; it is asked when the draft starts from a picture and names no
    /// size.
    ///
    /// # Errors
    /// Says that the prompt is missing, names the first value out of range or the picture whose size is unknown.
    pub fn resolve(
        self,
        model: &Defaults,
        size_of: impl FnOnce(&Path) -> Result<(u32, u32)>,
    ) -> Result<Request> {
        ensure!(self.prompt.is_some(), "the request has no prompt");
        let own = (model.width, model.height);
        let size = match (&self.init, self.width, self.height) {
            (Some(init), None, None) => sensible_size(size_of(init)?, own)
                .with_context(|| format!("{} has no size to draw in", init.display()))?,
            _ => own,
        };
        let seed = self.seed.map_or_else(drawn_seed, Ok)?;
        let basis = self.basis(model, size, seed);
        let request = self.complete(&basis)?;
        request.validate()?;
        Ok(request.without_idle_savings())
    }

    fn basis(&self, model: &Defaults, size: (usize, usize), seed: u64) -> Basis {
        let recipe = self.fast.map(Recipe::ingredients);
        let model =
            recipe.map_or(*model, |Ingredients { sampler, schedule, steps, guidance_scale, .. }| Defaults {
                sampler,
                schedule,
                steps,
                guidance_scale,
                ..*model
            });
        let sampler = self.sampler.unwrap_or(model.sampler);
        let is_own = sampler == model.sampler;
        Basis {
            size,
            steps: self.steps.unwrap_or(model.steps),
            guidance_scale: model.guidance_scale,
            sampler,
            schedule: if is_own { model.schedule } else { sampler.default_schedule() },
            eta: recipe.filter(|_| is_own).map_or(sampler.default_eta(), |recipe| recipe.eta),
            seed,
            masked: self.mask.is_some(),
        }
    }
}

impl Request {
    /// A prompt and a seed, and for the rest what a model draws best with.
    ///
    /// # Panics
    /// Never: no setting of it needs another one.
    pub fn new(prompt: impl Into<String>, seed: u64, model: &Defaults) -> Self {
        let draft = Draft { prompt: Some(prompt.into()), seed: Some(seed), ..Draft::default() };
        let basis = draft.basis(model, (model.width, model.height), seed);
        draft.complete(&basis).expect("a plain request is complete")
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// Names the first value out of range and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        FIELDS.iter().try_for_each(|field| (field.limits)(self))
    }

    /// Width and height of the finished picture, in pixels.
    pub fn final_size(&self) -> (usize, usize) {
        match &self.hires {
            Some(Hires { scale, .. }) => {
                (second_pass::side(self.width, *scale), second_pass::side(self.height, *scale))
            }
            None => (self.width, self.height),
        }
    }
}

impl Hires {
    /// Of how many steps its own are the last.
    pub fn steps_from_noise(&self) -> usize {
        second_pass::steps_from_noise(self.steps, self.strength)
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

impl Request {
    /// Whether it says to compute less than all.
    pub fn saves_work(&self) -> bool {
        self.guidance_range.is_some() || self.guidance_auto.is_some() || self.cache.is_some()
    }

    /// Without settings that save nothing: what is drawn is then the same as without them, record and all.
    pub(super) fn without_idle_savings(mut self) -> Self {
        self.guidance_range = self.guidance_range.filter(|range| *range != StepRange::WHOLE);
        self.guidance_auto = self.guidance_auto.filter(|likeness| *likeness < 1.0);
        self.cache = self.cache.filter(|cache| cache.reuse != Reuse::ButEvery(1));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Hires, Sampler, Schedule};
    use super::*;

    const DEFAULTS: Defaults = Defaults {
        width: 64,
        height: 64,
        steps: 20,
        guidance_scale: 3.0,
        sampler: Sampler::Dpmpp2m,
        schedule: Schedule::Trailing,
    };

    fn no_picture(path: &Path) -> Result<(u32, u32)> {
        anyhow::bail!("{} is looked at", path.display())
    }

    fn prompt() -> Draft {
        Draft { prompt: Some("a cat".into()), ..Draft::default() }
    }

    #[test]
    fn flags_win_over_the_picture_and_the_picture_over_the_model() {
        let flags = Draft { steps: Some(5), seed: Some(1), ..Draft::default() };
        let picture = Draft { steps: Some(30), width: Some(128), ..prompt() };
        let request = flags.over(picture).resolve(&DEFAULTS, no_picture).unwrap();
        assert_eq!((request.steps, request.seed), (5, 1));
        assert_eq!((request.width, request.prompt.as_str()), (128, "a cat"));
        assert_eq!((request.height, request.guidance_scale), (64, 3.0));
    }

    #[test]
    fn a_schedule_follows_its_sampler() {
        let schedule = |flags: Draft, picture: Draft| {
            flags.over(picture).over(prompt()).resolve(&DEFAULTS, no_picture).unwrap().schedule
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
        let seeds: Vec<u64> = (0..8).map(|_| prompt().resolve(&DEFAULTS, no_picture).unwrap().seed).collect();
        assert!(seeds.iter().all(|&seed| seed <= u64::from(u32::MAX)));
        assert!(seeds.iter().any(|&seed| seed != seeds[0]));
    }

    #[test]
    fn limits_are_checked_and_named() {
        let message =
            |draft: Draft| draft.over(prompt()).resolve(&DEFAULTS, no_picture).unwrap_err().to_string();
        let width = |width| message(Draft { width: Some(width), ..Draft::default() });
        assert!(width(513).contains("nearest sizes are 512 and 520"));
        assert!(width(0).contains("nearest size is 8"));
        assert!(width(4096).contains("nearest size is 2048"));
        assert!(message(Draft { steps: Some(0), ..Draft::default() }).contains("steps 0"));
        assert!(message(Draft { eta: Some(f64::NAN), ..Draft::default() }).contains("eta"));
        assert!(message(Draft { prompt: Some("a\0b".into()), ..Draft::default() }).contains("NUL"));
        let no_prompt = Draft::default().resolve(&DEFAULTS, no_picture).unwrap_err().to_string();
        assert!(no_prompt.contains("no prompt"));
    }

    #[test]
    fn only_a_picture_that_gives_the_size_is_looked_at() {
        let init = || Draft { init: Some("a.png".into()), ..prompt() };
        let resolve = |draft: Draft| draft.resolve(&DEFAULTS, no_picture);
        assert!(resolve(init()).unwrap_err().to_string().contains("a.png is looked at"));
        let request = resolve(Draft { width: Some(96), ..init() }).unwrap();
        assert_eq!((request.width, request.height), (96, 64));
        let request = init().resolve(&DEFAULTS, |_| Ok((30, 90))).unwrap();
        assert_eq!((request.width, request.height), (32, 88));
    }

    #[test]
    fn what_is_valid_together_is_complete_or_absent() {
        let resolve = |draft: Draft| draft.over(prompt()).resolve(&DEFAULTS, |_| Ok((64, 64)));
        let init = || Draft { init: Some("a.png".into()), ..Draft::default() };
        let strength = |draft| resolve(draft).unwrap().init.unwrap().strength;
        assert_eq!(strength(init()), 0.75);
        assert_eq!(strength(Draft { mask: Some("m.png".into()), ..init() }), 1.0);
        let hires = resolve(Draft { hires: Some(1.5), ..Draft::default() }).unwrap().hires.unwrap();
        assert_eq!(hires, Hires { scale: 1.5, steps: 20, strength: 0.7 });
        let refused = |draft| resolve(draft).unwrap_err().to_string();
        let message = refused(Draft { strength: Some(0.5), ..Draft::default() });
        assert_eq!(message, "strength has no meaning without a picture to start from (init)");
        let message = refused(Draft { hires_steps: Some(5), ..Draft::default() });
        assert_eq!(message, "hires steps have no meaning without hires, the scale of the second pass");
        let message = refused(Draft { hires: Some(2.0), ..init() });
        assert!(message.starts_with("hires has no meaning with a picture"), "{message}");
    }

    #[test]
    fn a_recipe_stands_between_what_is_said_and_the_model() {
        let resolve = |draft: Draft| {
            let fast = Draft { fast: Some(Recipe::Hyper8), ..draft };
            fast.over(prompt()).resolve(&DEFAULTS, no_picture).unwrap()
        };
        let request = resolve(Draft::default());
        assert_eq!((request.sampler, request.schedule), (Sampler::Ddim, Schedule::Trailing));
        assert_eq!((request.steps, request.guidance_scale, request.eta), (8, 1.0, 0.0));
        let request = resolve(Draft { steps: Some(5), guidance_scale: Some(1.5), ..Draft::default() });
        assert_eq!((request.steps, request.guidance_scale), (5, 1.5));
        let request = resolve(Draft { sampler: Some(Sampler::Tcd), ..Draft::default() });
        assert_eq!((request.schedule, request.eta, request.steps), (Schedule::Leading, 0.3, 8));
        // Over a picture's settings it is as if those that it sets were not there.
        let picture = || Draft { sampler: Some(Sampler::Euler), steps: Some(30), ..prompt() };
        let fast = Draft { fast: Some(Recipe::Hyper8), ..Draft::default() };
        let request = fast.clone().over(picture()).resolve(&DEFAULTS, no_picture).unwrap();
        assert_eq!((request.sampler, request.steps), (Sampler::Ddim, 8));
        let same = fast.over(Draft { fast: Some(Recipe::Hyper8), ..picture() });
        assert_eq!(same.resolve(&DEFAULTS, no_picture).unwrap().steps, 30);
        let one = Draft { fast: Some(Recipe::Hyper1), ..prompt() };
        assert_eq!(one.resolve(&DEFAULTS, no_picture).unwrap().eta, 1.0);
    }

    #[test]
    fn a_request_and_its_draft_are_the_same_text() {
        let draft = Draft { hires: Some(1.5), lora: Some(vec!["a:0.5".parse().unwrap()]), ..prompt() };
        let request = draft.resolve(&DEFAULTS, no_picture).unwrap();
        let json = serde_json::to_string(&request).unwrap();
        let read: Draft = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        assert_eq!(read.resolve(&DEFAULTS, no_picture).unwrap(), request);
    }
}
