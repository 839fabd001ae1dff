//! The runs that rounding is learned from: which prompts, which of their timesteps.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use candle_core::{Device, Tensor};

use super::kept::{Kept, Tensors, take};
use crate::checkpoint::Checkpoint;
use crate::pipeline::{Call, Model, Numerics, Observer, Pipeline, Residency};
use crate::request::{Precision, Request};

/// Prompts of a calibration that names none: things, people, places, styles.
pub const PROMPTS: [&str; 16] = [
    "a green pear on a white background",
    "a sailboat, blue background",
    "portrait photo of an old fisherman, soft light",
    "an owl on a pink background",
    "a city street at night in the rain, neon signs",
    "a bowl of soup on a wooden table, food photography",
    "a red bicycle on a gray background",
    "watercolor painting of mountains behind a lake",
    "a yellow flower on a green background",
    "a medieval castle on a hill, oil painting",
    "close-up of a cat, detailed fur",
    "a robot face on an orange background",
    "an empty room with large windows, morning sun",
    "a rocket, purple background",
    "two people walking on a beach at sunset",
    "pencil drawing of a violin on a black background",
];

/// What the UNet was asked at one timestep.
pub(super) struct Asked {
    /// `[1, in_channels, height / factor, width / factor]`
    pub latents: Tensor,
    pub timestep: f64,
}

/// One picture on its way.
pub(super) struct Run {
    pub request: Request,
    /// `[1 or 2, tokens, channels]`
    pub embeddings: Tensor,
    pub asked: Vec<Asked>,
}

impl Run {
    fn restore(request: &Request, mut tensors: Tensors) -> Result<Self> {
        let timesteps = take(&mut tensors, "timesteps")?.to_vec1::<f64>()?;
        let asked = timesteps.into_iter().enumerate().map(|(at, timestep)| {
            Ok(Asked { latents: take(&mut tensors, &format!("latents-{at}"))?, timestep })
        });
        let asked = asked.collect::<Result<_>>()?;
        Ok(Self { request: request.clone(), embeddings: take(&mut tensors, "embeddings")?, asked })
    }

    fn to_keep(&self) -> Result<Tensors> {
        let timesteps: Vec<f64> = self.asked.iter().map(|asked| asked.timestep).collect();
        let latents = self.asked.iter().enumerate();
        let latents = latents.map(|(at, asked)| (format!("latents-{at}"), asked.latents.clone()));
        let others = HashMap::from([
            ("timesteps".to_owned(), Tensor::new(timesteps, &Device::Cpu)?),
            ("embeddings".to_owned(), self.embeddings.clone()),
        ]);
        Ok(latents.chain(others).collect())
    }
}

/// What a model's UNet was asked while pictures were drawn.
pub struct Runs(Vec<Run>);

/// Keeps what the UNet is asked.
#[derive(Default)]
struct Recorder(Vec<Call>);

impl Observer for Recorder {
    fn called(&mut self, call: &Call) {
        self.0.push(call.clone());
    }
}

impl Runs {
    /// Draws the pictures of `requests` in int8, as what is learned will be used, and keeps what the UNet was asked at
    /// so many timesteps of each, others for each, so that all are seen. Those that `kept` has are not drawn again.
    /// `on_picture` is told how many of how many are done, first with none.
    ///
    /// # Errors
    /// When the model can't be loaded, or computes values that are not finite.
    pub fn draw(
        checkpoint: &Checkpoint,
        requests: &[Request],
        timesteps: usize,
        kept: &Kept,
        on_picture: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let count = requests.len();
        ensure!(count > 0 && timesteps > 0, "nothing to calibrate with");
        let model = Model::open(checkpoint.clone(), &Numerics::on_cpu(Precision::Int8))?;
        let mut pipeline = Pipeline::new(&model, Residency::Kept);
        let mut runs = Vec::new();
        for (number, request) in requests.iter().enumerate() {
            on_picture(number, count);
            let name = format!("run-{number}");
            if let Some(tensors) = kept.load(&name)? {
                runs.push(Run::restore(request, tensors).with_context(|| format!("the kept {name}"))?);
                continue;
            }
            let mut recorder = Recorder::default();
            pipeline.generate(request, &mut recorder)?;
            let chosen = chosen(recorder.0.len(), timesteps, number, count).into_iter();
            let asked = chosen.map(|at| &recorder.0[at]);
            let asked = asked
                .map(|Call { input, timestep, .. }| Asked { latents: input.clone(), timestep: *timestep });
            let run = Run {
                embeddings: pipeline.embeddings(request)?,
                request: request.clone(),
                asked: asked.collect(),
            };
            kept.save(&name, || run.to_keep())?;
            runs.push(run);
        }
        on_picture(count, count);
        Ok(Self(runs))
    }

    pub(super) fn all(&self) -> &[Run] {
        &self.0
    }

    /// Of all runs.
    pub(super) fn calls(&self) -> usize {
        self.0.iter().map(|run| run.asked.len()).sum()
    }
}

/// `count` of the numbers below `all`, evenly spread, beginning elsewhere for each of the `runs`.
fn chosen(all: usize, count: usize, run: usize, runs: usize) -> Vec<usize> {
    let count = count.min(all);
    (0..count).map(|index| (index * runs + run) * all / (count * runs)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_timesteps_are_seen_in_some_run() {
        let mut seen = [0; 20];
        for run in 0..16 {
            let chosen = chosen(20, 8, run, 16);
            assert_eq!(chosen.len(), 8);
            assert!(chosen.is_sorted_by(|a, b| a < b));
            chosen.into_iter().for_each(|at| seen[at] += 1);
        }
        assert!(seen.iter().all(|count| (6..=7).contains(count)), "{seen:?}");
        assert_eq!(chosen(4, 20, 3, 5), [0, 1, 2, 3]);
        assert!(chosen(0, 3, 0, 1).is_empty());
    }
}
