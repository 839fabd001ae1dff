//! Solvers that walk from noise to latents, one file per family; the noise levels are laid out in `trajectory`.
//!
//! All of them work on `x = clean + sigma * noise` (Karras et al. 2022), whatever their paper's notation:
//! there a step is a few multiplications by sigmas, and the alphas of Ho et al. 2020 appear only where the
//! network is called.

mod dpm_solver;
mod euler;
mod heun;
mod lcm;
mod lms;
mod plms;
mod trajectory;
mod unipc;

use std::ops::Range;

use anyhow::Result;
use candle_core::Tensor;

use crate::noise::NoiseSource;
use crate::request::Sampler;
use crate::schedule::Prediction;

pub use trajectory::Trajectory;

/// The network: latents `[1, 4, h, w]` scaled to variance 1 and a timestep in, its guided output of the same
/// shape out.
pub type Model<'a> = dyn FnMut(&Tensor, f64) -> Result<Tensor> + 'a;

/// Sees every finished step. An error ends the run; a tensor takes the place of the step's latents.
pub type OnStep<'a> = dyn FnMut(&Progress<'_>) -> Result<Option<Tensor>> + 'a;

/// One finished step.
pub struct Progress<'a> {
    /// 1-based.
    pub index: usize,
    pub total: usize,
    /// The newest estimate of the clean latents, `[1, 4, h, w]`.
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
    pub prediction: Prediction,
    pub model: &'a mut Model<'a>,
    /// Continues after the draw of the initial noise.
    pub noise: &'a mut NoiseSource,
    pub on_step: &'a mut OnStep<'a>,
}

/// Walks from `x`, which [`Trajectory::start`] or [`Trajectory::start_from`] made, to latents for the VAE.
///
/// `eta` is DDIM's share of fresh noise; the others ignore it.
///
/// # Errors
/// Those of the model and of `on_step`.
pub fn sample(sampler: Sampler, eta: f64, mut run: Run<'_>, x: Tensor) -> Result<Tensor> {
    let run = &mut run;
    let x = match sampler {
        Sampler::Ddim => euler::ancestral(run, x, eta),
        Sampler::Ddpm | Sampler::EulerA => euler::ancestral(run, x, 1.0),
        Sampler::Pndm => plms::plms(run, x),
        Sampler::Euler => euler::euler(run, x),
        Sampler::Heun => heun::heun(run, x),
        Sampler::Lms => lms::lms(run, x),
        Sampler::Dpmpp2m => dpm_solver::dpmpp_2m(run, x),
        Sampler::Dpmpp2mSde => dpm_solver::dpmpp_2m_sde(run, x),
        Sampler::Dpmpp2s => dpm_solver::dpmpp_2s(run, x),
        Sampler::Unipc => unipc::unipc(run, x),
        Sampler::Lcm => lcm::lcm(run, x),
    }?;
    let end = run.sigma(run.trajectory.steps().end);
    Ok((x / end.hypot(1.0))?)
}

/// How often `steps` steps call the network.
pub fn num_model_calls(sampler: Sampler, steps: usize) -> usize {
    match sampler {
        Sampler::Heun if steps > 0 => 2 * steps - 1,
        Sampler::Pndm if steps > 1 => steps + 1,
        _ => steps,
    }
}

impl Run<'_> {
    fn steps(&self) -> Range<usize> {
        self.trajectory.steps()
    }

    /// The noise level before step `i`, or after step `i - 1`.
    fn sigma(&self, i: usize) -> f64 {
        self.trajectory.sigmas()[i]
    }

    fn timestep(&self, i: usize) -> f64 {
        self.trajectory.timesteps()[i]
    }

    /// The network's output for latents at the noise level before step `i`.
    fn output(&mut self, x: &Tensor, i: usize) -> Result<Tensor> {
        let (sigma, timestep) = (self.sigma(i), self.timestep(i));
        let scaled = (x / sigma.hypot(1.0))?;
        (self.model)(&scaled, timestep)
    }

    /// The noise in `x`, by the network's `output`.
    fn epsilon(&self, output: &Tensor, x: &Tensor, i: usize) -> Result<Tensor> {
        let sigma = self.sigma(i);
        let alpha = 1.0 / sigma.hypot(1.0);
        Ok(match self.prediction {
            Prediction::Epsilon => output.clone(),
            Prediction::VPrediction => ((output * alpha)? + x * (sigma * alpha * alpha))?,
        })
    }

    /// The clean latents in `x`, by the network's `output`.
    fn clean(&self, output: &Tensor, x: &Tensor, i: usize) -> Result<Tensor> {
        let sigma = self.sigma(i);
        let alpha = 1.0 / sigma.hypot(1.0);
        Ok(match self.prediction {
            Prediction::Epsilon => (x - output * sigma)?,
            Prediction::VPrediction => ((x * (alpha * alpha))? - output * (sigma * alpha))?,
        })
    }

    /// The network's estimate of the clean latents in `x`.
    fn denoise(&mut self, x: &Tensor, i: usize) -> Result<Tensor> {
        let output = self.output(x, i)?;
        self.clean(&output, x, i)
    }

    /// Fresh noise of variance 1.
    fn fresh_noise(&mut self, like: &Tensor) -> Result<Tensor> {
        self.noise.normal(like.dims(), like.device())
    }

    /// Ends step `i` with latents `x`: reports them and returns what to go on with.
    fn finish(&mut self, i: usize, x: Tensor, denoised: &Tensor) -> Result<Tensor> {
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
fn to_d(x: &Tensor, sigma: f64, denoised: &Tensor) -> Result<Tensor> {
    Ok(((x - denoised)? / sigma)?)
}

/// Half the logarithm of the signal-to-noise ratio, the time of Lu et al. 2022; infinite at sigma 0.
fn lambda(sigma: f64) -> f64 {
    -sigma.ln()
}
