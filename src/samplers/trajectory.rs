//! The timesteps and sigmas one run visits and where it starts; `layout` makes them.

use std::ops::Range;

use anyhow::{Result, ensure};
use candle_core::Tensor;

/// The noise levels of a run, from the noisiest to the last.
///
/// Latents on the way are `x = clean + sigma * noise`, in the VAE's units; the network sees `x / sqrt(1 +
/// sigma^2)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Trajectory {
    pub(super) timesteps: Vec<f64>,
    /// One more than timesteps: where the last step ends.
    pub(super) sigmas: Vec<f64>,
    /// Of the noise that a run from nothing starts with.
    pub(super) noise_scale: f64,
    /// The first step that is taken.
    pub(super) first: usize,
}

impl Trajectory {
    /// Leaves out the steps before an image's noise level: of `n` steps the last `n * strength`, rounded
    /// down.
    ///
    /// # Errors
    /// When `strength` is not between 0 and 1.
    pub fn with_strength(mut self, strength: f64) -> Result<Self> {
        ensure!((0.0..=1.0).contains(&strength), "strength {strength} is out of range (0 to 1)");
        let steps = self.timesteps.len();
        self.first = steps - (steps as f64 * strength) as usize;
        Ok(self)
    }

    /// Leaves out all but the last `count` steps.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn with_last(mut self, count: usize) -> Result<Self> {
        let steps = self.timesteps.len();
        ensure!(count <= steps, "{count} of {steps} steps can't be taken");
        self.first = steps - count;
        Ok(self)
    }

    /// Where a run from nothing starts: `noise`, of variance 1, scaled to the first sigma.
    pub fn start(&self, noise: &Tensor) -> Result<Tensor> {
        Ok((noise * self.noise_scale)?)
    }

    /// Where a run from an image starts: its latents with noise added up to the first sigma.
    pub fn start_from(&self, clean: &Tensor, noise: &Tensor) -> Result<Tensor> {
        Ok((clean + noise * self.sigmas[self.first])?)
    }

    /// The indices of the steps to take.
    pub fn steps(&self) -> Range<usize> {
        self.first..self.timesteps.len()
    }

    /// What the network is told at each step, of the skipped ones too.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// The noise level before each step, and after the last.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }
}
