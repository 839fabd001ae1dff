//! What was learned, laid over a model's tensors.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use crate::checkpoint::{Checkpoint, Overlay};
use crate::quantize::grid::Grid;
use crate::quantize::{
    Balance, Bits, Cancellation, Gridded, GroupedWeight, Policy, QuantizedWeight, Weight, divide_columns,
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

    /// Rounds the weight called `name` and corrects its layer's bias by what rounding does to the outputs' means.
    pub(super) fn round(
        &mut self,
        checkpoint: &Checkpoint,
        balance: &Balance,
        name: &str,
        grid: Grid,
        cancellation: &Cancellation,
        means: &[f32],
    ) -> Result<()> {
        let tensors = checkpoint.tensors();
        let shape = tensors.view(name)?.shape;
        let mut values = tensors.f32(name, shape)?;
        let columns = balance.columns(name);
        if let Some(columns) = columns {
            divide_columns(&mut values, columns)?;
        }
        let rounded = cancellation.round(grid, &values).with_context(|| format!("tensor '{name}'"))?;
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
