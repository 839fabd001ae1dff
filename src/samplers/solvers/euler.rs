//! Samplers of one first order step each: Euler, and with fresh noise Euler ancestral, DDIM and DDPM.

use anyhow::Result;
use candle_core::Tensor;

use crate::samplers::run::{Run, to_d};

/// Euler's method (Karras et al. 2022, algorithm 1 without correction).
///
/// On whole timesteps it is DDIM with eta 0 (Song et al. 2021, eq. 13).
pub(super) fn euler(run: &mut Run, mut x: Tensor) -> Result<Tensor> {
    for i in run.steps() {
        let (sigma, sigma_next) = (run.sigma(i), run.sigma(i + 1));
        let denoised = run.denoise(&x, i)?;
        let d = to_d(&x, sigma, &denoised)?;
        let dt = sigma_next - sigma;
        x = run.finish(i, (x + d * dt)?, &denoised)?;
    }
    Ok(x)
}

/// Ancestral sampling: Euler's method to below the next noise level, then fresh noise up to it.
///
/// It is DDIM with `eta` (Song et al. 2021, eq. 12 and 16); with eta 1 it is k-diffusion's
/// `sample_euler_ancestral` and, on whole timesteps, DDPM with the smaller of its variances (Ho et al. 2020,
/// eq. 7).
pub(super) fn ancestral(run: &mut Run, mut x: Tensor, eta: f64) -> Result<Tensor> {
    for i in run.steps() {
        let (sigma, sigma_next) = (run.sigma(i), run.sigma(i + 1));
        let denoised = run.denoise(&x, i)?;
        let sigma_up = eta * sigma_next * (1.0 - (sigma_next / sigma).powi(2)).sqrt();
        let sigma_down = (sigma_next.powi(2) - sigma_up.powi(2)).sqrt();
        let d = to_d(&x, sigma, &denoised)?;
        let dt = sigma_down - sigma;
        x = (x + d * dt)?;
        if sigma_up > 0.0 {
            x = (&x + run.fresh_noise(&x)? * sigma_up)?;
        }
        x = run.finish(i, x, &denoised)?;
    }
    Ok(x)
}
