//! Loading a model and running one request through it: prompt -> context, noise -> latents -> picture; no files are written here.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Result, bail};
use candle_core::Tensor;
use image::RgbImage;

use crate::checkpoint::Checkpoint;
use crate::request::{Precision, Request};

/// Where and in which numbers a model runs.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub device: candle_core::Device,
    pub precision: Precision,
}

/// What a pipeline is doing, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Encode,
    Denoise,
    Decode,
}

/// One finished denoising step.
pub struct Step<'a> {
    /// 1-based.
    pub index: usize,
    pub total: usize,
    /// The current estimate of the final latents, `[1, 4, height / 8, width / 8]`.
    pub denoised: &'a Tensor,
}

/// Watches a picture being made and may stop it.
pub trait Observer {
    fn phase(&mut self, _phase: Phase) {}

    /// `Break` ends the run within this step; `generate` then returns [`Interrupted`].
    fn step(&mut self, _step: &Step<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// The error of a run that its observer stopped.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Seconds by phase.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    pub encode: Duration,
    pub denoise: Duration,
    pub decode: Duration,
}

/// A finished picture.
pub struct Picture {
    pub rgb: RgbImage,
    pub timings: Timings,
}

/// A loaded model.
pub struct Pipeline {}

impl Pipeline {
    /// Loads every network of `checkpoint`.
    ///
    /// # Errors
    /// Names the missing or misshapen tensor.
    pub fn load(_checkpoint: &Checkpoint, _options: &LoadOptions) -> Result<Self> {
        bail!("skeleton")
    }

    /// Names the kernels that compute, e.g. `x86_64-avx512vnni` or `cuda`.
    pub fn kernel(&self) -> String {
        String::new()
    }

    /// Makes the picture of one request.
    ///
    /// # Errors
    /// [`Interrupted`] when the observer said so; else what failed.
    pub fn generate(&self, _request: &Request, _observer: &mut dyn Observer) -> Result<Picture> {
        bail!("skeleton")
    }
}
