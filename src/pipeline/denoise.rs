//! The walk from noise, or from what is given, to latents; the steps themselves stand in `samplers`.

use std::ops::ControlFlow;

use anyhow::Result;
use candle_core::Tensor;

use super::given::{Given, Start};
use super::hires;
use super::{Interrupted, Observer, Pipeline, Step};
use crate::networks::unet::{Context, Unet};
use crate::noise::NoiseSource;
use crate::request::{Hires, Request};
use crate::samplers::{self, Progress, Run, Trajectory};

impl Pipeline<'_> {
    /// Walks from noise, or from what is given, to latents `[1, channels, height / factor, width / factor]`.
    pub(super) fn denoise(
        &self,
        request: &Request,
        given: Option<&Given>,
        unet: &Unet,
        context: &Context,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let factor = self.vae_config.factor();
        let shape = [1, self.vae_config.latent_channels(), request.height / factor, request.width / factor];
        let trajectory = Trajectory::new(&self.schedule, request.sampler, request.schedule, request.steps)?
            .with_strength(request.strength.unwrap_or(1.0))?;
        let mut noise = NoiseSource::new(request.rng, request.seed);
        let start = Start::new(given, &trajectory, &shape, &self.backend.device, &mut noise)?;
        self.walk(request, unet, context, observer, &trajectory, &mut noise, &start)
    }

    /// Walks from enlarged latents to refined ones. Its noise is the seed's first of the larger shape, as in
    /// AUTOMATIC1111.
    pub(super) fn refine(
        &self,
        request: &Request,
        hires: &Hires,
        latents: &Tensor,
        unet: &Unet,
        context: &Context,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let factor = self.vae_config.factor();
        let clean = hires::enlarge(latents, hires.height / factor, hires.width / factor)?;
        let trajectory = hires::trajectory(&self.schedule, request, hires)?;
        let mut noise = NoiseSource::new(request.rng, request.seed);
        let drawn = noise.normal(clean.dims(), &self.backend.device)?;
        let start = Start::at(trajectory.start_from(&clean, &drawn)?);
        self.walk(request, unet, context, observer, &trajectory, &mut noise, &start)
    }

    /// Walks along a trajectory from `start`.
    #[expect(clippy::too_many_arguments, reason = "all that a run is made of")]
    fn walk(
        &self,
        request: &Request,
        unet: &Unet,
        context: &Context,
        observer: &mut dyn Observer,
        trajectory: &Trajectory,
        noise: &mut NoiseSource,
        start: &Start,
    ) -> Result<Tensor> {
        let projection = self.projection.borrow().clone().filter(|_| observer.previews());
        let mut model = |latents: &Tensor, timestep: f64| {
            let (input, scale) = (start.input(latents)?, request.guidance_scale);
            if self.guided(request) {
                guided_output(unet, scale, &input, timestep, context)
            } else {
                unet.forward(&input, timestep, context)
            }
        };
        let mut on_step = |progress: &Progress<'_>| {
            let Progress { index, total, denoised, .. } = *progress;
            let step = Step { index, total, denoised, projection: projection.as_deref() };
            match observer.step(&step) {
                ControlFlow::Continue(()) => start.hold(progress),
                ControlFlow::Break(()) => Err(Interrupted.into()),
            }
        };
        let run = Run {
            trajectory,
            prediction: self.schedule.prediction(),
            model: &mut model,
            noise,
            on_step: &mut on_step,
        };
        samplers::sample(request.sampler, request.eta, run, start.x.clone())
    }
}

/// Classifier-free guidance (Ho & Salimans 2022, in diffusers' scaling): both passes as one batch.
fn guided_output(
    unet: &Unet,
    scale: f64,
    latents: &Tensor,
    timestep: f64,
    context: &Context,
) -> Result<Tensor> {
    let both = unet.forward(&Tensor::cat(&[latents, latents], 0)?, timestep, context)?;
    let (opposite, prompted) = (both.narrow(0, 0, 1)?, both.narrow(0, 1, 1)?);
    Ok((&opposite + ((prompted - &opposite)? * scale)?)?)
}
