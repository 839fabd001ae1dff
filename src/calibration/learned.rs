//! What was learned, laid over a model's tensors.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{Device, Tensor};

use super::kept::{Tensors, take};
use crate::checkpoint::{Checkpoint, Overlay};
use crate::quantize::grid::Grid;
use crate::quantize::{
    Balance, Bits, Gridded, GroupedWeight, Policy, QuantizedWeight, Rounder, Weight, divide_columns,
};

/// Rounded weights and corrected biases by canonical name.
#[derive(Debug, Clone, Default)]
pub struct Learned {
    weights: HashMap<String, Weight>,
    /// What is added.
    biases: HashMap<String, Vec<f32>>,
}

impl Learned {
    /// The same with biases as they were, to see what correcting them brings.
    #[must_use]
    pub fn without_corrections(self) -> Self {
        Self { biases: HashMap::new(), ..self }
    }

    /// Whether the weights of these names are among them.
    pub(super) fn has(&self, names: &[String]) -> bool {
        names.iter().all(|name| self.weights.contains_key(name))
    }

    /// Adds what is in `other`.
    pub(super) fn extend(&mut self, other: Self) {
        self.weights.extend(other.weights);
        self.biases.extend(other.biases);
    }

    /// Rounds the weight called `name` and corrects its layer's bias by what rounding does to the outputs' means.
    pub(super) fn round(
        &mut self,
        checkpoint: &Checkpoint,
        balance: &Balance,
        name: &str,
        grid: Grid,
        rounder: &Rounder,
        means: &[f32],
    ) -> Result<()> {
        let tensors = checkpoint.tensors();
        let shape = tensors.view(name)?.shape;
        let mut values = tensors.f32(name, shape)?;
        let columns = balance.columns(name);
        if let Some(columns) = columns {
            divide_columns(&mut values, columns)?;
        }
        let rounded = rounder.round(grid, &values).with_context(|| format!("tensor '{name}'"))?;
        let bias = name.strip_suffix("weight").map(|layer| format!("{layer}bias"));
        if let Some(bias) = bias.filter(|bias| tensors.contains(bias)) {
            let approximate = rounded.dequantize();
            let correction = values.chunks_exact(means.len()).zip(approximate.chunks_exact(means.len()));
            let correction = correction.map(|(exact, rounded)| {
                let errors = exact.iter().zip(rounded).zip(means);
                errors.map(|((exact, rounded), mean)| f64::from((exact - rounded) * mean)).sum::<f64>() as f32
            });
            self.biases.insert(bias, correction.collect());
        }
        self.weights.insert(name.to_owned(), stored(rounded, columns));
        Ok(())
    }
}

/// Rounded weights as they are stored.
fn stored(rounded: Gridded, columns: Option<&[f32]>) -> Weight {
    if rounded.grid == Grid::Nibbles {
        return Weight::Int4(GroupedWeight::of(rounded, columns));
    }
    let Gridded { values, scales, .. } = rounded;
    Weight::Int8(QuantizedWeight { values, scales, columns: columns.map(<[f32]>::to_vec) })
}

/// How the names of kept tensors begin, after the number of their policy.
const VALUES: &str = "values";
const SCALES: &str = "scales";
const COLUMNS: &str = "columns";
/// Inputs and taps, of weights of four bits.
const SHAPE: &str = "shape";
const BIAS: &str = "bias";

fn key(policy: usize, part: &str, name: &str) -> String {
    format!("{policy}/{part}/{name}")
}

/// All of what was learned for each policy, as tensors.
pub(super) fn to_keep(learned: &[Learned]) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    for (policy, learned) in learned.iter().enumerate() {
        let mut put = |part: &str, name: &str, tensor: candle_core::Result<Tensor>| -> Result<()> {
            tensors.insert(key(policy, part, name), tensor?);
            Ok(())
        };
        for (name, weight) in &learned.weights {
            let (values, scales, columns) = match weight {
                Weight::Float(_) => bail!("'{name}' has not been rounded"),
                Weight::Int8(QuantizedWeight { values, scales, columns }) => (values, scales, columns),
                Weight::Int4(GroupedWeight { values, scales, columns, inputs, taps }) => {
                    put(SHAPE, name, Tensor::new(&[*inputs as u32, *taps as u32], &Device::Cpu))?;
                    (values, scales, columns)
                }
            };
            let bytes: Vec<u8> = values.iter().map(|value| value.cast_unsigned()).collect();
            put(VALUES, name, Tensor::new(bytes, &Device::Cpu))?;
            put(SCALES, name, Tensor::new(scales.as_slice(), &Device::Cpu))?;
            if let Some(columns) = columns {
                put(COLUMNS, name, Tensor::new(columns.as_slice(), &Device::Cpu))?;
            }
        }
        for (name, bias) in &learned.biases {
            put(BIAS, name, Tensor::new(bias.as_slice(), &Device::Cpu))?;
        }
    }
    Ok(tensors)
}

/// Adds to what was learned for each policy what [`to_keep`] made of more.
pub(super) fn restore(learned: &mut [Learned], tensors: &mut Tensors) -> Result<()> {
    for (policy, learned) in learned.iter_mut().enumerate() {
        for (part, name) in names_of(policy, tensors) {
            match part.as_str() {
                VALUES => {
                    let mut part = |part: &str| take(tensors, &key(policy, part, &name));
                    let bytes = part(VALUES)?.to_vec1::<u8>()?;
                    let scales = part(SCALES)?.to_vec1::<f32>()?;
                    let columns = part(COLUMNS).ok().map(|columns| columns.to_vec1::<f32>()).transpose()?;
                    let shape = part(SHAPE).ok().map(|shape| shape.to_vec1::<u32>()).transpose()?;
                    let values = bytes.into_iter().map(u8::cast_signed).collect();
                    let weight = match shape.as_deref() {
                        None => Weight::Int8(QuantizedWeight { values, scales, columns }),
                        Some(&[inputs, taps]) => {
                            let (inputs, taps) = (inputs as usize, taps as usize);
                            Weight::Int4(GroupedWeight { inputs, taps, values, scales, columns })
                        }
                        Some(_) => bail!("'{name}' has no two dimensions"),
                    };
                    learned.weights.insert(name, weight);
                }
                BIAS => {
                    let bias = take(tensors, &key(policy, BIAS, &name))?.to_vec1::<f32>()?;
                    learned.biases.insert(name, bias);
                }
                _ => (),
            }
        }
    }
    ensure!(tensors.is_empty(), "{} tensors are of no policy", tensors.len());
    Ok(())
}

/// The parts and names that are kept for a policy.
fn names_of(policy: usize, tensors: &Tensors) -> Vec<(String, String)> {
    let start = format!("{policy}/");
    let parts = tensors.keys().filter_map(|key| key.strip_prefix(&start)?.split_once('/'));
    parts.map(|(part, name)| (part.to_owned(), name.to_owned())).collect()
}

impl Overlay for Learned {
    fn changes(&self, name: &str) -> bool {
        self.weights.contains_key(name) || self.biases.contains_key(name)
    }

    fn apply(&self, name: &str, _shape: &[usize], stored: Weight) -> Result<Weight> {
        if let Some(weight) = self.weights.get(name) {
            return Ok(weight.clone());
        }
        let Some(correction) = self.biases.get(name) else { return Ok(stored) };
        let mut bias = stored.into_f32();
        if bias.len() != correction.len() {
            bail!("{} corrections for {} biases", correction.len(), bias.len());
        }
        bias.iter_mut().zip(correction).for_each(|(bias, correction)| *bias += correction);
        Ok(Weight::Float(bias))
    }
}

/// Of what was learned with four bits and with eight whichever a policy asks for.
#[derive(Debug, Clone)]
pub struct Mixed {
    pub policy: Policy,
    pub four: Arc<Learned>,
    pub eight: Arc<Learned>,
}

impl Mixed {
    /// What the tensor called `name` is taken from: a bias goes with its weight.
    fn of(&self, name: &str) -> Option<&Learned> {
        let weight = match name.strip_suffix(".bias") {
            Some(layer) => &format!("{layer}.weight"),
            None => name,
        };
        match self.policy.bits(weight) {
            Bits::Four => Some(&self.four),
            Bits::Eight => Some(&self.eight),
            Bits::Sixteen => None,
        }
    }
}

impl Overlay for Mixed {
    fn changes(&self, name: &str) -> bool {
        self.of(name).is_some_and(|learned| learned.changes(name))
    }

    fn apply(&self, name: &str, shape: &[usize], stored: Weight) -> Result<Weight> {
        match self.of(name) {
            Some(learned) => learned.apply(name, shape, stored),
            None => Ok(stored),
        }
    }
}
