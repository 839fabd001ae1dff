//! The timesteps and sigmas one run visits, for every sampler and schedule; steps live in the samplers' files.

use std::ops::Range;

use anyhow::{Result, ensure};
use candle_core::Tensor;

use crate::request::{Sampler, Schedule};
use crate::schedule::NoiseSchedule;

/// The noise levels of a run, from the noisiest to the last.
///
/// Latents on the way are `x = clean + sigma * noise`, in the VAE's units; the network sees `x / sqrt(1 +
/// sigma^2)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Trajectory {
    timesteps: Vec<f64>,
    /// One more than timesteps: where the last step ends.
    sigmas: Vec<f64>,
    noise_scale: f64,
    first: usize,
}

/// Which implementation a sampler's timesteps are taken from.
enum Convention {
    /// DDIM, DDPM, PNDM: whole timesteps.
    Ddim,
    /// k-diffusion: timesteps between whole ones.
    KDiffusion,
    /// The DPM-Solver authors: whole timesteps, of which the end of the last step is one.
    DpmSolver,
    /// Latent consistency models: a choice of the 50 timesteps of distillation.
    Lcm,
}

impl Convention {
    fn of(sampler: Sampler) -> Self {
        match sampler {
            Sampler::Ddim | Sampler::Ddpm | Sampler::Pndm => Self::Ddim,
            Sampler::Euler | Sampler::EulerA | Sampler::Heun | Sampler::Lms => Self::KDiffusion,
            Sampler::Dpmpp2m | Sampler::Dpmpp2mSde | Sampler::Dpmpp2s | Sampler::Unipc => Self::DpmSolver,
            Sampler::Lcm => Self::Lcm,
        }
    }
}

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
        let convention = Convention::of(sampler);
        let (timesteps, mut sigmas) = if schedule == Schedule::Karras {
            let sigmas = noise.karras(steps);
            let timesteps = sigmas.iter().map(|&sigma| noise.timestep(sigma));
            match convention {
                Convention::DpmSolver => (timesteps.map(f64::round_ties_even).collect(), sigmas),
                _ => (timesteps.collect::<Vec<_>>(), sigmas),
            }
        } else {
            let timesteps = spread(noise, &convention, schedule, steps);
            let sigmas = timesteps.iter().map(|&t| noise.sigma(t)).collect();
            (timesteps, sigmas)
        };

        let lowest = noise.sigma(0.0);
        let ends_at_timestep_0 = matches!(sampler, Sampler::Ddim | Sampler::Pndm)
            && !noise.ends_clean()
            && sigmas[steps - 1] > lowest;
        sigmas.push(if ends_at_timestep_0 { lowest } else { 0.0 });

        // Noise of variance 1 + sigma^2 is what training saw; k-diffusion leaves the clean part's 1 out.
        let noise_scale = match (convention, schedule) {
            (Convention::KDiffusion, Schedule::Linspace | Schedule::Trailing | Schedule::Karras) => sigmas[0],
            _ => sigmas[0].hypot(1.0),
        };
        Ok(Self { timesteps, sigmas, noise_scale, first: 0 })
    }

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

fn spread(noise: &NoiseSchedule, convention: &Convention, schedule: Schedule, steps: usize) -> Vec<f64> {
    let whole = |timesteps: Vec<f64>| timesteps.into_iter().map(f64::round_ties_even).collect();
    match (schedule, convention) {
        (Schedule::Leading, Convention::Lcm) => distilled(noise.train_steps(), steps),
        (Schedule::Trailing, _) => noise.trailing(steps),
        (Schedule::Leading, Convention::DpmSolver) if steps > 1 => without_last(noise.leading(steps + 1)),
        // As many points as timesteps and one more: rounded, two of them would be equal.
        (_, Convention::DpmSolver) if steps == noise.train_steps() => without_last(noise.linspace(steps + 1)),
        (_, Convention::DpmSolver) => whole(without_last(noise.linspace(steps + 1))),
        (Schedule::Leading, _) if steps > 1 => noise.leading(steps),
        (_, Convention::KDiffusion) => noise.linspace(steps),
        _ => whole(noise.linspace(steps)),
    }
}

fn without_last(mut timesteps: Vec<f64>) -> Vec<f64> {
    timesteps.pop();
    timesteps
}

/// `steps` of the timesteps a consistency model was distilled at (Luo et al. 2023), evenly chosen by index.
fn distilled(train_steps: usize, steps: usize) -> Vec<f64> {
    const DISTILLATION_STEPS: usize = 50;
    let known = if steps <= DISTILLATION_STEPS { DISTILLATION_STEPS.min(train_steps) } else { train_steps };
    let stride = train_steps / known;
    (0..steps).map(|i| ((known - i * known / steps) * stride - 1) as f64).collect()
}
