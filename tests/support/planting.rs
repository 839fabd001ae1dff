//! Outliers planted in a model without changing what it computes in floats: channels that are scaled where they are
//! given and scaled back where they are read.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use pochade::checkpoint::{Checkpoint, FloatType, Storage};

use super::models::noise;

/// Which channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A LayerNorm's, against the layers that read it.
    Norm,
    /// Those that attention averages: rows of `to_v` against columns of `to_out.0`.
    Value,
    /// Those that gates multiply: the values' rows of `ff.net.0.proj` against columns of `ff.net.2`.
    Gated,
    /// Rows of `to_q` against rows of `to_k`.
    QueryKey,
    /// The text encoder's last norm's, against all that read the prompt.
    Text,
    /// The same as values, then spread over [`MIXED`] neighbors by a rotation, so that no factors undo them.
    Rotated,
    All,
}

/// By how much.
#[derive(Debug, Clone, Copy)]
pub enum Spread {
    /// This share of them, at least one, by this much.
    Outliers { share: f64, times: f32 },
    /// Each by e to the power of a normal variable with this deviation.
    LogNormal { sigma: f32 },
}

impl Spread {
    /// `count` factors.
    fn factors(self, seed: u64, count: usize) -> Vec<f32> {
        let normal = noise(seed, &[count]).to_vec1::<f32>().unwrap();
        match self {
            Self::LogNormal { sigma } => normal.into_iter().map(|value| (sigma * value).exp()).collect(),
            Self::Outliers { share, times } => {
                let many = ((share * count as f64).round() as usize).max(1);
                let mut order: Vec<usize> = (0..count).collect();
                order.sort_by(|a, b| normal[*b].total_cmp(&normal[*a]));
                let mut factors = vec![1.0; count];
                order[..many].iter().for_each(|at| factors[*at] = times);
                factors
            }
        }
    }
}

/// A model's f32 file with its tensors by name.
struct Floats {
    bytes: Vec<u8>,
    /// Shape and where the values begin.
    tensors: HashMap<String, (Vec<usize>, usize)>,
}

impl Floats {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let entries: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
        let tensors = entries.into_iter().filter(|(name, _)| name != "__metadata__").map(|(name, entry)| {
            assert_eq!(entry["dtype"], "F32", "{name}");
            let shape = entry["shape"].as_array().unwrap().iter().map(number).collect();
            (name, (shape, 8 + header + number(&entry["data_offsets"][0])))
        });
        Self { tensors: tensors.collect(), bytes }
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn rows(&self, name: &str) -> usize {
        self.tensors[name].0[0]
    }

    /// Changes every value of a tensor, given its row and its column.
    fn change(&mut self, name: &str, change: impl Fn(usize, usize, f32) -> f32) {
        let (shape, start) = &self.tensors[name];
        let columns: usize = shape[1..].iter().product();
        let values = self.bytes[*start..].chunks_exact_mut(4).take(shape[0] * columns);
        for (at, bytes) in values.enumerate() {
            let value = f32::from_le_bytes(bytes.try_into().unwrap());
            bytes.copy_from_slice(&change(at / columns, at % columns, value).to_le_bytes());
        }
    }

    /// Multiplies the first rows of a layer's weights and bias, if it has one, or of a norm's gain and offset.
    fn multiply_rows(&mut self, layer: &str, factors: &[f32]) {
        for name in [format!("{layer}.weight"), format!("{layer}.bias")] {
            if self.has(&name) {
                self.change(&name, |row, _, value| value * factors.get(row).unwrap_or(&1.0));
            }
        }
    }

    fn values(&self, name: &str) -> Vec<f32> {
        let (shape, start) = &self.tensors[name];
        let bytes = self.bytes[*start..].as_chunks().0;
        bytes[..shape.iter().product()].iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    fn mix_rows(&mut self, name: &str, rotation: &Rotation) {
        let values = self.values(name);
        let columns = values.len() / self.rows(name);
        self.change(name, |row, column, _| {
            let (first, own) = (row / MIXED * MIXED, &rotation[row % MIXED]);
            own.iter().enumerate().map(|(at, share)| share * values[(first + at) * columns + column]).sum()
        });
    }

    fn mix_columns(&mut self, name: &str, rotation: &Rotation) {
        let values = self.values(name);
        let columns = values.len() / self.rows(name);
        self.change(name, |row, column, _| {
            let (first, own) = (column / MIXED * MIXED, &rotation[column % MIXED]);
            own.iter().enumerate().map(|(at, share)| share * values[row * columns + first + at]).sum()
        });
    }

    fn divide_columns(&mut self, layer: &str, factors: &[f32]) {
        self.change(&format!("{layer}.weight"), |_, column, value| value / factors[column]);
    }
}

/// Neighbors that a rotation mixes: no head has fewer.
pub const MIXED: usize = 4;

type Rotation = [[f32; MIXED]; MIXED];

/// Random rows made orthogonal one after the other (Gram and Schmidt).
fn rotation(seed: u64) -> Rotation {
    let random = noise(seed, &[MIXED, MIXED]).to_vec2::<f32>().unwrap();
    let mut rows: Rotation = std::array::from_fn(|row| std::array::from_fn(|column| random[row][column]));
    let dot = |a: &[f32; MIXED], b: &[f32; MIXED]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    for at in 0..MIXED {
        for before in 0..at {
            let share = dot(&rows[at], &rows[before]);
            rows[at] = std::array::from_fn(|column| rows[at][column] - share * rows[before][column]);
        }
        let length = dot(&rows[at], &rows[at]).sqrt();
        rows[at] = rows[at].map(|value| value / length);
    }
    rows
}

/// `checkpoint` in f32 with outliers, as the file `path`.
pub fn plant(checkpoint: &Checkpoint, place: Place, spread: Spread, seed: u64, path: &Path) -> Checkpoint {
    checkpoint.write_native(path, Storage::Float(FloatType::F32)).unwrap();
    let mut floats = Floats::read(path);
    let mut blocks: Vec<String> = floats
        .tensors
        .keys()
        .filter(|name| name.starts_with("unet.") && name.contains(".transformer_blocks."))
        .filter_map(|name| name.strip_suffix(".norm1.weight"))
        .map(str::to_owned)
        .collect();
    blocks.sort();
    assert!(!blocks.is_empty());
    let mut seeds = 1000 * seed..;
    let mut factors = |count: usize| spread.factors(seeds.next().unwrap(), count);
    let is = |wanted: Place| place == wanted || place == Place::All;
    for block in &blocks {
        let at = |layer: &str| format!("{block}.{layer}");
        if is(Place::Norm) {
            for (norm, readers) in [
                ("norm1", &["attn1.to_q", "attn1.to_k", "attn1.to_v"][..]),
                ("norm2", &["attn2.to_q"]),
                ("norm3", &["ff.net.0.proj"]),
            ] {
                let factors = factors(floats.rows(&at(&format!("{norm}.weight"))));
                floats.multiply_rows(&at(norm), &factors);
                readers.iter().for_each(|reader| floats.divide_columns(&at(reader), &factors));
            }
        }
        for attention in ["attn1", "attn2"] {
            let at = |layer: &str| format!("{block}.{attention}.{layer}");
            if is(Place::Value) {
                let factors = factors(floats.rows(&at("to_v.weight")));
                floats.multiply_rows(&at("to_v"), &factors);
                floats.divide_columns(&at("to_out.0"), &factors);
            }
            if place == Place::Rotated {
                let factors = factors(floats.rows(&at("to_v.weight")));
                floats.multiply_rows(&at("to_v"), &factors);
                floats.divide_columns(&at("to_out.0"), &factors);
                let rotation = rotation(seed);
                floats.mix_rows(&at("to_v.weight"), &rotation);
                floats.mix_columns(&at("to_out.0.weight"), &rotation);
            }
            if is(Place::QueryKey) {
                let factors = factors(floats.rows(&at("to_q.weight")));
                let inverse: Vec<f32> = factors.iter().map(|factor| 1.0 / factor).collect();
                floats.multiply_rows(&at("to_q"), &factors);
                floats.multiply_rows(&at("to_k"), &inverse);
            }
        }
        if is(Place::Gated) {
            let factors = factors(floats.rows(&at("ff.net.0.proj.weight")) / 2);
            floats.multiply_rows(&at("ff.net.0.proj"), &factors);
            floats.divide_columns(&at("ff.net.2"), &factors);
        }
    }
    if is(Place::Text) {
        let factors = factors(floats.rows("text_encoder.final_layer_norm.weight"));
        floats.multiply_rows("text_encoder.final_layer_norm", &factors);
        for block in &blocks {
            for reader in ["attn2.to_k", "attn2.to_v"] {
                floats.divide_columns(&format!("{block}.{reader}"), &factors);
            }
        }
    }
    fs::write(path, &floats.bytes).unwrap();
    Checkpoint::open(path).unwrap()
}
