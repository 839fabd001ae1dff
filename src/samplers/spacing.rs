//! The list of schedules: how a run's steps are spread over the noise a model was trained with.

use crate::named_enum::named_enum;
use crate::schedule::NoiseSchedule;

/// Which implementation a sampler's timesteps are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Convention {
    /// DDIM, DDPM, PNDM: whole timesteps.
    Ddim,
    /// k-diffusion: timesteps between whole ones.
    KDiffusion,
    /// The DPM-Solver authors: whole timesteps, of which the end of the last step is one.
    DpmSolver,
    /// Latent consistency models: a choice of the 50 timesteps of distillation.
    Lcm,
}

/// What there is to know of a schedule.
pub(super) struct ScheduleFacts {
    /// AUTOMATIC1111's name.
    pub automatic1111: &'static str,
    pub spacing: Spacing,
    /// Whether k-diffusion's first noise leaves out the 1 of the clean part's variance.
    pub starts_at_sigma: bool,
}

/// Spreads so many steps.
#[derive(Clone, Copy)]
pub(super) enum Spacing {
    /// By timesteps, whose sigmas are looked up.
    Timesteps(fn(&NoiseSchedule, Convention, usize) -> Vec<f64>),
    /// By sigmas, whose timesteps are looked up.
    Sigmas(fn(&NoiseSchedule, usize) -> Vec<f64>),
}

/// Declares the enum and its facts, so that a schedule without one of them does not compile.
macro_rules! schedules {
    ($($schedule:ident = $name:literal { $($fact:ident: $value:expr,)+ })+) => {
        named_enum!(
            /// How the sampler's timesteps are spread over the training schedule.
            Schedule, "schedule", { $($schedule = $name,)+ }
        );

        impl Schedule {
            pub(super) fn facts(self) -> ScheduleFacts {
                match self { $(Self::$schedule => ScheduleFacts { $($fact: $value,)+ },)+ }
            }
        }
    };
}

schedules! {
    Leading = "leading" {
        automatic1111: "DDIM",
        spacing: Spacing::Timesteps(leading),
        starts_at_sigma: false,
    }
    Linspace = "linspace" {
        automatic1111: "Uniform",
        spacing: Spacing::Timesteps(linspace),
        starts_at_sigma: true,
    }
    Trailing = "trailing" {
        automatic1111: "SGM Uniform",
        spacing: Spacing::Timesteps(|noise, _, steps| noise.trailing(steps)),
        starts_at_sigma: true,
    }
    Karras = "karras" {
        automatic1111: "Karras",
        spacing: Spacing::Sigmas(NoiseSchedule::karras),
        starts_at_sigma: true,
    }
}

impl Schedule {
    /// AUTOMATIC1111's name.
    pub fn automatic1111(self) -> &'static str {
        self.facts().automatic1111
    }
}

fn leading(noise: &NoiseSchedule, convention: Convention, steps: usize) -> Vec<f64> {
    match convention {
        Convention::Lcm => distilled(noise.train_steps(), steps),
        _ if steps == 1 => linspace(noise, convention, steps),
        Convention::DpmSolver => without_last(noise.leading(steps + 1)),
        Convention::Ddim | Convention::KDiffusion => noise.leading(steps),
    }
}

fn linspace(noise: &NoiseSchedule, convention: Convention, steps: usize) -> Vec<f64> {
    let whole = |timesteps: Vec<f64>| timesteps.into_iter().map(f64::round_ties_even).collect();
    match convention {
        Convention::KDiffusion => noise.linspace(steps),
        // As many points as timesteps and one more: rounded, two of them would be equal.
        Convention::DpmSolver if steps == noise.train_steps() => without_last(noise.linspace(steps + 1)),
        Convention::DpmSolver => whole(without_last(noise.linspace(steps + 1))),
        Convention::Ddim | Convention::Lcm => whole(noise.linspace(steps)),
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
