//! What each layer of a model costs with four bits and with eight, one at a time; which of them get these is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::probe::Probe;
use super::recording::{Recording, Settings};
use super::{check, decibel, layer_name};
use crate::checkpoint::{Checkpoint, Overlay};
use crate::layers::Rounded;
use crate::pipeline::{Model, Numerics, Pipeline, Residency};
use crate::quantize::{Bits, Energy, GroupedWeight, Policy, QuantizedWeight, Weight};
use crate::request::Precision;

/// All layers of a model that may be rounded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Costs {
    pub model: String,
    #[serde(flatten)]
    pub settings: Settings,
    /// At which the errors were measured.
    pub timesteps: Vec<f64>,
    pub layers: Vec<LayerCosts>,
}

/// Energy of the error of an output, in parts of the signal's, at each timestep, when a layer alone is rounded.
///
/// The output is the UNet's, for layers of the text encoder too. Layers of the autoencoder change a picture or its
/// latents instead, at all timesteps alike: what is lost of the noise to take away is lost of the picture as well.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerCosts {
    /// A layer, layers that run as one, or a block of layers whose inputs are floats in any case.
    pub layer: String,
    /// Canonical names of its weights.
    pub tensors: Vec<String>,
    pub four_bits: Vec<f64>,
    pub eight_bits: Vec<f64>,
}

impl LayerCosts {
    /// The errors with so many bits.
    pub fn errors(&self, bits: Bits) -> Vec<f64> {
        match bits {
            Bits::Four => self.four_bits.clone(),
            Bits::Eight => self.eight_bits.clone(),
            Bits::Sixteen => vec![0.0; self.four_bits.len()],
        }
    }

    /// Signal to error in dB, on average over the timesteps: infinite where nothing is lost.
    pub fn mean_sqnr(&self, bits: Bits) -> f64 {
        let errors = self.errors(bits);
        errors.iter().map(|error| -10.0 * error.log10()).sum::<f64>() / errors.len().max(1) as f64
    }
}

/// The widths that are measured: with more nothing is lost.
const WIDTHS: [Bits; 2] = [Bits::Eight, Bits::Four];

impl Costs {
    /// Measures every layer of `checkpoint`, of which `recording` was made, that may have fewer bits and that none of
    /// `keep` names.
    ///
    /// Runs in f32; each layer takes two passes of the UNet over the recorded runs at the settings' timesteps.
    /// `on_layer` is told how many of how many passes are done, first with none.
    ///
    /// # Errors
    /// When the model can't be loaded, has been quantized already, or computes values that are not finite.
    pub fn measure(
        checkpoint: &Checkpoint,
        keep: &[String],
        recording: &Recording,
        on_layer: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        check(checkpoint)?;
        let mut layers: BTreeMap<String, LayerCosts> = BTreeMap::new();
        let (mut done, mut total) = (0, 0);
        for bits in WIDTHS {
            let policy = Policy::all(bits).and_keeping(keep);
            let probe = Probe::load(checkpoint, &policy, recording)?;
            let candidates = probe.candidates();
            let computed =
                candidates.iter().flat_map(|candidate| candidate.tensors.iter().map(String::as_str));
            let others = stored(checkpoint, &policy, &computed.collect());
            total = total.max(WIDTHS.len() * (candidates.len() + others.len()));
            // What has no fewer than eight bits costs what it did with eight.
            let (as_before, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|(_, tensors)| {
                bits == Bits::Four && tensors.iter().all(|name| policy.bits(name) == Bits::Eight)
            });
            done += as_before.len();
            for (name, _) in &as_before {
                if let Some(costs) = layers.get_mut(name) {
                    costs.four_bits.clone_from(&costs.eight_bits);
                }
            }
            let mut add = |layer: String, tensors: Vec<String>, errors: Vec<Energy>| {
                let costs = layers.entry(layer.clone());
                let costs = costs.or_insert_with(|| LayerCosts {
                    layer,
                    tensors,
                    four_bits: Vec::new(),
                    eight_bits: Vec::new(),
                });
                let parts = errors.iter().map(|energy| energy.part()).collect();
                *(if bits == Bits::Four { &mut costs.four_bits } else { &mut costs.eight_bits }) = parts;
            };
            for (number, candidate) in candidates.into_iter().enumerate() {
                on_layer(done, total);
                let name = layer_name(&candidate.tensors);
                let errors = probe.errors(Rounded::One(number), &name)?;
                add(name, candidate.tensors, errors);
                done += 1;
            }
            let rounded = |tensors: &[String]| {
                let tensors = tensors.iter().map(|name| (name.clone(), policy.bits(name)));
                checkpoint.merged(RoundedFloats(tensors.collect()))
            };
            let (encoder, others): (Vec<_>, Vec<_>) =
                others.into_iter().partition(|(name, _)| name.starts_with("text_encoder."));
            for (name, tensors) in encoder {
                on_layer(done, total);
                let embeddings = embeddings(&rounded(&tensors), recording)?;
                let errors = probe.errors_of_embeddings(&embeddings, &name)?;
                add(name, tensors, errors);
                done += 1;
            }
            let reference = probe.into_reference();
            let autoencoder = Autoencoder::new(checkpoint, recording)?;
            for (name, tensors) in others {
                on_layer(done, total);
                let rounded = rounded(&tensors);
                let errors = if name.starts_with("unet.") {
                    reference.errors_of_unet(&rounded, &name)?
                } else {
                    // What is lost of a picture is lost whatever the timestep.
                    vec![autoencoder.error(&rounded, &name)?; recording.chosen().len()]
                };
                add(name, tensors, errors);
                done += 1;
            }
        }
        on_layer(total, total);
        let calls = recording.runs.first().map_or(&[][..], |run| &run.calls);
        Ok(Self {
            model: recording.model.clone(),
            settings: recording.settings.clone(),
            timesteps: recording.chosen().into_iter().map(|at| calls[at].timestep).collect(),
            layers: layers.into_values().collect(),
        })
    }

    /// Makes sure that these are the layers of `checkpoint`, all but those that `keep` names.
    ///
    /// # Errors
    /// Names what doesn't fit.
    pub fn check(&self, checkpoint: &Checkpoint, keep: &[String]) -> Result<()> {
        let policy = Policy::all(Bits::Four);
        let mut measured: BTreeSet<&str> = BTreeSet::new();
        for LayerCosts { layer, tensors, four_bits, eight_bits } in &self.layers {
            for errors in [four_bits, eight_bits] {
                ensure!(errors.len() == self.timesteps.len(), "it has no error for each timestep of {layer}");
                ensure!(
                    errors.iter().all(|error| error.is_finite() && *error >= 0.0),
                    "it has errors of {layer} that are none"
                );
            }
            for name in tensors {
                let is_rounded = checkpoint
                    .tensors()
                    .view(name)
                    .is_ok_and(|view| policy.stored_bits(name, view.shape) != Bits::Sixteen);
                ensure!(is_rounded, "it is about another model: '{name}' is no weight that could be rounded");
                ensure!(measured.insert(name), "it has '{name}' twice");
            }
        }
        ensure!(!self.timesteps.is_empty(), "it has no timesteps");
        let kept = policy.and_keeping(keep);
        let missing = checkpoint.tensors().parameters().find(|name| {
            let shape = checkpoint.tensors().view(name).map_or(&[][..], |view| view.shape);
            kept.stored_bits(name, shape) != Bits::Sixteen && !measured.contains(name)
        });
        if let Some(name) = missing {
            bail!("it lacks '{name}': measured with another --keep, or of another model");
        }
        Ok(())
    }
}

/// Weights that `policy` rounds and that are not among those whose inputs are rounded too, in blocks by name.
fn stored(
    checkpoint: &Checkpoint,
    policy: &Policy,
    computed: &BTreeSet<&str>,
) -> BTreeMap<String, Vec<String>> {
    let mut blocks: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in checkpoint.tensors().parameters().filter(|name| !computed.contains(name)) {
        let shape = checkpoint.tensors().view(name).map_or(&[][..], |view| view.shape);
        if policy.stored_bits(name, shape) != Bits::Sixteen {
            blocks.entry(block(name)).or_default().push(name.to_owned());
        }
    }
    blocks
}

/// The block of a weight: of the UNet's projections of the time embedding all, of its others each alone, elsewhere what
/// has the same number.
fn block(name: &str) -> String {
    let layer = name.strip_suffix(".weight").unwrap_or(name);
    if let Some((_, layer)) = layer.split_once('.').filter(|(component, _)| *component == "unet") {
        return if layer.ends_with(".time_emb_proj") {
            "unet.*.time_emb_proj".to_owned()
        } else {
            format!("unet.{layer}")
        };
    }
    let mut parts = Vec::new();
    for part in layer.split('.') {
        parts.push(part);
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            break;
        }
    }
    parts.join(".")
}

fn embeddings(checkpoint: &Checkpoint, recording: &Recording) -> Result<Vec<Tensor>> {
    let model = Model::open(checkpoint.clone(), &Numerics::on_cpu(Precision::F32))?;
    let mut pipeline = Pipeline::new(&model, Residency::OneByOne);
    recording.runs.iter().map(|run| Ok(pipeline.embeddings(&run.request)?)).collect()
}

/// What a float autoencoder makes of the recorded runs.
struct Autoencoder<'a> {
    recording: &'a Recording,
    pictures: Vec<Tensor>,
    /// Of the pictures; none where there is no encoder.
    latents: Vec<Tensor>,
}

impl<'a> Autoencoder<'a> {
    fn new(checkpoint: &Checkpoint, recording: &'a Recording) -> Result<Self> {
        let model = Model::open(checkpoint.clone(), &Numerics::on_cpu(Precision::F32))?;
        let runs = || recording.runs.iter();
        let has_encoder = checkpoint.tensors().parameters().any(|name| name.starts_with(ENCODER));
        let latents = runs().filter(|_| has_encoder).map(|run| model.encoded(&run.picture));
        let pictures = runs().map(|run| model.decoded(&run.latents));
        Ok(Self {
            recording,
            pictures: pictures.collect::<Result<_>>()?,
            latents: latents.collect::<Result<_>>()?,
        })
    }

    /// What rounding the block called `name` in `rounded` does to the pictures, or to their latents.
    fn error(&self, rounded: &Checkpoint, name: &str) -> Result<Energy> {
        let model = Model::open(rounded.clone(), &Numerics::on_cpu(Precision::F32))?;
        let mut energy = Energy::default();
        for (number, run) in self.recording.runs.iter().enumerate() {
            let (expected, got) = if name.starts_with(ENCODER) {
                (&self.latents[number], model.encoded(&run.picture)?)
            } else {
                (&self.pictures[number], model.decoded(&run.latents)?)
            };
            energy.add(&expected.flatten_all()?.to_vec1()?, &got.flatten_all()?.to_vec1()?);
        }
        decibel(energy.sqnr(), name)?;
        Ok(energy)
    }
}

const ENCODER: &str = "vae.encoder.";

/// Floats that weights become when each of these is rounded to so many bits.
struct RoundedFloats(BTreeMap<String, Bits>);

impl Overlay for RoundedFloats {
    fn changes(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn apply(&self, name: &str, shape: &[usize], stored: Weight) -> Result<Weight> {
        let (Weight::Float(values), Some(bits)) = (&stored, self.0.get(name)) else { return Ok(stored) };
        let &[outputs, inputs, ref kernel @ ..] = shape else { return Ok(stored) };
        let rounded = match bits {
            Bits::Four => {
                GroupedWeight::round(values, inputs, kernel.iter().product(), None).map(Weight::Int4)
            }
            Bits::Eight => QuantizedWeight::round(values, outputs).map(Weight::Int8),
            Bits::Sixteen => return Ok(stored),
        };
        Ok(Weight::Float(rounded.with_context(|| format!("tensor '{name}'"))?.into_f32()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_end_at_the_first_number() {
        for (name, expected) in [
            ("unet.down_blocks.0.resnets.1.time_emb_proj.weight", "unet.*.time_emb_proj"),
            ("unet.mid_block.attentions.0.to_q.weight", "unet.mid_block.attentions.0.to_q"),
            ("text_encoder.encoder.layers.11.mlp.fc1.weight", "text_encoder.encoder.layers.11"),
            ("text_encoder.embeddings.token_embedding.weight", "text_encoder.embeddings.token_embedding"),
            ("vae.decoder.up_blocks.2.resnets.0.conv1.weight", "vae.decoder.up_blocks.2"),
            ("vae.decoder.mid_block.resnets.1.conv2.weight", "vae.decoder.mid_block.resnets.1"),
            ("vae.encoder.layers.3.conv.0.weight", "vae.encoder.layers.3"),
        ] {
            assert_eq!(block(name), expected, "{name}");
        }
    }
}
