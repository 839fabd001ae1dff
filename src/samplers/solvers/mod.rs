//! The list of samplers: all that tells one from another; the solvers live beside it.

mod dpm_solver;
mod euler;
mod heun;
mod lcm;
mod lms;
mod plms;
mod tcd;
mod unipc;

use anyhow::Result;
use candle_core::Tensor;

use super::run::Run;
use super::spacing::{Convention, Schedule};
use crate::named_enum::named_enum;

/// What there is to know of a sampler.
pub(in crate::samplers) struct SamplerFacts {
    /// AUTOMATIC1111's name; it has no DDPM and no deterministic 2S, so these follow its style.
    pub automatic1111: &'static str,
    /// What AUTOMATIC1111 runs it with unless told otherwise; three run over even timesteps whatever it is told.
    pub automatic1111_schedule: Schedule,
    /// Used when only the sampler is named: what its authors or its users pair it with.
    pub schedule: Schedule,
    /// Whose timesteps it takes.
    pub convention: Convention,
    pub end: End,
    /// How often so many steps call the network.
    pub calls: fn(usize) -> usize,
    pub walk: Walk,
}

/// Where the last step ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::samplers) enum End {
    /// Free of noise.
    Clean,
    /// At the noise of timestep 0, unless the model's configuration says otherwise.
    Timestep0,
}

/// The solver: from latents at the first noise level to those at the last.
#[derive(Clone, Copy)]
pub(in crate::samplers) enum Walk {
    Plain(fn(&mut Run<'_>, Tensor) -> Result<Tensor>),
    /// One that takes an eta, its share of fresh noise, and the one it has by default.
    WithEta(fn(&mut Run<'_>, Tensor, f64) -> Result<Tensor>, f64),
}

/// Declares the enum and its facts, so that a sampler without one of them does not compile.
macro_rules! samplers {
    ($($sampler:ident = $name:literal { $($fact:ident: $value:expr,)+ })+) => {
        named_enum!(
            /// The solver that walks from noise to latents.
            Sampler, "sampler", { $($sampler = $name,)+ }
        );

        impl Sampler {
            pub(in crate::samplers) fn facts(self) -> SamplerFacts {
                match self { $(Self::$sampler => SamplerFacts { $($fact: $value,)+ },)+ }
            }
        }
    };
}

samplers! {
    Ddim = "ddim" {
        automatic1111: "DDIM",
        automatic1111_schedule: Schedule::Leading,
        schedule: Schedule::Leading,
        convention: Convention::Ddim,
        end: End::Timestep0,
        calls: |steps| steps,
        walk: Walk::WithEta(euler::ancestral, 0.0),
    }
    Ddpm = "ddpm" {
        automatic1111: "DDPM",
        automatic1111_schedule: Schedule::Linspace,
        schedule: Schedule::Leading,
        convention: Convention::Ddim,
        end: End::Clean,
        calls: |steps| steps,
        walk: Walk::Plain(|run, x| euler::ancestral(run, x, 1.0)),
    }
    Pndm = "pndm" {
        automatic1111: "PLMS",
        automatic1111_schedule: Schedule::Leading,
        schedule: Schedule::Leading,
        convention: Convention::Ddim,
        end: End::Timestep0,
        calls: |steps| if steps > 1 { steps + 1 } else { steps },
        walk: Walk::Plain(plms::plms),
    }
    Euler = "euler" {
        automatic1111: "Euler",
        automatic1111_schedule: Schedule::Linspace,
        schedule: Schedule::Linspace,
        convention: Convention::KDiffusion,
        end: End::Clean,
        calls: |steps| steps,
        walk: Walk::Plain(euler::euler),
    }
    EulerA = "euler_a" {
        automatic1111: "Euler a",
        automatic1111_schedule: Schedule::Linspace,
        schedule: Schedule::Linspace,
        convention: Convention::KDiffusion,
        end: End::Clean,
        calls: |steps| steps,
        walk: Walk::Plain(|run, x| euler::ancestral(run, x, 1.0)),
    }
    Heun = "heun" {
        automatic1111: "Heun",
        automatic1111_schedule: Schedule::Linspace,
        schedule: Schedule::Linspace,
        convention: Convention::KDiffusion,
        end: End::Clean,
        calls: |steps| (2 * steps).saturating_sub(1),
        walk: Walk::Plain(heun::heun),
    }
    Lms = "lms" {
        automatic1111: "LMS",
        automatic1111_schedule: Schedule::Linspace,
        schedule: Schedule::Linspace,
        convention: Convention::KDiffusion,
        end: End::Clean,
        calls: |steps| steps,
        walk: Walk::Plain(lms::lms),
    }
    Dpmpp2m = "dpmpp_2m" {
        automatic1111: "DPM++ 2M",
        automatic1111_schedule: Schedule::Linspace,
        schedule: Schedule::Karras,
        convention: Convention::DpmSolver,
        end: End::Clean,
        calls: |steps| steps,
        walk: Walk::Plain(dpm_solver::dpmpp_2m),
    }
    Dpmpp2mSde = "dpmpp_2m_sde" {
        automatic1111: "DPM++ 2M SDE",
        automatic1111_schedule: Schedule::Linspace,
        schedule: Schedule::Karras,
        convention: Convention::DpmSolver,
        end: End::Clean,
        calls: |steps| steps,
        walk: Walk::Plain(dpm_solver::dpmpp_2m_sde),
    }
    Dpmpp2s = "dpmpp_2s" {
        automatic1111: "DPM++ 2S",
        automatic1111_schedule: Schedule::Linspace,
        schedule: Schedule::Karras,
        convention: Convention::DpmSolver,
        end: End::Clean,
        calls: |steps| steps,
        walk: Walk::Plain(dpm_solver::dpmpp_2s),
    }
    Unipc = "unipc" {
        automatic1111: "UniPC",
        automatic1111_schedule: Schedule::Leading,
        schedule: Schedule::Karras,
        convention: Convention::DpmSolver,
        end: End::Clean,
        calls: |steps| steps,
        walk: Walk::Plain(unipc::unipc),
    }
    Lcm = "lcm" {
        automatic1111: "LCM",
        automatic1111_schedule: Schedule::Linspace,
        schedule: Schedule::Leading,
        convention: Convention::Lcm,
        end: End::Clean,
        calls: |steps| steps,
        walk: Walk::Plain(lcm::lcm),
    }
    Tcd = "tcd" {
        automatic1111: "TCD",
        automatic1111_schedule: Schedule::Linspace,
        schedule: Schedule::Leading,
        convention: Convention::Lcm,
        end: End::Timestep0,
        calls: |steps| steps,
        walk: Walk::WithEta(tcd::tcd, 0.3),
    }
}

impl Sampler {
    /// AUTOMATIC1111's name.
    pub fn automatic1111(self) -> &'static str {
        self.facts().automatic1111
    }

    /// What AUTOMATIC1111 ran it with where it names no schedule.
    pub fn automatic1111_schedule(self) -> Schedule {
        self.facts().automatic1111_schedule
    }

    /// The schedule used when only the sampler is named: what its authors or its users pair it with.
    pub fn default_schedule(self) -> Schedule {
        self.facts().schedule
    }

    /// Whether an eta means something to it.
    pub fn takes_eta(self) -> bool {
        matches!(self.facts().walk, Walk::WithEta(..))
    }

    /// Its share of fresh noise unless told otherwise.
    pub fn default_eta(self) -> f64 {
        match self.facts().walk {
            Walk::WithEta(_, eta) => eta,
            Walk::Plain(_) => 0.0,
        }
    }

    /// How often `steps` steps call the network.
    pub fn model_calls(self, steps: usize) -> usize {
        (self.facts().calls)(steps)
    }
}
