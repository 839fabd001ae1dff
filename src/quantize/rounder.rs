//! The ways in which rounding is learned, behind one interface.

use anyhow::Result;
use serde::Serialize;

use super::adaround::Relaxation;
use super::gptq::Cancellation;
use super::grid::Grid;
use super::gridded::Gridded;
use super::moments::Finished;

/// How rounding is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Learning {
    /// Weight by weight, each making good for those before it.
    Gptq,
    /// All weights at once, by descent.
    AdaRound,
}

/// What rounds the weights of layers that read the same.
pub enum Rounder {
    Gptq(Cancellation),
    AdaRound(Relaxation),
}

impl Rounder {
    /// # Errors
    /// When the moments are not finite.
    pub fn of(learning: Learning, moments: Finished) -> Result<Self> {
        Ok(match learning {
            Learning::Gptq => Self::Gptq(Cancellation::of(moments)?),
            Learning::AdaRound => Self::AdaRound(Relaxation::of(moments)?),
        })
    }

    /// Rounds `weights`, `[rows][inputs][taps]`, to the grid.
    ///
    /// # Errors
    /// When there are not as many columns, or they are not finite.
    pub fn round(&self, grid: Grid, weights: &[f32]) -> Result<Gridded> {
        match self {
            Self::Gptq(cancellation) => cancellation.round(grid, weights),
            Self::AdaRound(relaxation) => relaxation.round(grid, weights),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::moments::Moments;
    use super::*;
    use crate::kernels::Isa;

    const METHODS: [Learning; 2] = [Learning::Gptq, Learning::AdaRound];

    pub fn noise(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..count).map(|_| next() + next() + next()).collect()
    }

    /// Inputs whose neighbors are alike.
    pub fn inputs(rows: usize, columns: usize) -> Vec<f32> {
        let mut values = noise(5, rows * columns);
        for row in values.chunks_exact_mut(columns) {
            for at in 1..columns {
                row[at] = 0.9 * row[at - 1] + 0.3 * row[at] + 0.02;
            }
        }
        values
    }

    pub fn moments(values: &[f32], inputs: usize, taps: usize) -> Finished {
        let columns = inputs * taps;
        let mut moments = Moments::new(Isa::best(), inputs, taps);
        moments
            .add(values.len() / columns, |row, to| to.copy_from_slice(&values[row * columns..][..columns]));
        moments.finish()
    }

    /// The squared error of a layer's outputs, by definition.
    pub fn output_error(inputs: &[f32], weights: &[f32], rounded: &[f32], columns: usize) -> f64 {
        let errors: Vec<f32> = weights.iter().zip(rounded).map(|(a, b)| a - b).collect();
        let mut sum = 0.0;
        for input in inputs.chunks_exact(columns) {
            for errors in errors.chunks_exact(columns) {
                let output: f64 = input.iter().zip(errors).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                sum += output * output;
            }
        }
        sum
    }

    #[test]
    fn outputs_come_nearer_than_by_rounding_to_the_nearest() {
        for (inputs_count, taps, rows) in [(5, 1, 30), (150, 1, 9), (37, 9, 8)] {
            let columns = inputs_count * taps;
            let inputs = inputs(2000, columns);
            let weights = noise(9, rows * columns);
            let error = |gridded: &Gridded| output_error(&inputs, &weights, &gridded.dequantize(), columns);
            for method in METHODS {
                let moments = moments(&inputs, inputs_count, taps);
                let squares = moments.squares.clone();
                let rounder = Rounder::of(method, moments).unwrap();
                for grid in [Grid::Bytes, Grid::PairedBytes, Grid::Nibbles] {
                    let plain = Gridded::nearest(grid, &weights, &squares, taps);
                    let learned = rounder.round(grid, &weights).unwrap();
                    assert_eq!(plain.scales, learned.scales);
                    let gain = 10.0 * (error(&plain) / error(&learned)).log10();
                    let least = if columns > 100 { 5.0 } else { 0.5 };
                    assert!(gain > least, "{method:?} {grid:?} {columns}: {gain} dB");
                }
            }
        }
    }

    #[test]
    fn pairs_of_bytes_stay_small() {
        let (columns, rows) = (64, 20);
        let weights: Vec<f32> = noise(3, rows * columns).iter().map(|weight| weight.abs().sqrt()).collect();
        let largest = |gridded: &Gridded| {
            let pairs = gridded.values.chunks(2).map(|pair| i32::from(pair[0]) + i32::from(pair[1]));
            pairs.map(i32::abs).max().unwrap()
        };
        let inputs = inputs(500, columns);
        for method in METHODS {
            let rounder = Rounder::of(method, moments(&inputs, columns, 1)).unwrap();
            assert!(largest(&rounder.round(Grid::Bytes, &weights).unwrap()) > 200);
            assert!(largest(&rounder.round(Grid::PairedBytes, &weights).unwrap()) <= 128, "{method:?}");
        }
        let squares = moments(&inputs, columns, 1).squares;
        assert!(largest(&Gridded::nearest(Grid::PairedBytes, &weights, &squares, 1)) <= 128);
    }

    #[test]
    fn inputs_that_say_nothing_are_no_trouble() {
        let weights = noise(2, 12);
        let plain = Gridded::nearest(Grid::Bytes, &weights, &[1.0; 4], 1);
        for method in METHODS {
            for inputs in [&[][..], &[0.0; 40]] {
                let rounder = Rounder::of(method, moments(inputs, 4, 1)).unwrap();
                assert_eq!(rounder.round(Grid::Bytes, &weights).unwrap(), plain, "{method:?}");
            }
            assert!(Rounder::of(method, moments(&[f32::NAN; 4], 4, 1)).is_err());
            let rounder = Rounder::of(method, moments(&[1.0; 4], 4, 1)).unwrap();
            assert!(rounder.round(Grid::Bytes, &weights[..3]).is_err());
            let zeros = rounder.round(Grid::Nibbles, &[0.0; 8]).unwrap();
            assert!(zeros.values.iter().all(|value| *value == 0), "{method:?}");
        }
    }
}
