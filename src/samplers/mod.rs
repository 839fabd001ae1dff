//! Solvers that walk from noise to latents, one file per family; `solvers` lists them all.
//!
//! All of them work on `x = clean + sigma * noise` (Karras et al. 2022), whatever their paper's notation:
//! there a step is a few multiplications by sigmas, and the alphas of Ho et al. 2020 appear only where the
//! network is called.
//!
//! Another sampler is a file in `solvers` and a row in the list there; another schedule is a row in `spacing`.

mod layout;
mod run;
mod solvers;
mod spacing;
mod trajectory;

use anyhow::Result;
use candle_core::Tensor;

pub use run::{Model, OnStep, Progress, Run};
pub use solvers::Sampler;
use solvers::Walk;
pub use spacing::Schedule;
pub use trajectory::Trajectory;

/// Walks from `x`, which [`Trajectory::start`] or [`Trajectory::start_from`] made, to latents for the VAE.
///
/// `eta` is the share of fresh noise of those that [take one](Sampler::takes_eta); the others ignore it.
///
/// # Errors
/// Those of the model and of `on_step`.
pub fn sample(sampler: Sampler, eta: f64, mut run: Run<'_>, x: Tensor) -> Result<Tensor> {
    let x = match sampler.facts().walk {
        Walk::Plain(walk) => walk(&mut run, x),
        Walk::WithEta(walk, _) => walk(&mut run, x, eta),
    }?;
    let end = run.sigma(run.trajectory.steps().end);
    Ok((x / end.hypot(1.0))?)
}
