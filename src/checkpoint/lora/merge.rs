//! Adapters laid over a model's tensors: found by name once, added to a layer's weights when these are read.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::super::tensors::{Overlay, TensorSet};
use super::factors::Adapter;
use super::names::LayerNames;
use crate::quantize::{QuantizedWeight, Weight};

/// How an adapter fits a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Layers of the model it changes.
    pub matched: usize,
    /// Keys that belong to no layer, one for each layer of the adapter.
    pub unmatched: Vec<String>,
}

/// What is added to which weights.
#[derive(Default)]
pub struct Merge {
    adapters: Vec<(Arc<Adapter>, f64)>,
    /// By canonical name: the adapter's number and the layer's part of its keys.
    layers: HashMap<String, Vec<(usize, String)>>,
}

impl Merge {
    /// Lays `adapter` at `weight` over `tensors`, after those that are there. At zero it leaves all layers as they are.
    ///
    /// # Errors
    /// When none of its layers is one of the model's, or one of its factors does not fit its layer.
    pub fn add(&mut self, adapter: Arc<Adapter>, weight: f64, tensors: &TensorSet) -> Result<Summary> {
        let names = LayerNames::new(tensors);
        let number = self.adapters.len();
        let (mut matched, mut unmatched) = (0, adapter.others().to_vec());
        for stem in adapter.stems() {
            let Some(name) = names.find(stem) else {
                unmatched.push(adapter.key(stem).to_owned());
                continue;
            };
            adapter.check(stem, tensors.view(name)?.shape)?;
            if weight != 0.0 {
                self.layers.entry(name.to_owned()).or_default().push((number, stem.to_owned()));
            }
            matched += 1;
        }
        ensure!(
            matched > 0,
            "{}: none of its {} keys belongs to a layer of this model (e.g. '{}')",
            adapter.path().display(),
            unmatched.len(),
            unmatched.first().map_or("", String::as_str)
        );
        self.adapters.push((adapter, weight));
        Ok(Summary { matched, unmatched })
    }
}

impl Overlay for Merge {
    fn changes(&self, name: &str) -> bool {
        self.layers.contains_key(name)
    }

    /// The weights of the layer called `name` with everything added that belongs to it; rounded weights come back
    /// as int8 with new scales and the same factors of their columns: in four bits little would be left of an addition.
    ///
    /// # Errors
    /// When a factor can't be read any more or the sum is not finite.
    fn apply(&self, name: &str, shape: &[usize], stored: Weight) -> Result<Weight> {
        let Some(additions) = self.layers.get(name) else { return Ok(stored) };
        let columns = match &stored {
            Weight::Float(_) => None,
            Weight::Int8(weight) => Some(weight.columns.clone()),
            Weight::Int4(weight) => Some(weight.columns.clone()),
        };
        let mut values = stored.into_f32();
        for (number, stem) in additions {
            let (adapter, weight) = &self.adapters[*number];
            let weight = *weight as f32;
            let delta = adapter.delta(stem, shape)?;
            for (value, delta) in values.iter_mut().zip(delta) {
                *value += weight * delta;
            }
            ensure!(
                values.iter().all(|value| value.is_finite()),
                "{}: '{}' drives weights of '{name}' to infinity",
                adapter.path().display(),
                adapter.key(stem)
            );
        }
        let Some(columns) = columns else { return Ok(Weight::Float(values)) };
        let outputs = shape.first().copied().unwrap_or(1);
        let rounded = match columns {
            Some(columns) => QuantizedWeight::round_with_columns(&values, outputs, &columns),
            None => QuantizedWeight::round(&values, outputs),
        };
        let rounded = rounded.with_context(|| format!("tensor '{name}'"))?;
        Ok(Weight::Int8(rounded))
    }
}
