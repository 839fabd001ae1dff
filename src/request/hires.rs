//! The second pass at a larger size: its settings, their limits and defaults; how it is run stands in the pipeline.

use anyhow::{Result, ensure};

use super::{MAX_SIZE, MAX_STEPS, Request, SIZE_STEP};

/// A second pass over enlarged latents, as AUTOMATIC1111's "Hires. fix" with its upscaler "Latent".
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hires {
    /// Pixels of the final picture.
    pub width: usize,
    /// Pixels of the final picture.
    pub height: usize,
    /// Steps that are taken, whatever the strength.
    pub steps: usize,
    pub strength: f64,
}

impl Hires {
    /// AUTOMATIC1111's.
    pub const DEFAULT_STRENGTH: f64 = 0.7;
    /// The largest scale.
    pub const MAX_SCALE: f64 = 4.0;

    /// The second pass of a request, if it has one.
    pub fn of(request: &Request) -> Option<Self> {
        let scale = request.hires?;
        let side = |pixels: usize| (pixels as f64 * scale) as usize / SIZE_STEP * SIZE_STEP;
        Some(Self {
            width: side(request.width),
            height: side(request.height),
            steps: request.hires_steps.unwrap_or(request.steps),
            strength: request.hires_strength.unwrap_or(Self::DEFAULT_STRENGTH),
        })
    }

    /// Of how many steps its own are the last.
    pub fn steps_from_noise(&self) -> usize {
        // With a little less than 1 rounding down gives 20 for 14 steps of strength 0.7, and 20 for 20 of 1.
        ((self.steps as f64 / self.strength + 1e-9) as usize).max(self.steps)
    }

    /// # Errors
    /// Names the first value of `request` out of range and what would be accepted.
    pub(super) fn validate(request: &Request) -> Result<()> {
        let Some(scale) = request.hires else {
            let given =
                [("steps", request.hires_steps.is_some()), ("strength", request.hires_strength.is_some())];
            for (setting, given) in given {
                ensure!(
                    !given,
                    "hires {setting} have no meaning without hires, the scale of the second pass"
                );
            }
            return Ok(());
        };
        ensure!(
            request.init.is_none(),
            "hires has no meaning with a picture to start from (init): use a larger size"
        );
        ensure!((1.0..=Self::MAX_SCALE).contains(&scale), "hires scale {scale} is out of range (1 to 4)");
        let Some(hires) = Self::of(request) else { return Ok(()) };
        let Self { width, height, steps, strength } = hires;
        ensure!(
            width.max(height) <= MAX_SIZE,
            "hires scale {scale} makes {width}x{height} of {}x{}: the most is {MAX_SIZE}",
            request.width,
            request.height
        );
        ensure!((1..=MAX_STEPS).contains(&steps), "hires steps {steps} is out of range (1 to {MAX_STEPS})");
        ensure!(
            strength > 0.0 && strength <= 1.0,
            "hires strength {strength} is out of range (above 0 up to 1)"
        );
        ensure!(
            hires.steps_from_noise() <= MAX_STEPS,
            "{steps} hires steps of strength {strength} are the last of {}: the most is {MAX_STEPS}",
            hires.steps_from_noise()
        );
        Ok(())
    }
}
