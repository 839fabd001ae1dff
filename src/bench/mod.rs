//! Measures a model on this machine: seconds by part and by operation, beside a yardstick; printing is the CLI's.

mod report;
mod watch;
mod work;
mod yardstick;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use candle_core::Device;

pub use report::{Operation, Part, Report};

use crate::checkpoint::Checkpoint;
use crate::kernels::Isa;
use crate::layers::meter::Macs;
use crate::memory;
use crate::pipeline::{DrawError, Model, Numerics, Pipeline, Residency};
use crate::request::{Defaults, Precision, Request, Sampler, Schedule};
use watch::{Sample, Watch, median};
use work::Work;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    pub precision: Precision,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// UNet steps of each picture, with guidance: batches of two.
    pub steps: usize,
    /// Pictures.
    pub repeats: usize,
    /// Whether weights stay in their file.
    pub streamed: bool,
    /// What opening the checkpoint took, which is part of loading it.
    pub opening: Duration,
}

impl Options {
    /// # Errors
    /// Names the first option out of range and what would be accepted.
    pub fn validate(&self) -> Result<()> {
        ensure!(self.repeats > 0, "at least one picture has to be drawn");
        self.request(0).validate()
    }

    /// The request of a picture. Each has a prompt of its own, because a pipeline remembers the last one's encoding.
    pub fn request(&self, picture: usize) -> Request {
        Request {
            negative_prompt: "blurry".to_owned(),
            ..Request::new(
                format!("a red apple on a yellow background, {picture}"),
                picture as u64,
                &Defaults {
                    width: self.width,
                    height: self.height,
                    steps: self.steps,
                    guidance_scale: GUIDANCE,
                    sampler: Sampler::Euler,
                    schedule: Schedule::Linspace,
                },
            )
        }
    }
}

/// Loads `checkpoint` on the CPU, draws `options.repeats` pictures with it and reports medians. `progress` is
/// told what begins.
///
/// # Errors
/// When the options are out of range, or loading or drawing fails.
pub fn run(checkpoint: Checkpoint, options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    options.validate()?;
    progress("f32 product");
    let isa = Isa::chosen()?;
    let mut rounds = vec![yardstick::run(isa)?];

    progress("loading");
    let mut inventing = checkpoint.tensors().time_inventing();
    let start = Instant::now();
    let model = Model::open(checkpoint, &Numerics::new(Device::Cpu, options.precision));
    let model = model.map_err(DrawError::UnusableModel)?;
    let checkpoint = model.checkpoint();
    let residency = match options.repeats {
        _ if options.streamed => Residency::Streamed,
        1 => Residency::OneByOne,
        _ => Residency::Kept,
    };
    let mut pipeline = Pipeline::new(&model, residency);
    let mut loading = start.elapsed().as_secs_f64();
    let mut watch = Watch::start();
    let mut peak = None;
    for picture in 0..options.repeats {
        progress(&format!("picture {} of {}", picture + 1, options.repeats));
        watch.picture(|observer| {
            pipeline.generate(&options.request(picture), observer)?;
            Ok(())
        })?;
        if picture == 0 {
            // Later pictures load the text encoder again, for their prompt, and nothing else.
            loading += watch.load.iter().map(|sample| sample.seconds).sum::<f64>();
            inventing = checkpoint.tensors().time_inventing().saturating_sub(inventing);
        }
        peak = memory::peak_resident();
        rounds.push(yardstick::run(isa)?);
    }

    let work = Work::of(checkpoint, options)?;
    let rate = |runs: &[f64]| yardstick::GMAC / median(runs, |seconds| *seconds);
    let (candle, kernels): (Vec<_>, Vec<_>) =
        rounds.into_iter().map(|runs| (runs.candle, runs.kernels)).unzip();
    let f32_gmacs = rate(&candle.concat());
    let kernel_f32_gmacs = rate(&kernels.concat());
    let part = |samples: &[Sample], macs: &Macs| Part::new(samples, macs, f32_gmacs, kernel_f32_gmacs);
    Ok(Report {
        model: checkpoint.name().to_owned(),
        precision: options.precision,
        width: options.width,
        height: options.height,
        threads: rayon::current_num_threads(),
        kernels: vec![model.kernel()],
        f32_gmacs,
        f32_gmacs_rounds: candle.iter().map(|round| rate(round)).collect(),
        kernel_f32_gmacs,
        inventing_seconds: inventing.as_secs_f64(),
        load_seconds: options.opening.as_secs_f64() + loading - inventing.as_secs_f64(),
        text_encoder: part(&watch.encode, &work.text_encoder),
        unet_step: part(&watch.steps, &work.unet_step),
        vae_decode: part(&watch.decode, &work.vae_decode),
        peak_rss_bytes: peak,
    })
}

/// Above 1, so that a step has two passes where the model is guided by them.
const GUIDANCE: f64 = 7.0;
