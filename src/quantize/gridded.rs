//! Weights on a grid, and rounding each to the nearest; learned rounding is elsewhere.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::grid::{Grid, LARGEST_PAIR, Row};

/// Weights on a grid: that at `at` of row o is `values[o][at]` times the scale of its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Gridded {
    pub grid: Grid,
    pub inputs: usize,
    pub taps: usize,
    /// `[rows][inputs][taps]`
    pub values: Vec<i8>,
    /// `[rows][scales of a row]`
    pub scales: Vec<f32>,
}

impl Gridded {
    /// Each of `weights`, `[rows][inputs][taps]`, to the nearest value of the grid.
    pub fn nearest(grid: Grid, weights: &[f32], squares: &[f32], taps: usize) -> Self {
        let scales = scales(grid, weights, squares, taps);
        Self::with_scales(grid, weights, squares.len() / taps, taps, scales)
    }

    /// The same where scales have been chosen.
    pub fn with_scales(grid: Grid, weights: &[f32], inputs: usize, taps: usize, scales: Vec<f32>) -> Self {
        let columns = inputs * taps;
        let mut values = vec![0; weights.len()];
        let rows = values.par_chunks_exact_mut(columns).zip(weights.par_chunks_exact(columns));
        rows.zip(scales.par_chunks_exact(grid.scales(inputs, taps))).for_each(
            |((values, weights), scales)| {
                for (at, &weight) in weights.iter().enumerate() {
                    let rounded = grid.nearest(weight, scales[grid.scale_of(at, taps)]);
                    // The first of a pair is decided before the second.
                    let value = within_pair(grid, rounded, at, inputs, taps, |at| values[at]);
                    values[at] = value as i8;
                }
            },
        );
        Self { grid, inputs, taps, values, scales }
    }

    /// The weights these stand for.
    pub fn dequantize(&self) -> Vec<f32> {
        self.grid.dequantize(&self.values, &self.scales, self.inputs * self.taps, self.taps)
    }
}

/// Of the rows of `weights`, `[rows][inputs][taps]`.
pub fn scales(grid: Grid, weights: &[f32], squares: &[f32], taps: usize) -> Vec<f32> {
    let rows = weights.par_chunks_exact(squares.len());
    rows.flat_map_iter(|weights| grid.fit(Row { weights, squares, taps })).collect()
}

/// The same of weights that are to be learned.
///
/// # Errors
/// When they are not rows of as many columns as there are `squares`, or not finite.
pub fn checked_scales(grid: Grid, weights: &[f32], squares: &[f32], taps: usize) -> Result<Vec<f32>> {
    let columns = squares.len();
    ensure!(
        columns > 0 && weights.len().is_multiple_of(columns),
        "{} weights for {columns} inputs",
        weights.len()
    );
    ensure!(weights.iter().all(|weight| weight.is_finite()), "weights are infinite or NaN");
    Ok(scales(grid, weights, squares, taps))
}

/// `value` as near as its partner, if that has been decided, lets it be.
pub fn within_pair(
    grid: Grid,
    value: f32,
    at: usize,
    inputs: usize,
    taps: usize,
    decided: impl Fn(usize) -> i8,
) -> f32 {
    let Some(partner) = grid.partner(at, inputs, taps) else { return value };
    let other = f32::from(decided(partner));
    if value * other > 0.0 { value.abs().min(LARGEST_PAIR - other.abs()).copysign(value) } else { value }
}
