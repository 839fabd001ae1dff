//! The walk from noise, or from an encoded picture, to latents; the steps themselves live in `samplers`.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::Tensor;

use super::encoded_picture::{EncodedPicture, Start};
use super::evaluation::Evaluation;
use super::finite::finite;
use super::hires;
use super::projection::Projection;
use super::work::Pace;
use super::{Call, DrawError, Model, Observer, Step};
use crate::networks::unet::{Context, Unet};
use crate::noise::NoiseSource;
use crate::request::{Hires, Passes, Request};
use crate::samplers::{self, Progress, Trajectory};

impl Model {
    /// Text embeddings as `unet` reads them for `request`.
    pub(super) fn context(&self, unet: &Unet, embeddings: &Tensor, request: &Request) -> Result<Context> {
        let context = unet.context(embeddings)?;
        Ok(match self.unet_config.guidance_channels {
            Some(_) => context.guided_by(request.guidance_scale),
            None => context,
        })
    }
}

/// What the walks of one picture share.
pub(super) struct Run<'a> {
    pub model: &'a Model,
    pub request: &'a Request,
    pub unet: &'a Unet,
    pub context: &'a Context,
    /// For observers that asked for previews.
    pub projection: Option<&'a Projection>,
    /// What the UNet has computed so far.
    pub passes: &'a Cell<Passes>,
    /// How fast.
    pub pace: &'a Cell<Pace>,
}

impl Run<'_> {
    /// Walks from noise, or from `picture`, to latents `[1, channels, height / factor, width / factor]`.
    pub fn denoise(
        &self,
        picture: Option<&EncodedPicture>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor, DrawError> {
        let Self { model, request, .. } = self;
        let factor = model.factor();
        let channels = model.vae_config.latent_channels();
        let shape = [1, channels, request.height / factor, request.width / factor];
        let trajectory = Trajectory::new(&model.schedule, request.sampler, request.schedule, request.steps)?
            .with_strength(request.init.as_ref().map_or(1.0, |init| init.strength))?;
        let mut noise = NoiseSource::new(request.rng, request.seed);
        let start = Start::new(picture, &trajectory, &shape, &model.backend.device, &mut noise)?;
        self.walk(&trajectory, &mut noise, &start, observer)
    }

    /// Walks from enlarged latents to refined ones. Its noise is the seed's first of the larger shape, as in
    /// AUTOMATIC1111.
    pub fn refine(
        &self,
        hires: &Hires,
        latents: &Tensor,
        observer: &mut dyn Observer,
    ) -> Result<Tensor, DrawError> {
        let Self { model, request, .. } = self;
        let factor = model.factor();
        let (width, height) = request.final_size();
        let clean = hires::enlarge(latents, height / factor, width / factor)?;
        let trajectory = hires::trajectory(&model.schedule, request, hires)?;
        let mut noise = NoiseSource::new(request.rng, request.seed);
        let drawn = noise.normal(clean.dims(), &model.backend.device)?;
        let start = Start::at(trajectory.start_from(&clean, &drawn)?);
        self.walk(&trajectory, &mut noise, &start, observer)
    }

    /// Walks along a trajectory from `start`.
    fn walk(
        &self,
        trajectory: &Trajectory,
        noise: &mut NoiseSource,
        start: &Start,
        observer: &mut dyn Observer,
    ) -> Result<Tensor, DrawError> {
        let Self { model, request, unet, context, projection, passes, pace } = *self;
        let steps = trajectory.steps().len();
        // Both closures tell the observer and the evaluation something, one at a time.
        let evaluation = RefCell::new(Evaluation::new(unet, context, request, steps, passes.get()));
        let observer = RefCell::new(observer);
        let mut predict = |latents: &Tensor, timestep: f64| {
            let mut evaluation = evaluation.borrow_mut();
            let input = start.input(latents)?;
            let output = evaluation.answer(&input, timestep)?;
            let call = Call { input, timestep, output };
            observer.borrow_mut().called(&call);
            evaluation.guided(call.output)
        };
        let mut interrupted = false;
        let mut since = Instant::now();
        let mut on_step = |progress: &Progress<'_>| {
            let Progress { index, total, denoised, .. } = *progress;
            // A GPU has only queued the step: progress and interruption are about steps that are done.
            model.backend.device.synchronize()?;
            let mut so_far = pace.get();
            so_far.add(evaluation.borrow_mut().end_step(), since.elapsed());
            pace.set(so_far);
            since = Instant::now();
            match observer.borrow_mut().step(&Step { index, total, denoised, projection }) {
                ControlFlow::Continue(()) => start.hold(progress),
                ControlFlow::Break(()) => {
                    interrupted = true;
                    bail!("interrupted after step {index} of {total}")
                }
            }
        };
        let run = samplers::Run {
            trajectory,
            noise_schedule: &model.schedule,
            model: &mut predict,
            noise,
            on_step: &mut on_step,
        };
        let latents = samplers::sample(request.sampler, request.eta, run, start.x.clone());
        passes.set(evaluation.into_inner().passes());
        if interrupted {
            return Err(DrawError::Interrupted);
        }
        Ok(finite(latents?, "the final latents")?)
    }
}
