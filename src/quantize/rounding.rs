//! Rounding of float weights to int8 with one scale per output channel, and how much that loses.

use std::iter::Sum;

use anyhow::{Result, ensure};
use rayon::prelude::*;

/// Values go from -127 to 127: symmetric, so that -128 never occurs.
const LIMIT: f32 = 127.0;

/// Weights of one layer: that of output o and input i is `scales[o] * columns[i] * values[o][i]`.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedWeight {
    /// In the float weights' shape, row-major, `[out, ..]`; each from -127 to 127.
    pub values: Vec<i8>,
    /// `[out]`, finite, not negative.
    pub scales: Vec<f32>,
    /// `[in]`, finite and positive, of linear layers whose inputs differ much in size; ones if absent.
    pub columns: Option<Vec<f32>>,
}

impl QuantizedWeight {
    /// Rounds `weight`, `[outputs, ..]`, to the nearest multiples of each output's scale.
    ///
    /// The scale is the largest magnitude divided by 127, for which the error of a weight is at most half the
    /// scale. Searching a smaller one, which clips, was measured to bring less than 0.1 dB on any layer.
    ///
    /// # Errors
    /// When a weight is infinite or NaN, or `outputs` doesn't divide their count.
    pub fn round(weight: &[f32], outputs: usize) -> Result<Self> {
        let scales = scales(weight, outputs)?;
        Ok(Self { values: round_with_scales(weight, &scales), scales, columns: None })
    }

    /// The same for multiples of each output's scale and each input's factor.
    ///
    /// # Errors
    /// As [`Self::round`], and when there are not as many factors as inputs.
    pub fn round_with_columns(weight: &[f32], outputs: usize, columns: &[f32]) -> Result<Self> {
        let mut weight = weight.to_vec();
        divide_columns(&mut weight, columns)?;
        Ok(Self { columns: Some(columns.to_vec()), ..Self::round(&weight, outputs)? })
    }

    /// The weights these stand for, in the same order.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut weight = vec![0.0; self.values.len()];
        let filter = filter_len(self.values.len(), self.scales.len());
        let filters = weight.par_chunks_mut(filter).zip(self.values.par_chunks(filter));
        filters.zip(&self.scales).for_each(|((weight, values), &scale)| {
            for (weight, &value) in weight.iter_mut().zip(values) {
                *weight = scale * f32::from(value);
            }
            for (weight, column) in weight.iter_mut().zip(self.columns.iter().flatten()) {
                *weight *= column;
            }
        });
        weight
    }
}

/// The scale of each output of `weight`, `[outputs, ..]`: largest magnitude / 127, or zero for all zeros.
///
/// # Errors
/// As [`QuantizedWeight::round`].
pub fn scales(weight: &[f32], outputs: usize) -> Result<Vec<f32>> {
    ensure!(
        outputs > 0 && weight.len().is_multiple_of(outputs),
        "{} weights are not rows for {outputs} outputs",
        weight.len()
    );
    let scales: Vec<f32> = weight
        .par_chunks(filter_len(weight.len(), outputs))
        .map(|filter| {
            // `f32::max` would overlook NaN.
            let largest = filter.iter().fold(
                0.0,
                |largest: f32, value| {
                    if value.abs() <= largest { largest } else { value.abs() }
                },
            );
            if filter.iter().any(|value| value.is_nan()) { f32::NAN } else { largest / LIMIT }
        })
        .collect();
    let unusable = scales.iter().position(|scale| !scale.is_finite());
    ensure!(unusable.is_none(), "weights of output {} are infinite or NaN", unusable.unwrap_or_default());
    Ok(if weight.is_empty() { vec![0.0; outputs] } else { scales })
}

/// `weight`, `[out, ..]`, as the nearest multiples of `scales`, `[out]`, ties to even; what lies beyond 127 of
/// them becomes 127.
pub fn round_with_scales(weight: &[f32], scales: &[f32]) -> Vec<i8> {
    let mut values = vec![0; weight.len()];
    let filter = filter_len(weight.len(), scales.len());
    let filters = values.par_chunks_mut(filter).zip(weight.par_chunks(filter));
    filters.zip(scales).for_each(|((values, weight), &scale)| {
        // The reciprocal of a denormal scale overflows, so dividing is not the same as multiplying by it.
        if scale > 0.0 {
            for (value, weight) in values.iter_mut().zip(weight) {
                *value = (weight / scale).round_ties_even().clamp(-LIMIT, LIMIT) as i8;
            }
        }
    });
    values
}

/// Weights per output; 1 where there are none, since chunks can't be empty.
fn filter_len(weights: usize, outputs: usize) -> usize {
    (weights / outputs.max(1)).max(1)
}

/// Divides weights, one row after the other, by the factors of their columns.
///
/// # Errors
/// When rows are of another length.
pub fn divide_columns(values: &mut [f32], factors: &[f32]) -> Result<()> {
    let count = values.len();
    ensure!(
        !factors.is_empty() && count.is_multiple_of(factors.len()),
        "{} factors for the columns of {count} weights",
        factors.len()
    );
    values.par_chunks_exact_mut(factors.len()).for_each(|row| {
        for (value, factor) in row.iter_mut().zip(factors) {
            *value /= factor;
        }
    });
    Ok(())
}

/// Energies of a signal and of its error, added up over as many parts as there are.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Energy {
    signal: f64,
    error: f64,
}

impl Energy {
    /// Adds values and what they became.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(&mut self, reference: &[f32], approximation: &[f32]) {
        assert_eq!(reference.len(), approximation.len());
        for (reference, approximation) in reference.iter().zip(approximation) {
            let reference = f64::from(*reference);
            self.signal += reference * reference;
            self.error += (reference - f64::from(*approximation)).powi(2);
        }
    }

    /// Signal to quantization noise in dB, `10 log10(signal / error)`: infinite without an error, negative
    /// where the error is the larger one.
    pub fn sqnr(self) -> f64 {
        if self.error == 0.0 { f64::INFINITY } else { 10.0 * (self.signal / self.error).log10() }
    }

    /// The error in parts of the signal; nothing of nothing is none.
    pub fn part(self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.signal }
    }
}

impl Sum for Energy {
    fn sum<I: Iterator<Item = Self>>(energies: I) -> Self {
        energies.fold(Self::default(), |a, b| Self { signal: a.signal + b.signal, error: a.error + b.error })
    }
}

/// Signal to quantization noise of `approximation` in dB; see [`Energy::sqnr`].
///
/// # Panics
/// If the lengths differ.
pub fn sqnr(reference: &[f32], approximation: &[f32]) -> f64 {
    let mut energy = Energy::default();
    energy.add(reference, approximation);
    energy.sqnr()
}
