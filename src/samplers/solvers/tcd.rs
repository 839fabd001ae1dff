//! Strategic stochastic sampling of trajectory consistency models.

use anyhow::Result;
use candle_core::Tensor;

use crate::samplers::run::Run;

/// Zheng et al. 2024, algorithm 4: each step goes along the trajectory to a timestep below the next one, by the share
/// `eta` (the paper's gamma) of it, then back up with fresh noise. With eta 1 that is multistep consistency sampling.
pub(super) fn tcd(run: &mut Run, mut x: Tensor, eta: f64) -> Result<Tensor> {
    let steps = run.steps();
    for i in steps.clone() {
        let sigma_next = run.sigma(i + 1);
        let is_last = i + 1 == steps.end;
        let next = if is_last { 0.0 } else { run.timestep(i + 1) };
        // Where the run ends clean, so does the trajectory.
        let sigma_s = run.noise_schedule.sigma(((1.0 - eta) * next).floor()).min(sigma_next);
        let output = run.output(&x, i)?;
        let denoised = run.clean(&output, &x, i)?;
        let epsilon = run.epsilon(&output, &x, i)?;
        x = (&denoised + epsilon * sigma_s)?;
        if eta > 0.0 && !is_last {
            let sigma_up = (sigma_next.powi(2) - sigma_s.powi(2)).sqrt();
            x = (&x + run.fresh_noise(&x)? * sigma_up)?;
        }
        x = run.finish(i, x, &denoised)?;
    }
    Ok(x)
}
