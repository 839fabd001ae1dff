//! What int8 costs a model: how near it comes to the float one as a whole, and what each layer takes from that.

mod costs;
mod fidelity;
mod probe;
mod recording;

use anyhow::{Result, ensure};
use serde::Serialize;

pub use costs::{Costs, LayerCosts};
pub use fidelity::{Fidelity, PictureFidelity, Timestep};
pub use recording::{Recording, Settings};

use crate::checkpoint::Checkpoint;
use crate::layers::Rounded;
use crate::quantize::{Energy, Policy};
use probe::Probe;

/// All figures are signal to quantization noise in dB: higher is better, `None` where nothing is lost at all.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub model: String,
    #[serde(flatten)]
    pub settings: Settings,
    /// At which the figures of this report were taken.
    pub timesteps: Vec<f64>,
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

/// Measures every layer of `checkpoint`, of which `recording` was made, that `policy` has computed in int8.
///
/// Runs in f32; each layer takes one pass of the UNet over the recorded runs at the settings' timesteps. `on_layer`
/// is told how many of how many layers are done, first with none.
///
/// # Errors
/// When the model can't be loaded, has been quantized already, or computes values that are not finite.
pub fn study(
    checkpoint: &Checkpoint,
    policy: &Policy,
    recording: &Recording,
    on_layer: &mut dyn FnMut(usize, usize),
) -> Result<Report> {
    check(checkpoint)?;
    let probe = Probe::load(checkpoint, policy, recording)?;
    let candidates = probe.candidates();
    let output_sqnr = |rounded, what: &str| -> Result<_> {
        let errors = probe.errors(rounded, what)?;
        decibel(errors.into_iter().sum::<Energy>().sqnr(), what)
    };
    let mut layers = Vec::new();
    for (number, candidate) in candidates.iter().enumerate() {
        on_layer(number, candidates.len());
        let layer = layer_name(&candidate.tensors);
        layers.push(LayerReport {
            weight_sqnr: decibel(candidate.weights.sqnr(), &layer)?,
            activation_sqnr: decibel(candidate.inputs.sqnr(), &layer)?,
            output_sqnr: output_sqnr(Rounded::One(number), &layer)?,
            tensors: candidate.tensors.clone(),
            layer,
        });
    }
    on_layer(candidates.len(), candidates.len());
    layers.sort_by(|a, b| order(a).total_cmp(&order(b)).then_with(|| a.layer.cmp(&b.layer)));

    let calls = recording.runs.first().map_or(&[][..], |run| &run.calls);
    Ok(Report {
        model: recording.model.clone(),
        settings: recording.settings.clone(),
        timesteps: recording.chosen().into_iter().map(|at| calls[at].timestep).collect(),
        output_sqnr: output_sqnr(Rounded::All, "all layers")?,
        layers,
    })
}

/// Whether `checkpoint` still has the weights to compare with.
///
/// # Errors
/// When it has been quantized.
pub fn check(checkpoint: &Checkpoint) -> Result<()> {
    ensure!(
        !checkpoint.tensors().is_quantized(),
        "the model is quantized already: what that lost can't be measured without its float weights"
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
