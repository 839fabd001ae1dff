//! How much the UNet's output suffers from each layer's int8, measured by rounding one layer at a time.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::layers::{Backend, Params, Rounded, Simulation};
use crate::networks::clip::TextEncoder;
use crate::networks::config::{ClipConfig, UnetConfig, VaeConfig};
use crate::networks::unet::Unet;
use crate::noise::NoiseSource;
use crate::prompt::Tokenizer;
use crate::quantize::{Policy, sqnr};
use crate::request::{Rng, Sampler, Schedule};
use crate::samplers::{self, Run, Trajectory};
use crate::schedule::{NoiseSchedule, SchedulerConfig};

/// What the network is run on: each prompt at each timestep.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    pub prompts: Vec<String>,
    /// Timesteps, evenly spaced over the schedule.
    pub steps: usize,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    pub seed: u64,
}

/// All figures are signal to quantization noise in dB: higher is better, `None` where nothing is lost at all.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub model: String,
    #[serde(flatten)]
    pub settings: Settings,
    /// The UNet's output with all layers rounded.
    pub output_sqnr: Option<f64>,
    /// The worst for the UNet's output first.
    pub layers: Vec<LayerReport>,
}

#[derive(Debug, Clone, Serialize)]
pub struct LayerReport {
    /// The layer's canonical name; of layers that run as one `first+second`, where keeping one keeps all.
    pub layer: String,
    /// Canonical names of its weights.
    pub tensors: Vec<String>,
    /// The weights alone.
    pub weight_sqnr: Option<f64>,
    /// The layer's inputs alone, quantized row by row.
    pub activation_sqnr: Option<f64>,
    /// The UNet's output with this layer alone rounded.
    pub output_sqnr: Option<f64>,
}

/// Measures every layer of `checkpoint` that `policy` has computed in int8.
///
/// Runs in f32; each layer takes one pass of the UNet over all prompts and timesteps. `on_layer` is told how many
/// of how many layers are done, first with none.
///
/// # Errors
/// When the model can't be loaded, has been quantized already, or computes values that are not finite.
pub fn study(
    checkpoint: &Checkpoint,
    policy: &Policy,
    settings: Settings,
    on_layer: &mut dyn FnMut(usize, usize),
) -> Result<Report> {
    ensure!(!settings.prompts.is_empty() && settings.steps > 0, "nothing to measure with");
    check(checkpoint)?;
    let simulation = Arc::new(Simulation::new(policy.clone()));
    let backend = Backend::cpu_simulating(simulation.clone())?;
    let params = Params::new(checkpoint.tensors(), &backend, "unet");
    let unet = Unet::load(&params, UnetConfig::parse(&checkpoint.configs().unet)?)?;
    let inputs = Inputs::new(checkpoint, &unet, &settings)?;

    simulation.record(true);
    let reference = inputs.output(&unet)?;
    let is_finite = reference.iter().all(|value| value.is_finite());
    ensure!(is_finite, "the UNet computes NaN or infinite values in f32: the model is damaged");
    simulation.record(false);

    let candidates = simulation.candidates();
    let mut layers = Vec::new();
    for (number, candidate) in candidates.iter().enumerate() {
        on_layer(number, candidates.len());
        simulation.round(Rounded::One(number));
        let layer = layer_name(&candidate.tensors);
        layers.push(LayerReport {
            weight_sqnr: decibel(candidate.weights.sqnr(), &layer)?,
            activation_sqnr: decibel(candidate.inputs.sqnr(), &layer)?,
            output_sqnr: decibel(sqnr(&reference, &inputs.output(&unet)?), &layer)?,
            tensors: candidate.tensors.clone(),
            layer,
        });
    }
    on_layer(candidates.len(), candidates.len());
    layers.sort_by(|a, b| order(a).total_cmp(&order(b)).then_with(|| a.layer.cmp(&b.layer)));

    simulation.round(Rounded::All);
    let output_sqnr = decibel(sqnr(&reference, &inputs.output(&unet)?), "all layers")?;
    Ok(Report { model: checkpoint.name().to_owned(), settings, output_sqnr, layers })
}

/// Whether `checkpoint` still has the weights to compare with.
///
/// # Errors
/// When it has been quantized.
pub fn check(checkpoint: &Checkpoint) -> Result<()> {
    ensure!(
        !checkpoint.tensors().is_quantized(),
        "the model is int8 already: what that lost can't be measured without its float weights"
    );
    Ok(())
}

fn order(layer: &LayerReport) -> f64 {
    layer.output_sqnr.unwrap_or(f64::INFINITY)
}

/// `sqnr` unless nothing is lost, measured at `layer`.
fn decibel(sqnr: f64, layer: &str) -> Result<Option<f64>> {
    ensure!(!sqnr.is_nan() && sqnr > f64::NEG_INFINITY, "{layer} in int8 computes NaN or infinite values");
    Ok((sqnr < f64::INFINITY).then_some(sqnr))
}

/// `unet.a.to_q.weight` and `unet.a.to_k.weight` as `unet.a.to_q+to_k`.
fn layer_name(tensors: &[String]) -> String {
    let mut layers = tensors.iter().map(|name| name.trim_end_matches(".weight"));
    let first = layers.next().unwrap_or_default().to_owned();
    layers.fold(first, |name, layer| name + "+" + layer.rsplit('.').next().unwrap_or(layer))
}

/// What the UNet is run on, all prompts as one batch.
struct Inputs {
    /// `[prompts, tokens, channels]`
    embeddings: Tensor,
    /// Timestep and scaled latents, `[prompts, 4, h, w]`.
    calls: Vec<(f64, Tensor)>,
}

impl Inputs {
    /// Walks from noise towards a picture for each prompt, with the model's own guidance, and keeps what the UNet
    /// is asked on the way: latents as they are in use.
    fn new(checkpoint: &Checkpoint, unet: &Unet, settings: &Settings) -> Result<Self> {
        let configs = checkpoint.configs();
        let backend = Backend::cpu()?;
        let params = Params::new(checkpoint.tensors(), &backend, "text_encoder");
        let encoder = TextEncoder::load(&params, ClipConfig::parse(&configs.text_encoder)?)?;
        let tokenizer = Tokenizer::new(checkpoint.vocabulary())?;
        let embed = |text: &str| encoder.forward(&tokenizer.chunk(text, encoder.positions())?.0);
        let opposite = embed("")?;

        let scheduler: SchedulerConfig = serde_json::from_value(configs.scheduler.clone())
            .context("the scheduler config is not usable")?;
        let schedule = NoiseSchedule::new(&scheduler)?;
        let sampler = Sampler::Ddim;
        // However few, they are neither all at the noisy end nor partly at the clean one.
        let trajectory = Trajectory::new(&schedule, sampler, Schedule::Trailing, settings.steps)?;
        let guidance = checkpoint.defaults().guidance_scale;
        let factor = VaeConfig::parse(&configs.vae)?.factor();
        let channels = UnetConfig::parse(&configs.unet)?.in_channels;
        let shape = [1, channels, settings.height / factor, settings.width / factor];

        let (mut embeddings, mut calls) = (Vec::new(), Vec::new());
        for (number, prompt) in settings.prompts.iter().enumerate() {
            let embedding = embed(prompt)?;
            let context = unet.context(&Tensor::cat(&[&opposite, &embedding], 0)?)?;
            let mut asked = Vec::new();
            let mut noise = NoiseSource::new(Rng::Torch, settings.seed.wrapping_add(number as u64));
            let x = trajectory.start(&noise.normal(&shape, &Device::Cpu)?)?;
            let mut model = |latents: &Tensor, timestep: f64| {
                asked.push((timestep, latents.clone()));
                let both = unet.forward(latents, timestep, &context)?;
                let (negative, positive) = (both.narrow(0, 0, 1)?, both.narrow(0, 1, 1)?);
                Ok((&negative + ((positive - &negative)? * guidance)?)?)
            };
            let run = Run {
                trajectory: &trajectory,
                prediction: schedule.prediction(),
                model: &mut model,
                noise: &mut noise,
                on_step: &mut |_| Ok(None),
            };
            samplers::sample(sampler, 0.0, run, x)?;
            embeddings.push(embedding);
            calls.push(asked);
        }

        let calls = (0..settings.steps)
            .map(|step| {
                let parts: Vec<&Tensor> = calls.iter().map(|asked| &asked[step].1).collect();
                Ok((calls[0][step].0, Tensor::cat(&parts, 0)?))
            })
            .collect::<Result<_>>()?;
        Ok(Self { embeddings: Tensor::cat(&embeddings, 0)?, calls })
    }

    /// The UNet's output over all calls.
    fn output(&self, unet: &Unet) -> Result<Vec<f32>> {
        let context = unet.context(&self.embeddings)?;
        let mut output = Vec::new();
        for (timestep, latents) in &self.calls {
            output.append(&mut unet.forward(latents, *timestep, &context)?.flatten_all()?.to_vec1()?);
        }
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_infinite_ratio_is_exact() {
        assert_eq!(decibel(f64::INFINITY, "x").unwrap(), None);
        assert_eq!(decibel(-3.0, "x").unwrap(), Some(-3.0));
        for lost in [f64::NAN, f64::NEG_INFINITY] {
            assert!(decibel(lost, "unet.conv1").unwrap_err().to_string().contains("unet.conv1"));
        }
    }

    #[test]
    fn stacked_layers_share_a_name() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(layer_name(&names(&["unet.conv1.weight"])), "unet.conv1");
        let stacked = names(&["unet.a.to_q.weight", "unet.a.to_k.weight", "unet.a.to_v.weight"]);
        assert_eq!(layer_name(&stacked), "unet.a.to_q+to_k+to_v");
    }
}
