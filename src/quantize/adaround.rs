//! Learned rounding by descent: whether each weight goes up or down is relaxed to a number between, found by gradients.
//!
//! AdaRound (Nagel et al. 2020): with moments H of the inputs the error E of the weights costs E H E^T; a regularizer
//! with a falling exponent drives every weight to one of its two neighbors on the grid. The paper's batches of inputs
//! are replaced by their moments, so that each step sees all of them.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::cholesky::{Half, mirror};
use super::grid::Grid;
use super::gridded::{Gridded, checked_scales, within_pair};
use super::moments::{Finished, Part};
use crate::kernels::{Epilogue, Gather, Isa, PackedF32};

/// Steps of the descent.
const STEPS: usize = 500;

/// Of them, how many come before the regularizer.
const FREE: usize = STEPS / 5;

/// How far Adam goes at the most, of the relaxed variables, whose range is about 5.
const RATE: f32 = 0.03;

/// What a weight half way costs, in parts of what rounding costs a weight on average: first and last. With less of it
/// many weights are still between their neighbors at the end.
const PULL: (f32, f32) = (0.1, 5.0);

/// The regularizer's exponent, first and last. The paper begins with 20, and has twenty times as many steps.
const EXPONENTS: (f32, f32) = (8.0, 2.0);

/// The stretched sigmoid's ends (the paper's): 0 and 1 are reached.
const ENDS: (f32, f32) = (-0.1, 1.1);

/// Adam's means of gradients and of their squares.
const MEANS: (f32, f32) = (0.9, 0.999);

/// The moments of a layer's inputs, to be multiplied with errors.
pub struct Relaxation {
    inputs: usize,
    taps: usize,
    squares: Vec<f32>,
    parts: Vec<Products>,
}

/// Of some columns.
struct Products {
    first: usize,
    side: usize,
    /// `[side][side]`, in parts of the mean of the diagonal.
    packed: PackedF32,
}

impl Relaxation {
    /// # Errors
    /// When the moments are not finite.
    pub fn of(moments: Finished) -> Result<Self> {
        let Finished { isa, inputs, taps, rows, squares, parts, .. } = moments;
        let parts = parts.into_iter().map(|part| Products::of(isa, part, rows, &squares));
        Ok(Self { inputs, taps, parts: parts.collect::<Result<_>>()?, squares })
    }

    /// Rounds `weights`, `[rows][inputs][taps]`, to the grid.
    ///
    /// # Errors
    /// When there are not as many columns.
    pub fn round(&self, grid: Grid, weights: &[f32]) -> Result<Gridded> {
        let columns = self.squares.len();
        let scales = checked_scales(grid, weights, &self.squares, self.taps)?;
        let mut values = vec![0; weights.len()];
        for part in &self.parts {
            self.round_part(part, grid, weights, &scales, &mut values);
        }
        let rows = values.par_chunks_exact_mut(columns);
        rows.for_each(|values| {
            for at in 0..columns {
                // The first of a pair is decided before the second.
                let later = grid.partner(at, self.inputs, self.taps).is_some_and(|partner| partner > at);
                if !later {
                    let value = f32::from(values[at]);
                    values[at] = within_pair(grid, value, at, self.inputs, self.taps, |at| values[at]) as i8;
                }
            }
        });
        Ok(Gridded { grid, inputs: self.inputs, taps: self.taps, values, scales })
    }

    fn round_part(&self, part: &Products, grid: Grid, weights: &[f32], scales: &[f32], values: &mut [i8]) {
        let (columns, side) = (self.squares.len(), part.side);
        let rows = weights.len() / columns;
        let of_row = scales.len() / rows.max(1);
        let range = part.first..part.first + side;
        let step = |row: usize, at: usize| scales[row * of_row + grid.scale_of(part.first + at, self.taps)];
        let mut relaxed: Vec<Relaxed> = (0..rows)
            .into_par_iter()
            .map(|row| Relaxed::new(grid, &weights[row * columns..][range.clone()], |at| step(row, at)))
            .collect();
        let (mut errors, mut products) = (vec![0.0; rows * side], vec![0.0; rows * side]);
        for number in 0..STEPS {
            let errors_of = errors.par_chunks_exact_mut(side).zip(&relaxed);
            errors_of.for_each(|(errors, relaxed)| relaxed.write_errors(errors));
            part.packed.apply(&errors, &Gather::identity(rows), &Epilogue::default(), &mut products);
            let gradients = products.par_chunks_exact(side).zip(&mut relaxed);
            gradients.for_each(|(products, relaxed)| relaxed.descend(products, number));
        }
        let written = values.par_chunks_exact_mut(columns).zip(&relaxed);
        written.for_each(|(values, relaxed)| relaxed.write_values(&mut values[range.clone()]));
    }
}

impl Products {
    fn of(isa: Isa, part: Part, rows: usize, squares: &[f32]) -> Result<Self> {
        let Part { columns, mut products } = part;
        let (first, side) = (columns.start, columns.len());
        let mean = squares[columns].iter().map(|square| f64::from(*square)).sum::<f64>() / side.max(1) as f64;
        ensure!(mean.is_finite(), "a layer reads NaN or infinite values");
        // Where nothing was ever read there is nothing to descend, and the regularizer alone goes to the nearest.
        let factor = if mean > 0.0 { (1.0 / (mean * rows.max(1) as f64)) as f32 } else { 0.0 };
        products.par_iter_mut().for_each(|product| *product *= factor);
        mirror(&mut products, side, Half::Lower);
        Ok(Self { first, side, packed: PackedF32::pack(&products, side, 1, side, isa) })
    }
}

/// A row's weights between their neighbors.
struct Relaxed {
    weights: Vec<f32>,
    /// Of each weight.
    steps: Vec<f32>,
    /// The neighbor below, in steps, such that the one above is on the grid too.
    below: Vec<f32>,
    variables: Vec<f32>,
    /// What the variables stand for, of a step each. Those that have come to 0 or 1 stay there.
    shares: Vec<f32>,
    means: Vec<f32>,
    squares: Vec<f32>,
    /// What rounding costs a weight on average, where all inputs were alike.
    unit: f32,
}

impl Relaxed {
    fn new(grid: Grid, weights: &[f32], step: impl Fn(usize) -> f32) -> Self {
        let steps: Vec<f32> = (0..weights.len()).map(step).collect();
        let (least, largest) = grid.limits();
        let in_steps = |(weight, step): (&f32, &f32)| if *step == 0.0 { 0.0 } else { weight / step };
        let wanted: Vec<f32> = weights.iter().zip(&steps).map(in_steps).collect();
        let below: Vec<f32> =
            wanted.iter().map(|wanted| wanted.floor().clamp(least, largest - 1.0)).collect();
        let start = |(wanted, below): (&f32, &f32)| (wanted - below).clamp(0.01, 0.99);
        let shares: Vec<f32> = wanted.iter().zip(&below).map(start).collect();
        let unit = steps.iter().map(|step| step * step).sum::<f32>() / (12.0 * steps.len().max(1) as f32);
        Self {
            variables: shares.iter().map(|share| inverse(*share)).collect(),
            shares,
            means: vec![0.0; weights.len()],
            squares: vec![0.0; weights.len()],
            weights: weights.to_vec(),
            steps,
            below,
            unit: if unit > 0.0 { unit } else { 1.0 },
        }
    }

    /// Those of the weights as they are at the moment.
    fn write_errors(&self, errors: &mut [f32]) {
        for (at, error) in errors.iter_mut().enumerate() {
            *error = self.steps[at] * (self.below[at] + self.shares[at]) - self.weights[at];
        }
    }

    /// One of Adam's steps, by the errors' products with the moments.
    fn descend(&mut self, products: &[f32], number: usize) {
        let time = number as i32 + 1;
        let corrections = (1.0 - MEANS.0.powi(time), 1.0 - MEANS.1.powi(time));
        let annealed = number.checked_sub(FREE).map(|number| number as f32 / (STEPS - FREE) as f32);
        for (at, product) in products.iter().enumerate() {
            let share = self.shares[at];
            if share == 0.0 || share == 1.0 {
                continue;
            }
            let mut gradient = 2.0 * self.steps[at] * product / self.unit;
            if let Some(done) = annealed {
                let between = |(first, last): (f32, f32)| first + (last - first) * done;
                let (exponent, pull) = (between(EXPONENTS), between(PULL));
                let side = 2.0 * share - 1.0;
                gradient -= pull * 2.0 * exponent * side.abs().powf(exponent - 1.0).copysign(side);
            }
            gradient *= slope(share);
            let (mean, square) = (&mut self.means[at], &mut self.squares[at]);
            *mean = MEANS.0 * *mean + (1.0 - MEANS.0) * gradient;
            *square = MEANS.1 * *square + (1.0 - MEANS.1) * gradient * gradient;
            let size = (*square / corrections.1).sqrt() + 1e-8;
            self.variables[at] -= RATE * (*mean / corrections.0) / size;
            self.shares[at] = stretched(self.variables[at]);
        }
    }

    fn write_values(&self, values: &mut [i8]) {
        for (at, value) in values.iter_mut().enumerate() {
            let up = if self.shares[at] >= 0.5 { 1.0 } else { 0.0 };
            *value = if self.steps[at] == 0.0 { 0 } else { (self.below[at] + up) as i8 };
        }
    }
}

/// The share of a step that a variable stands for.
fn stretched(variable: f32) -> f32 {
    let sigmoid = 1.0 / (1.0 + (-variable).exp());
    (sigmoid * (ENDS.1 - ENDS.0) + ENDS.0).clamp(0.0, 1.0)
}

/// How a share between 0 and 1 changes with its variable.
fn slope(share: f32) -> f32 {
    (share - ENDS.0) * (ENDS.1 - share) / (ENDS.1 - ENDS.0)
}

/// The variable that stands for `share`.
fn inverse(share: f32) -> f32 {
    let sigmoid = (share - ENDS.0) / (ENDS.1 - ENDS.0);
    (sigmoid / (1.0 - sigmoid)).ln()
}

#[cfg(test)]
mod tests {
    use super::super::rounder::tests::{inputs, moments, noise};
    use super::*;

    #[test]
    fn every_weight_becomes_one_of_its_two_neighbors() {
        for (inputs_count, taps, rows) in [(5, 1, 30), (150, 1, 9), (37, 9, 8)] {
            let columns = inputs_count * taps;
            let weights = noise(9, rows * columns);
            let relaxation = Relaxation::of(moments(&inputs(2000, columns), inputs_count, taps)).unwrap();
            for grid in [Grid::Bytes, Grid::PairedBytes, Grid::Nibbles] {
                let learned = relaxation.round(grid, &weights).unwrap();
                let scales = grid.scales(inputs_count, taps);
                let away = weights.iter().zip(&learned.values).enumerate().map(|(at, (weight, value))| {
                    let scale = at / columns * scales + grid.scale_of(at % columns, taps);
                    (f32::from(*value) - weight / learned.scales[scale]).abs()
                });
                // But for those whose partner left no room.
                let far = away.filter(|away| *away > 1.001).count();
                assert!(far <= weights.len() / 20, "{far} of {}", weights.len());
            }
        }
    }

    #[test]
    fn shares_and_variables_are_inverse() {
        for share in [0.01, 0.3, 0.5, 0.99] {
            assert!((stretched(inverse(share)) - share).abs() < 1e-5);
            let change = stretched(inverse(share) + 1e-2) - stretched(inverse(share) - 1e-2);
            assert!((change / 2e-2 - slope(share)).abs() < 1e-3);
        }
        assert_eq!((stretched(9.0), stretched(-9.0)), (1.0, 0.0));
    }
}
