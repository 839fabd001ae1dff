//! What the UNet will compute for a request, counted beforehand, and how long what it computed has taken.

use std::time::Duration;

use anyhow::Result;

use super::{Model, hires};
use crate::networks::graph::{Extent, Prompts};
use crate::networks::unet;
use crate::request::{Cache, Request, Reuse};
use crate::samplers::Trajectory;

/// Multiply-accumulates of one picture's steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Of calls of the whole UNet.
    pub whole: u64,
    /// Of calls that leave its inner blocks to a step cache.
    pub outer: u64,
}

impl Work {
    pub fn total(self) -> u64 {
        self.whole + self.outer
    }
}

/// A part of one picture's steps.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stretch {
    /// Multiply-accumulates.
    pub macs: u64,
    pub time: Duration,
}

/// How long the steps of one picture have taken, everything in them included.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// Steps in which the UNet was computed whole.
    pub whole: Stretch,
    /// Steps of a step cache.
    pub outer: Stretch,
}

impl Pace {
    /// Counts a step.
    pub(super) fn add(&mut self, work: Work, time: Duration) {
        let stretch = if work.whole == 0 { &mut self.outer } else { &mut self.whole };
        stretch.macs += work.total();
        stretch.time += time;
    }
}

impl Model {
    /// What the UNet computes for `request`, whose prompt takes one chunk; at most, where steps decide by what they
    /// see.
    ///
    /// # Errors
    /// When the request can't be drawn with this model.
    pub fn work(&self, request: &Request) -> Result<Work> {
        self.check(request)?;
        let strength = request.init.as_ref().map_or(1.0, |init| init.strength);
        let trajectory = Trajectory::new(&self.schedule, request.sampler, request.schedule, request.steps)?
            .with_strength(strength)?;
        let mut work = Work::default();
        self.count(request, (request.width, request.height), &trajectory, &mut work)?;
        if let Some(second) = &request.hires {
            let trajectory = hires::trajectory(&self.schedule, request, second)?;
            self.count(request, request.final_size(), &trajectory, &mut work)?;
        }
        Ok(work)
    }

    /// Adds one walk, as `evaluation` takes it.
    fn count(
        &self,
        request: &Request,
        (width, height): (usize, usize),
        trajectory: &Trajectory,
        work: &mut Work,
    ) -> Result<()> {
        let factor = self.factor();
        let graph = unet::describe(&self.unet_config);
        let latents = Extent { batch: 1, height: height / factor, width: width / factor };
        let inputs = unet::extents(&self.unet_config, latents);
        let tokens = self.clip_config.max_position_embeddings;
        let macs = |count, outer| unet::step_macs(&graph, &inputs, Prompts { count, tokens }, outer);
        let steps = trajectory.steps().len();
        let extra = request.sampler.model_calls(steps).saturating_sub(steps);
        // For how many prompts the inner blocks' answer is kept.
        let mut kept = 0;
        for step in 0..steps {
            let guided = self.is_guided(request) && is_guided(request, step, steps);
            let prompts = if guided { 2 } else { 1 };
            // Samplers that call twice do so in their first steps.
            for _ in 0..1 + usize::from(step < extra) {
                match request.cache {
                    Some(Cache { reuse: Reuse::ButEvery(every), branch })
                        if kept >= prompts && is_reused(every, step, steps) =>
                    {
                        work.outer += macs(prompts, Some(branch + 1))?;
                    }
                    _ => work.whole += macs(prompts, None)?,
                }
                kept = prompts;
            }
        }
        Ok(())
    }
}

/// Whether the guidance range has step `index`, counting from 0, of `total`.
pub(super) fn is_guided(request: &Request, index: usize, total: usize) -> bool {
    request.guidance_range.is_none_or(|range| range.contains(index, total))
}

/// Whether a cache that is renewed `every` so many steps serves step `index`, counting from 0, of `total`.
pub(super) fn is_reused(every: usize, index: usize, total: usize) -> bool {
    !is_end(index, total) && !index.is_multiple_of(every)
}

/// Whether a step is the first or the last, which are always computed whole.
pub(super) fn is_end(index: usize, total: usize) -> bool {
    index == 0 || index + 1 == total
}
