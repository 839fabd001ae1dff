//! Solvers that walk from noise to latents, one file per family; `list` names them all.
//!
//! All of them work on `x = clean + sigma * noise` (Karras et al. 2022), whatever their paper's notation:
//! there a step is a few multiplications by sigmas, and the alphas of Ho et al. 2020 appear only where the
//! network is called.
//!
//! Another sampler is a function in a file of its own and a row in `list`; another schedule is a row in `spacing`.

mod dpm_solver;
mod euler;
mod heun;
mod layout;
mod lcm;
mod list;
mod lms;
mod plms;
mod run;
mod spacing;
mod trajectory;
mod unipc;

use anyhow::Result;
use candle_core::Tensor;

pub use list::Sampler;
use list::Walk;
pub use run::{Model, OnStep, Progress, Run};
pub use spacing::Schedule;
pub use trajectory::Trajectory;

/// Walks from `x`, which [`Trajectory::start`] or [`Trajectory::start_from`] made, to latents for the VAE.
///
/// `eta` is DDIM's share of fresh noise; the others ignore it.
///
/// # Errors
/// Those of the model and of `on_step`.
pub fn sample(sampler: Sampler, eta: f64, mut run: Run<'_>, x: Tensor) -> Result<Tensor> {
    let x = match sampler.facts().walk {
        Walk::Plain(walk) => walk(&mut run, x),
        Walk::WithEta(walk) => walk(&mut run, x, eta),
    }?;
    let end = run.sigma(run.trajectory.steps().end);
    Ok((x / end.hypot(1.0))?)
}
