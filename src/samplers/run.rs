//! What every solver works with: the network, noise, the steps to take and whoever watches them.

use std::ops::Range;

use anyhow::Result;
use candle_core::Tensor;

use super::trajectory::Trajectory;
use crate::noise::NoiseSource;
use crate::schedule::{NoiseSchedule, Prediction};

/// The network: latents `[1, channels, h, w]` scaled to variance 1 and a timestep in, its guided output of the same
/// shape out.
pub type Model<'a> = dyn FnMut(&Tensor, f64) -> Result<Tensor> + 'a;

/// Sees every finished step. An error ends the run; a tensor takes the place of the step's latents.
pub type OnStep<'a> = dyn FnMut(&Progress<'_>) -> Result<Option<Tensor>> + 'a;

/// One finished step.
pub struct Progress<'a> {
    /// 1-based.
    pub index: usize,
    pub total: usize,
    /// The newest estimate of the clean latents, `[1, channels, h, w]`.
    pub denoised: &'a Tensor,
    /// `clean + sigma * noise`, of the same shape.
    pub latents: &'a Tensor,
    pub sigma: f64,
}

impl Progress<'_> {
    /// Known latents as they would be at this point of the walk, to be blended with
    /// [`latents`](Self::latents): with noise, or without it after the last step.
    pub fn noised(&self, clean: &Tensor, noise: &Tensor) -> Result<Tensor> {
        if self.index == self.total {
            return Ok((clean * self.sigma.hypot(1.0))?);
        }
        Ok((clean + noise * self.sigma)?)
    }
}

/// What a sampler works with.
pub struct Run<'a> {
    pub trajectory: &'a Trajectory,
    pub noise_schedule: &'a NoiseSchedule,
    pub model: &'a mut Model<'a>,
    /// Continues after the draw of the initial noise.
    pub noise: &'a mut NoiseSource,
    pub on_step: &'a mut OnStep<'a>,
}

impl Run<'_> {
    pub(super) fn steps(&self) -> Range<usize> {
        self.trajectory.steps()
    }

    /// The noise level before step `i`, or after step `i - 1`.
    pub(super) fn sigma(&self, i: usize) -> f64 {
        self.trajectory.sigmas()[i]
    }

    pub(super) fn timestep(&self, i: usize) -> f64 {
        self.trajectory.timesteps()[i]
    }

    /// The network's output for latents at the noise level before step `i`.
    pub(super) fn output(&mut self, x: &Tensor, i: usize) -> Result<Tensor> {
        let (sigma, timestep) = (self.sigma(i), self.timestep(i));
        let scaled = (x / sigma.hypot(1.0))?;
        (self.model)(&scaled, timestep)
    }

    /// The noise in `x`, by the network's `output`.
    pub(super) fn epsilon(&self, output: &Tensor, x: &Tensor, i: usize) -> Result<Tensor> {
        let sigma = self.sigma(i);
        let alpha = 1.0 / sigma.hypot(1.0);
        Ok(match self.noise_schedule.prediction() {
            Prediction::Epsilon => output.clone(),
            Prediction::VPrediction => ((output * alpha)? + x * (sigma * alpha * alpha))?,
        })
    }

    /// The clean latents in `x`, by the network's `output`.
    pub(super) fn clean(&self, output: &Tensor, x: &Tensor, i: usize) -> Result<Tensor> {
        let sigma = self.sigma(i);
        let alpha = 1.0 / sigma.hypot(1.0);
        Ok(match self.noise_schedule.prediction() {
            Prediction::Epsilon => (x - output * sigma)?,
            Prediction::VPrediction => ((x * (alpha * alpha))? - output * (sigma * alpha))?,
        })
    }

    /// The network's estimate of the clean latents in `x`.
    pub(super) fn denoise(&mut self, x: &Tensor, i: usize) -> Result<Tensor> {
        let output = self.output(x, i)?;
        self.clean(&output, x, i)
    }

    /// Fresh noise of variance 1.
    pub(super) fn fresh_noise(&mut self, like: &Tensor) -> Result<Tensor> {
        self.noise.normal(like.dims(), like.device())
    }

    /// Ends step `i` with latents `x`: reports them and returns what to go on with.
    pub(super) fn finish(&mut self, i: usize, x: Tensor, denoised: &Tensor) -> Result<Tensor> {
        let steps = self.steps();
        let progress = Progress {
            index: i + 1 - steps.start,
            total: steps.len(),
            denoised,
            latents: &x,
            sigma: self.sigma(i + 1),
        };
        Ok((self.on_step)(&progress)?.unwrap_or(x))
    }
}

/// The direction in which `x` changes with sigma (Karras et al. 2022, algorithm 1).
pub(super) fn to_d(x: &Tensor, sigma: f64, denoised: &Tensor) -> Result<Tensor> {
    Ok(((x - denoised)? / sigma)?)
}

/// Half the logarithm of the signal-to-noise ratio, the time of Lu et al. 2022; infinite at sigma 0.
pub(super) fn lambda(sigma: f64) -> f64 {
    -sigma.ln()
}
