//! Runs of a float model to hold a quantized one against: what the UNet was asked, what came out; judged elsewhere.

use anyhow::{Result, ensure};
use candle_core::Tensor;
use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::pipeline::{Call, Model, Numerics, Observer, Pipeline, Residency};
use crate::request::{Precision, Request};

/// What a model is measured with: each prompt, drawn in the steps and with the sampler and guidance that are the
/// model's own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    pub prompts: Vec<String>,
    /// At how many timesteps of a run layers are rounded one by one, evenly from the first to the last.
    pub steps: usize,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Of the first prompt; each further one has the next.
    pub seed: u64,
}

/// The runs of a model in f32, one for each prompt.
pub struct Recording {
    pub(super) model: String,
    pub(super) settings: Settings,
    pub(super) runs: Vec<Run>,
}

/// One picture in f32.
pub(super) struct Run {
    pub request: Request,
    /// `[1 or 2, tokens, channels]`
    pub embeddings: Tensor,
    /// In their order, which has the same timesteps in every run.
    pub calls: Vec<Call>,
    pub latents: Tensor,
    pub picture: RgbImage,
    /// The same prompt with another seed.
    pub other: RgbImage,
}

/// Keeps what the UNet is asked and answers.
#[derive(Default)]
struct Recorder(Vec<Call>);

impl Observer for Recorder {
    fn called(&mut self, call: &Call) {
        self.0.push(call.clone());
    }
}

impl Recording {
    /// Draws two pictures of each prompt. `on_picture` is told how many of how many are done, first with none.
    ///
    /// # Errors
    /// When the model can't be loaded, has been quantized already, or computes values that are not finite.
    pub fn new(
        checkpoint: &Checkpoint,
        settings: Settings,
        on_picture: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        super::check(checkpoint)?;
        Self::of_any(checkpoint, settings, on_picture)
    }

    /// The same of a model that may be int8: its floats are then what its int8 weights stand for, and only what int8
    /// products lose can be measured.
    ///
    /// # Errors
    /// When the model can't be loaded or computes values that are not finite.
    pub fn of_any(
        checkpoint: &Checkpoint,
        settings: Settings,
        on_picture: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let count = settings.prompts.len();
        ensure!(count > 0 && settings.steps > 0, "nothing to measure with");
        let model = Model::open(checkpoint.clone(), &Numerics::on_cpu(Precision::F32))?;
        let mut pipeline = Pipeline::new(&model, Residency::Kept);
        let mut runs = Vec::new();
        for (number, prompt) in settings.prompts.iter().enumerate() {
            let request = |seed: usize| Request {
                width: settings.width,
                height: settings.height,
                ..Request::new(prompt, settings.seed.wrapping_add(seed as u64), &checkpoint.defaults())
            };
            let mut recorder = Recorder::default();
            on_picture(2 * number, 2 * count);
            let drawn = pipeline.generate(&request(number), &mut recorder)?;
            on_picture(2 * number + 1, 2 * count);
            let other = pipeline.generate(&request(count + number), &mut ())?;
            runs.push(Run {
                embeddings: pipeline.embeddings(&request(number))?,
                request: request(number),
                calls: recorder.0,
                latents: drawn.latents,
                picture: drawn.rgb,
                other: other.rgb,
            });
        }
        on_picture(2 * count, 2 * count);
        Ok(Self { model: checkpoint.name().to_owned(), settings, runs })
    }

    /// The places in each run's calls at which layers are rounded one by one.
    pub(super) fn chosen(&self) -> Vec<usize> {
        let calls = self.runs.first().map_or(0, |run| run.calls.len());
        spread(calls, self.settings.steps)
    }
}

/// `count` of the numbers below `all`, evenly from the first to the last; all if there are no more.
fn spread(all: usize, count: usize) -> Vec<usize> {
    let count = count.min(all);
    let (last, gaps) = (all.saturating_sub(1), count.saturating_sub(1).max(1));
    (0..count).map(|index| (index * last + gaps / 2) / gaps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_has_both_ends() {
        assert_eq!(spread(20, 3), [0, 10, 19]);
        assert_eq!(spread(20, 1), [0]);
        assert_eq!(spread(20, 2), [0, 19]);
        assert_eq!(spread(4, 20), [0, 1, 2, 3]);
        assert_eq!(spread(1, 3), [0]);
        assert!(spread(0, 3).is_empty());
    }
}
