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

    /// `Break` ends the run within this step; `generate` then returns
    /// [`DrawError::Interrupted`](super::DrawError::Interrupted).
    fn step(&mut self, _step: &Step<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Looks away.
impl Observer for () {}
