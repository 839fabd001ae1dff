//! Weights as int8 with one scale per output; activations are quantized by the kernels, as they come.

pub mod policy;

use anyhow::{Result, ensure};

/// Symmetric int8 weights: `scales[o] * values[o][..]`.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedWeight {
    /// Row-major, outputs first; -127 to 127.
    pub values: Vec<i8>,
    /// One for each output.
    pub scales: Vec<f32>,
}

impl QuantizedWeight {
    /// Rounds `[outputs, ..]` so that each output's largest weight is 127 steps.
    ///
    /// # Errors
    /// When a weight is not a finite number.
    pub fn round(weight: &[f32], outputs: usize) -> Result<Self> {
        ensure!(weight.iter().all(|value| value.is_finite()), "a weight is not a finite number");
        let per_output = weight.len() / outputs;
        let mut quantized =
            Self { values: Vec::with_capacity(weight.len()), scales: Vec::with_capacity(outputs) };
        for row in weight.chunks_exact(per_output) {
            let largest = row.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
            quantized.scales.push(scale);
            quantized.values.extend(row.iter().map(|value| (value / scale).round() as i8));
        }
        Ok(quantized)
    }

    pub fn dequantize(&self) -> Vec<f32> {
        let per_output = self.values.len() / self.scales.len().max(1);
        let rows = self.values.chunks_exact(per_output.max(1)).zip(&self.scales);
        rows.flat_map(|(row, scale)| row.iter().map(move |value| f32::from(*value) * scale)).collect()
    }
}

/// Weights in the precision they run in.
#[derive(Debug, Clone)]
pub enum Weight {
    Float(Vec<f32>),
    Int8(QuantizedWeight),
}
