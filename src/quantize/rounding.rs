//! Rounding of float weights to int8 with one scale per output channel, and how much that loses.

use std::iter::Sum;

use anyhow::{Result, ensure};
use rayon::prelude::*;

use crate::kernels::pairs::{self, LARGEST_PAIR};

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

/// How products of bytes are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    /// One by one, however large they are.
    Alone,
    /// Those of two neighboring inputs in 16 bits first.
    InPairs {
        /// Positions of the kernel.
        taps: usize,
    },
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

    /// The same of `[outputs, inputs, taps]` for products that are summed as `sums` says: in pairs, the values of two
    /// neighboring inputs at one tap make 128 at the most.
    ///
    /// # Errors
    /// As [`Self::round`].
    pub fn round_for(weight: &[f32], outputs: usize, sums: Sums) -> Result<Self> {
        let Sums::InPairs { taps } = sums else { return Self::round(weight, outputs) };
        let mut scales = scales(weight, outputs)?;
        let filter = filter_len(weight.len(), outputs);
        weight.par_chunks(filter).zip(&mut scales).filter(|(_, scale)| **scale > 0.0).for_each(
            |(filter, scale)| {
                let limit = f32::from(LARGEST_PAIR) * *scale;
                let pairs =
                    filter.chunks_exact(2 * taps).flat_map(|pair| pair[..taps].iter().zip(&pair[taps..]));
                // Two of different signs make less.
                let too_large = pairs.map(|(a, b)| (a + b).abs()).filter(|sum| *sum > limit);
                let too_large: Vec<f32> = too_large.map(|sum| sum / *scale).collect();
                *scale /= pairs::factor(filter.len(), &too_large, false);
            },
        );
        let mut values = round_with_scales(weight, &scales);
        values.par_chunks_mut(filter).for_each(|filter| match taps {
            1 => pairs::cut(filter),
            _ => {
                for pair in filter.chunks_exact_mut(2 * taps) {
                    let (first, second) = pair.split_at_mut(taps);
                    for (a, b) in first.iter_mut().zip(second) {
                        [*a, *b] = pairs::cut_pair([*a, *b]);
                    }
                }
            }
        });
        Ok(Self { values, scales, columns: None })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Products of two normal values: some are much larger than most.
    fn weights(count: usize) -> Vec<f32> {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let mut normal = || (0..6).map(|_| next()).sum::<f32>();
        (0..count).map(|_| normal() * normal()).collect()
    }

    #[test]
    fn pairs_fit_into_16_bits_and_lose_less_than_bytes_made_smaller() {
        const OUTPUTS: usize = 20;
        for (inputs, taps) in [(64, 1), (2001, 1), (37, 9), (1, 4)] {
            let columns = inputs * taps;
            let weight = weights(OUTPUTS * columns);
            let rounded = QuantizedWeight::round_for(&weight, OUTPUTS, Sums::InPairs { taps }).unwrap();
            let pairs = |values: &[f32]| -> Vec<f32> {
                let rows = values.chunks_exact(columns);
                let at = |row: &[f32], input: usize, tap: usize| row[input * taps + tap];
                rows.map(|row| {
                    let pairs =
                        (0..inputs - inputs % 2).step_by(2).flat_map(|i| (0..taps).map(move |tap| (i, tap)));
                    let sums = pairs.map(|(i, tap)| (at(row, i, tap) + at(row, i + 1, tap)).abs());
                    sums.fold(0.0, f32::max)
                })
                .collect()
            };
            let values: Vec<f32> = rounded.values.iter().map(|value| f32::from(*value)).collect();
            assert!(pairs(&values).into_iter().all(|largest| largest <= 128.0), "{inputs} {taps}");

            // As bytes first, then smaller ones without cuts.
            let plain = QuantizedWeight::round(&weight, OUTPUTS).unwrap();
            let bytes: Vec<f32> = plain.values.iter().map(|value| f32::from(*value)).collect();
            let scales: Vec<f32> = pairs(&bytes)
                .into_iter()
                .zip(&plain.scales)
                .map(|(pair, scale)| scale * (pair / 127.0).max(1.0))
                .collect();
            let values = round_with_scales(&plain.dequantize(), &scales);
            let twice = QuantizedWeight { values, scales, columns: None };
            let [plain, found, twice] =
                [plain, rounded, twice].map(|weights| sqnr(&weight, &weights.dequantize()));
            assert!(found <= plain && found >= twice, "{inputs} {taps}: {plain} {found} {twice}");
            assert!(columns < 60 || found > twice + 0.5, "{inputs} {taps}: {plain} {found} {twice}");
        }
        let zeros = QuantizedWeight::round_for(&[0.0; 8], 2, Sums::InPairs { taps: 1 }).unwrap();
        assert_eq!((zeros.values, zeros.scales), (vec![0; 8], vec![0.0; 2]));
        assert!(QuantizedWeight::round_for(&[f32::NAN; 8], 2, Sums::InPairs { taps: 1 }).is_err());
    }
}
