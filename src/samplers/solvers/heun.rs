//! Heun's second order method, with two network calls a step.

use anyhow::Result;
use candle_core::Tensor;

use crate::samplers::run::{Run, to_d};

/// Karras et al. 2022, algorithm 1: the mean of the slopes at both ends of the step; Euler's method down to
/// sigma 0.
pub(super) fn heun(run: &mut Run, mut x: Tensor) -> Result<Tensor> {
    for i in run.steps() {
        let (sigma, sigma_next) = (run.sigma(i), run.sigma(i + 1));
        let mut denoised = run.denoise(&x, i)?;
        let mut d = to_d(&x, sigma, &denoised)?;
        let dt = sigma_next - sigma;
        if sigma_next > 0.0 {
            let x_2 = (&x + (&d * dt)?)?;
            denoised = run.denoise(&x_2, i + 1)?;
            let d_2 = to_d(&x_2, sigma_next, &denoised)?;
            d = ((d + d_2)? / 2.0)?;
        }
        x = run.finish(i, (x + d * dt)?, &denoised)?;
    }
    Ok(x)
}
