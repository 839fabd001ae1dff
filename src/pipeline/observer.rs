//! Who watches a picture being made: progress, warnings, previews, and the way to stop.

use std::ops::ControlFlow;

use candle_core::Tensor;

use super::projection::Projection;

/// What a pipeline is doing, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading a network; comes again before the phase that runs it.
    Load,
    Encode,
    Denoise,
    /// The second pass, of enlarged latents.
    Refine,
    Decode,
}

/// One finished denoising step.
pub struct Step<'a> {
    /// 1-based.
    pub index: usize,
    pub total: usize,
    /// The current estimate of the final latents, `[1, channels, height / factor, width / factor]`.
    pub denoised: &'a Tensor,
    /// Makes a small picture of `denoised`, one pixel for each latent; for observers that asked for previews.
    pub projection: Option<&'a Projection>,
}

/// What the UNet was asked and what it answered.
#[derive(Debug, Clone)]
pub struct Call {
    /// `[1, in_channels, height / factor, width / factor]`
    pub input: Tensor,
    pub timestep: f64,
    /// `[1 or 2, out_channels, height / factor, width / factor]`: under guidance the answer to the negative prompt,
    /// then the one to the prompt.
    pub output: Tensor,
}

/// Watches a picture being made and may stop it.
pub trait Observer {
    fn phase(&mut self, _phase: Phase) {}

    /// Something the user should know that does not stop the run.
    fn warn(&mut self, _message: &str) {}

    /// Something that was done besides, e.g. to how many layers an adapter was applied.
    fn inform(&mut self, _message: &str) {}

    /// Whether whoever watches wants no further work; asked where there are no steps.
    fn stopped(&self) -> bool {
        false
    }

    /// Whether steps are to carry a preview, which takes the decoder before the first of them.
    fn previews(&self) -> bool {
        false
    }

    /// Every call of the UNet; one step of some samplers makes two.
    fn called(&mut self, _call: &Call) {}

    /// `Break` ends the run within this step; `generate` then returns
    /// [`DrawError::Interrupted`](super::DrawError::Interrupted).
    fn step(&mut self, _step: &Step<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Looks away.
impl Observer for () {}
