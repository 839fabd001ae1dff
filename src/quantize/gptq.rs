//! Learned rounding: each weight makes good for what rounding the ones before it has done to the layer's output.
//!
//! GPTQ (Frantar et al. 2022) in the form of successive cancellation, which gives the same: with moments H = L L^T of
//! the inputs the error E of the weights costs |E L|^2, and as L is triangular, each column of E L depends on the
//! columns of E that have been decided and on one more. Columns are decided from the last to the first.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::cholesky::{self, BLOCK, Half, mirror};
use super::grid::Grid;
use super::gridded::{Gridded, checked_scales, within_pair};
use super::moments::{Finished, Part};
use crate::kernels::Isa;

/// Of the mean of the diagonal that is added to it, so that what was never seen costs something too.
const DAMPING: f64 = 0.01;

/// What a layer's inputs say about which errors cancel.
pub struct Cancellation {
    isa: Isa,
    inputs: usize,
    taps: usize,
    squares: Vec<f32>,
    parts: Vec<Triangle>,
}

/// L of some columns, which are in an order of their own: those that matter most come last.
struct Triangle {
    /// The layer's columns in this order.
    order: Vec<usize>,
    /// `[side][side]`, zeros above the diagonal.
    lower: Vec<f32>,
}

impl Cancellation {
    /// # Errors
    /// When the moments are not finite.
    pub fn of(moments: Finished) -> Result<Self> {
        let Finished { isa, inputs, taps, squares, parts, .. } = moments;
        let parts = parts.into_iter().map(|part| Triangle::of(isa, part)).collect::<Result<_>>()?;
        Ok(Self { isa, inputs, taps, squares, parts })
    }

    /// Rounds `weights`, `[rows][inputs][taps]`, to the grid.
    ///
    /// # Errors
    /// When there are not as many columns.
    pub fn round(&self, grid: Grid, weights: &[f32]) -> Result<Gridded> {
        let scales = checked_scales(grid, weights, &self.squares, self.taps)?;
        let mut values = vec![0; weights.len()];
        for part in &self.parts {
            self.round_part(part, grid, weights, &scales, &mut values);
        }
        Ok(Gridded { grid, inputs: self.inputs, taps: self.taps, values, scales })
    }

    fn round_part(&self, part: &Triangle, grid: Grid, weights: &[f32], scales: &[f32], values: &mut [i8]) {
        let (columns, side) = (self.squares.len(), part.order.len());
        let rows = weights.len() / columns;
        let of_row = scales.len() / rows;
        let mut errors = vec![0.0; rows * side];
        for start in (0..side).step_by(BLOCK).rev() {
            let end = (start + BLOCK).min(side);
            // What has been decided adds to these columns' outputs; undecided errors are zero.
            let mut outputs = cholesky::products(self.isa, &errors, &part.columns(start..end), side);
            let rows = errors.par_chunks_exact_mut(side).zip(outputs.par_chunks_exact_mut(end - start));
            let rows = rows.zip(weights.par_chunks_exact(columns).zip(values.par_chunks_exact_mut(columns)));
            rows.zip(scales.par_chunks_exact(of_row)).for_each(
                |(((errors, outputs), (weights, values)), scales)| {
                    for place in (start..end).rev() {
                        let at = part.order[place];
                        let line = &part.lower[place * side..][start..=place];
                        let (outputs, output) = outputs.split_at_mut(place - start);
                        let scale = scales[grid.scale_of(at, self.taps)];
                        let wanted = weights[at] + output[0] / line[place - start];
                        let value = grid.nearest(wanted, scale);
                        let value = within_pair(grid, value, at, self.inputs, self.taps, |at| values[at]);
                        values[at] = value as i8;
                        let error = weights[at] - value * scale;
                        errors[place] = error;
                        for (output, factor) in outputs.iter_mut().zip(line) {
                            *output += error * factor;
                        }
                    }
                },
            );
        }
    }
}

impl Triangle {
    fn of(isa: Isa, part: Part) -> Result<Self> {
        let Part { columns, mut products } = part;
        let side = columns.len();
        let diagonal: Vec<f32> = (0..side).map(|at| products[at * side + at]).collect();
        let mean = diagonal.iter().map(|value| f64::from(*value)).sum::<f64>() / side.max(1) as f64;
        ensure!(mean.is_finite(), "a layer reads NaN or infinite values");
        let mut order: Vec<usize> = (0..side).collect();
        order.sort_by(|a, b| diagonal[*a].total_cmp(&diagonal[*b]).then(b.cmp(a)));
        mirror(&mut products, side, Half::Lower);
        reorder(&mut products, side, &order);
        let mut damping = DAMPING;
        loop {
            let added = if mean > 0.0 { (damping * mean) as f32 } else { 1.0 };
            order
                .iter()
                .enumerate()
                .for_each(|(at, from)| products[at * side + at] = diagonal[*from] + added);
            if cholesky::factor(isa, &mut products, side) {
                break;
            }
            // Sums in f32 may miss being positive by their rounding. What is above the diagonal is still there.
            damping *= 10.0;
            ensure!(damping <= 1.0, "a layer's inputs have no usable moments");
            mirror(&mut products, side, Half::Upper);
        }
        let mut lower = products;
        lower.par_chunks_exact_mut(side.max(1)).enumerate().for_each(|(at, row)| row[at + 1..].fill(0.0));
        Ok(Self { order: order.into_iter().map(|at| columns.start + at).collect(), lower })
    }

    /// Some columns of L, `[columns][side]`.
    fn columns(&self, columns: std::ops::Range<usize>) -> Vec<f32> {
        let side = self.order.len();
        let mut turned = vec![0.0; columns.len() * side];
        turned.par_chunks_exact_mut(side).zip(columns).for_each(|(to, column)| {
            for (to, row) in to.iter_mut().zip(self.lower.chunks_exact(side)).skip(column) {
                *to = row[column];
            }
        });
        turned
    }
}

/// Brings rows and columns into `order`, in place.
fn reorder(matrix: &mut [f32], side: usize, order: &[usize]) {
    matrix.par_chunks_exact_mut(side.max(1)).for_each(|row| {
        let old = row.to_vec();
        row.iter_mut().zip(order).for_each(|(to, from)| *to = old[*from]);
    });
    // Each row of a cycle goes where the one before it was.
    let mut done = vec![false; side];
    for first in 0..side {
        let mut at = first;
        while !std::mem::replace(&mut done[at], true) {
            let from = order[at];
            if from != first {
                let (low, high) = (at.min(from), at.max(from));
                let (left, right) = matrix.split_at_mut(high * side);
                left[low * side..][..side].swap_with_slice(&mut right[..side]);
            }
            at = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rounder::tests::{inputs, moments, noise, output_error};
    use super::*;

    /// What errors of weights cost the outputs, by the triangles.
    fn cost(cancellation: &Cancellation, errors: &[f32]) -> f64 {
        let columns = cancellation.squares.len();
        let cost = |part: &Triangle| -> f64 {
            let side = part.order.len();
            let mut ordered = vec![0.0; errors.len() / columns * side];
            ordered.par_chunks_exact_mut(side).zip(errors.par_chunks_exact(columns)).for_each(
                |(to, from)| {
                    for (to, at) in to.iter_mut().zip(&part.order) {
                        *to = from[*at];
                    }
                },
            );
            let blocks = (0..side).step_by(BLOCK).map(|start| {
                let columns = part.columns(start..(start + BLOCK).min(side));
                let outputs = cholesky::products(cancellation.isa, &ordered, &columns, side);
                outputs.iter().map(|output| f64::from(*output).powi(2)).sum::<f64>()
            });
            blocks.sum()
        };
        cancellation.parts.iter().map(cost).sum()
    }

    #[test]
    fn what_is_said_of_the_cost_is_true() {
        for (inputs_count, taps, rows) in [(5, 1, 30), (150, 1, 9), (37, 9, 8)] {
            let columns = inputs_count * taps;
            let inputs = inputs(2000, columns);
            let weights = noise(9, rows * columns);
            let cancellation = Cancellation::of(moments(&inputs, inputs_count, taps)).unwrap();
            let rounded = Gridded::nearest(Grid::Bytes, &weights, &cancellation.squares, taps).dequantize();
            let errors: Vec<f32> = weights.iter().zip(&rounded).map(|(a, b)| a - b).collect();
            let expected = output_error(&inputs, &weights, &rounded, columns);
            // But for the damping.
            let cost = cost(&cancellation, &errors);
            assert!((cost / expected - 1.0).abs() < 0.05, "{cost} {expected}");
        }
    }

    #[test]
    fn an_order_is_applied_to_rows_and_columns() {
        for order in [vec![2, 0, 1, 3], vec![0, 1, 2, 3], vec![3, 2, 1, 0], vec![1, 2, 3, 0]] {
            let matrix: Vec<f32> = (0..16).map(|at| at as f32).collect();
            let mut found = matrix.clone();
            reorder(&mut found, 4, &order);
            for row in 0..4 {
                for column in 0..4 {
                    assert_eq!(found[row * 4 + column], matrix[order[row] * 4 + order[column]], "{order:?}");
                }
            }
        }
    }

    #[test]
    fn of_columns_that_are_the_same_only_the_sum_matters() {
        let weights = noise(2, 12);
        let cancellation = Cancellation::of(moments(&[1.0; 400], 4, 1)).unwrap();
        let learned = cancellation.round(Grid::Bytes, &weights).unwrap().dequantize();
        for (row, learned) in weights.chunks(4).zip(learned.chunks(4)) {
            let error = row.iter().sum::<f32>() - learned.iter().sum::<f32>();
            assert!(error.abs() < 0.01, "{error}");
        }
    }
}
