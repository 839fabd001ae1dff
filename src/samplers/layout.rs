//! The trajectory of every pair of sampler and schedule; how a step is taken lives in the samplers' own files.

use anyhow::{Result, ensure};

use super::solvers::{End, Sampler};
use super::spacing::{Convention, Schedule, Spacing};
use super::trajectory::Trajectory;
use crate::schedule::NoiseSchedule;

impl Trajectory {
    /// Lays out `steps` steps as diffusers' scheduler for `sampler` does.
    ///
    /// It differs for a single step, which diffusers' leading and linspace schedules may take at a timestep
    /// that expects next to no noise: here it starts at the last timestep, whatever the schedule.
    ///
    /// # Errors
    /// When `steps` is 0 or more than the model was trained with.
    pub fn new(noise: &NoiseSchedule, sampler: Sampler, schedule: Schedule, steps: usize) -> Result<Self> {
        let most = noise.train_steps();
        ensure!((1..=most).contains(&steps), "{steps} steps are not possible with this model (1 to {most})");
        let (sampler, schedule) = (sampler.facts(), schedule.facts());
        let convention = sampler.convention;
        let (timesteps, mut sigmas): (Vec<f64>, Vec<f64>) = match schedule.spacing {
            Spacing::Sigmas(spread) => {
                let sigmas = spread(noise, steps);
                let timesteps = sigmas.iter().map(|&sigma| noise.timestep(sigma));
                match convention {
                    Convention::DpmSolver => (timesteps.map(f64::round_ties_even).collect(), sigmas),
                    _ => (timesteps.collect(), sigmas),
                }
            }
            Spacing::Timesteps(spread) => {
                let timesteps = spread(noise, convention, steps);
                let sigmas = timesteps.iter().map(|&t| noise.sigma(t)).collect();
                (timesteps, sigmas)
            }
        };

        let lowest = noise.sigma(0.0);
        let ends_at_timestep_0 =
            sampler.end == End::Timestep0 && !noise.ends_clean() && sigmas[steps - 1] > lowest;
        sigmas.push(if ends_at_timestep_0 { lowest } else { 0.0 });

        // Noise of variance 1 + sigma^2 is what training saw; k-diffusion leaves the clean part's 1 out.
        let noise_scale = if convention == Convention::KDiffusion && schedule.starts_at_sigma {
            sigmas[0]
        } else {
            sigmas[0].hypot(1.0)
        };
        Ok(Self { timesteps, sigmas, noise_scale, first: 0 })
    }
}
