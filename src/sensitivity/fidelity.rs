//! How near a quantized model comes to the float one: the UNet's output at every timestep, the latents, the pictures.

use std::fmt;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use serde::Serialize;

use super::decibel;
use super::recording::{Recording, Run};
use crate::checkpoint::Checkpoint;
use crate::compare::compare;
use crate::pipeline::{Model, Numerics, Pipeline, Residency};
use crate::quantize::Energy;
use crate::request::Precision;

/// All figures in dB: higher is nearer, `None` where nothing is lost at all.
#[derive(Debug, Clone, Serialize)]
pub struct Fidelity {
    /// The prompts' embeddings, signal to error.
    pub text_sqnr: Option<f64>,
    /// Over all `timesteps`; an exact one doesn't count.
    pub output_mean_sqnr: Option<f64>,
    pub output_worst: Timestep,
    /// Of the picture's latents after the last step, signal to error.
    pub latents_sqnr: Option<f64>,
    /// Over all pictures; an exact one doesn't count.
    pub picture_mean_psnr: Option<f64>,
    pub picture_worst_psnr: Option<f64>,
    /// How far apart pictures of one prompt are anyway: those of the same model in f32 with another seed.
    pub other_seed_mean_psnr: Option<f64>,
    pub timesteps: Vec<Timestep>,
    pub pictures: Vec<PictureFidelity>,
}

/// The UNet's output at one timestep, both halves of guidance and all prompts together, from the float model's
/// latents and embeddings.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Timestep {
    pub timestep: f64,
    pub sqnr: Option<f64>,
}

/// A picture drawn from the same noise.
#[derive(Debug, Clone, Serialize)]
pub struct PictureFidelity {
    pub prompt: String,
    pub seed: u64,
    pub psnr: Option<f64>,
    /// The float model's own picture of the prompt with another seed.
    pub other_seed_psnr: Option<f64>,
}

impl Recording {
    /// What [`Self::compare`] says of the UNet's output on average, without drawing pictures.
    ///
    /// # Errors
    /// As [`Self::compare`].
    pub fn output_mean_sqnr(
        &self,
        quantized: &Checkpoint,
        on_picture: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<f64>> {
        let model = Model::open(quantized.clone(), &Numerics::on_cpu(Precision::Int8))?;
        let mut pipeline = Pipeline::new(&model, Residency::Kept);
        let mut outputs = Vec::new();
        for (number, run) in self.runs.iter().enumerate() {
            on_picture(number, self.runs.len());
            add_answers(&mut outputs, run, &mut pipeline)?;
        }
        on_picture(self.runs.len(), self.runs.len());
        let first = self.runs.first().context("nothing was recorded")?;
        Ok(mean(timesteps(first, &outputs)?.iter().map(|timestep| timestep.sqnr)))
    }

    /// Runs `quantized` in int8: once along the recorded trajectories and once on its own from the same noise. A
    /// float model is quantized while it is loaded. `on_picture` is told how many of how many pictures are done,
    /// first with none.
    ///
    /// # Errors
    /// When the model can't be loaded, is another one, or computes values that are not finite.
    pub fn compare(
        &self,
        quantized: &Checkpoint,
        on_picture: &mut dyn FnMut(usize, usize),
    ) -> Result<Fidelity> {
        let model = Model::open(quantized.clone(), &Numerics::on_cpu(Precision::Int8))?;
        let mut pipeline = Pipeline::new(&model, Residency::Kept);
        let first = self.runs.first().context("nothing was recorded")?;
        let mut outputs = Vec::new();
        let (mut text, mut latents) = (Energy::default(), Energy::default());
        let mut pictures = Vec::new();
        for (number, run) in self.runs.iter().enumerate() {
            on_picture(number, self.runs.len());
            add(&mut text, &run.embeddings, &pipeline.embeddings(&run.request)?)?;
            add_answers(&mut outputs, run, &mut pipeline)?;
            let drawn = pipeline.generate(&run.request, &mut ())?;
            add(&mut latents, &run.latents, &drawn.latents)?;
            let psnr = |got| {
                let difference = compare(&run.picture, got).context("the pictures' sizes differ")?;
                decibel(difference.psnr, "a picture")
            };
            pictures.push(PictureFidelity {
                prompt: run.request.prompt.clone(),
                seed: run.request.seed,
                psnr: psnr(&drawn.rgb)?,
                other_seed_psnr: psnr(&run.other)?,
            });
        }
        on_picture(self.runs.len(), self.runs.len());

        let timesteps = timesteps(first, &outputs)?;
        let worst = timesteps.iter().min_by(|a, b| order(a.sqnr).total_cmp(&order(b.sqnr)));
        let psnr = || pictures.iter().map(|picture| picture.psnr);
        Ok(Fidelity {
            text_sqnr: decibel(text.sqnr(), "the text encoder")?,
            output_mean_sqnr: mean(timesteps.iter().map(|timestep| timestep.sqnr)),
            output_worst: *worst.context("the UNet was never called")?,
            latents_sqnr: decibel(latents.sqnr(), "a run")?,
            picture_mean_psnr: mean(psnr()),
            picture_worst_psnr: psnr().min_by(|a, b| order(*a).total_cmp(&order(*b))).flatten(),
            other_seed_mean_psnr: mean(pictures.iter().map(|picture| picture.other_seed_psnr)),
            timesteps,
            pictures,
        })
    }
}

/// As a few lines for people.
impl fmt::Display for Fidelity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Timestep { timestep, sqnr } = self.output_worst;
        writeln!(
            f,
            "UNet's output, signal to error: {} on average over {} timesteps, {} at the worst (t={timestep:.0})",
            Decibel(self.output_mean_sqnr),
            self.timesteps.len(),
            Decibel(sqnr),
        )?;
        writeln!(
            f,
            "text embeddings {}, final latents {}",
            Decibel(self.text_sqnr),
            Decibel(self.latents_sqnr)
        )?;
        write!(
            f,
            "pictures (PSNR): {} on average over {}, {} at the worst; the same prompts with another seed: {}",
            Decibel(self.picture_mean_psnr),
            self.pictures.len(),
            Decibel(self.picture_worst_psnr),
            Decibel(self.other_seed_mean_psnr),
        )
    }
}

/// A figure as it is printed.
struct Decibel(Option<f64>);

impl fmt::Display for Decibel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "{value:.1} dB"),
            None => f.write_str("exact"),
        }
    }
}

/// Adds what the UNet loses at each call of a run.
fn add_answers(outputs: &mut Vec<Energy>, run: &Run, pipeline: &mut Pipeline<'_>) -> Result<()> {
    let answers = pipeline.answers(&run.request, &run.embeddings, &run.calls)?;
    outputs.resize(run.calls.len(), Energy::default());
    for ((energy, call), answer) in outputs.iter_mut().zip(&run.calls).zip(&answers) {
        add(energy, &call.output, answer)?;
    }
    Ok(())
}

fn timesteps(run: &Run, outputs: &[Energy]) -> Result<Vec<Timestep>> {
    let timesteps = run.calls.iter().zip(outputs).map(|(call, energy)| {
        let sqnr = decibel(energy.sqnr(), "the unet")?;
        Ok(Timestep { timestep: call.timestep, sqnr })
    });
    timesteps.collect()
}

fn add(energy: &mut Energy, expected: &Tensor, got: &Tensor) -> Result<()> {
    ensure!(
        expected.dims() == got.dims(),
        "shape {:?} where the float model gives {:?}: another model",
        got.dims(),
        expected.dims()
    );
    energy.add(&expected.flatten_all()?.to_vec1()?, &got.flatten_all()?.to_vec1()?);
    Ok(())
}

/// Of those that are not exact.
fn mean(figures: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let (sum, count) = figures.flatten().fold((0.0, 0), |(sum, count), figure| (sum + figure, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

fn order(figure: Option<f64>) -> f64 {
    figure.unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_figures_are_the_best_and_left_out_of_the_mean() {
        assert_eq!(mean([Some(30.0), None, Some(50.0)].into_iter()), Some(40.0));
        assert_eq!(mean([None, None].into_iter()), None);
        assert!(order(None) > order(Some(300.0)));
        assert_eq!(format!("{} {}", Decibel(Some(36.74)), Decibel(None)), "36.7 dB exact");
    }
}
