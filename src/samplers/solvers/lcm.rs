//! Multistep sampling of latent consistency models.

use anyhow::Result;
use candle_core::Tensor;

use crate::samplers::run::Run;

/// The clean latents' assumed standard deviation, and the factor on timesteps that distillation used.
const SIGMA_DATA: f64 = 0.5;
const TIMESTEP_SCALING: f64 = 10.0;

/// Luo et al. 2023: each step goes all the way to clean latents, then back up to the next noise level.
pub(super) fn lcm(run: &mut Run, mut x: Tensor) -> Result<Tensor> {
    for i in run.steps() {
        let (sigma, sigma_next) = (run.sigma(i), run.sigma(i + 1));
        let denoised = run.denoise(&x, i)?;
        // The boundary condition of Song et al. 2023: at timestep 0 the function is the identity.
        let t = run.timestep(i) * TIMESTEP_SCALING;
        let c_skip = SIGMA_DATA.powi(2) / (t.powi(2) + SIGMA_DATA.powi(2));
        let c_out = t / t.hypot(SIGMA_DATA);
        let denoised = ((denoised * c_out)? + x * (c_skip / sigma.hypot(1.0)))?;
        x = denoised.clone();
        if sigma_next > 0.0 {
            x = (&x + run.fresh_noise(&x)? * sigma_next)?;
        }
        x = run.finish(i, x, &denoised)?;
    }
    Ok(x)
}
