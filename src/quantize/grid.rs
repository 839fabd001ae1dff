//! The grids that weights are rounded to: which values a weight may take, and how scales are chosen; rounding is elsewhere.

use half::f16;
use rayon::prelude::*;

/// Inputs of a group that shares a scale at four bits. A group is of neighboring inputs of one output, at one tap of
/// its kernel; the last may have fewer.
pub use crate::kernels::GROUP;

/// How a weight may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grid {
    /// From -127 to 127 times a scale for each output.
    Bytes,
    /// The same where two neighboring inputs of one sign make 128 at most, so that kernels that add two products of
    /// bytes in 16 bits take them as they are.
    PairedBytes,
    /// From -8 to 7 times a scale for each [`GROUP`], which is an f16 and may be negative, so that the largest weight of
    /// a group can take the step that one side has more. On a trained model's weights this is 1.0 dB nearer than from
    /// -7 to 7, at the same size; a zero point for each group, for 3 % more, would bring another 0.2 dB.
    Nibbles,
}

/// The most that two neighbors of one sign may make in [`Grid::PairedBytes`]: 255 times as much is below 2^15.
pub const LARGEST_PAIR: f32 = 128.0;

/// The weights of one output, `[inputs][taps]`, and how much each counts: the mean square of what it is multiplied
/// with.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    pub weights: &'a [f32],
    pub squares: &'a [f32],
    pub taps: usize,
}

impl Grid {
    /// The least and the largest value.
    pub fn limits(self) -> (f32, f32) {
        match self {
            Self::Bytes | Self::PairedBytes => (-127.0, 127.0),
            Self::Nibbles => (-8.0, 7.0),
        }
    }

    /// The value nearest to `weight` in steps of `scale`, ties to even.
    pub fn nearest(self, weight: f32, scale: f32) -> f32 {
        let (least, largest) = self.limits();
        if scale == 0.0 { 0.0 } else { (weight / scale).round_ties_even().clamp(least, largest) }
    }

    /// Writes `values`, rows of `columns` at `taps`, times their scales, `[rows][scales of a row]`.
    pub fn dequantize(self, values: &[i8], scales: &[f32], columns: usize, taps: usize) -> Vec<f32> {
        let mut weights = vec![0.0; values.len()];
        let of_row = self.scales(columns / taps, taps);
        let rows = weights.par_chunks_exact_mut(columns).zip(values.par_chunks_exact(columns));
        rows.zip(scales.par_chunks_exact(of_row)).for_each(|((weights, values), scales)| {
            for (at, (weight, value)) in weights.iter_mut().zip(values).enumerate() {
                *weight = f32::from(*value) * scales[self.scale_of(at, taps)];
            }
        });
        weights
    }

    /// How many scales a row of `inputs` times `taps` weights has.
    pub fn scales(self, inputs: usize, taps: usize) -> usize {
        match self {
            Self::Bytes | Self::PairedBytes => 1,
            Self::Nibbles => inputs.div_ceil(GROUP) * taps,
        }
    }

    /// Which of the scales is that of the weight at `at` of a row.
    pub fn scale_of(self, at: usize, taps: usize) -> usize {
        match self {
            Self::Bytes | Self::PairedBytes => 0,
            Self::Nibbles => at / taps / GROUP * taps + at % taps,
        }
    }

    /// The place of the weight that makes a pair with the one at `at` of a row of `inputs` times `taps`.
    pub fn partner(self, at: usize, inputs: usize, taps: usize) -> Option<usize> {
        if self != Self::PairedBytes {
            return None;
        }
        let (input, tap) = (at / taps, at % taps);
        let other = input ^ 1;
        (other < inputs).then_some(other * taps + tap)
    }

    /// The scales of a row that lose least to rounding and to the limits, each weight for itself.
    pub fn fit(self, row: Row<'_>) -> Vec<f32> {
        match self {
            Self::Bytes => vec![largest(row.weights.iter()) / self.limits().1],
            Self::PairedBytes => vec![fit_pairs(row)],
            Self::Nibbles => fit_groups(row),
        }
    }
}

fn largest<'a>(weights: impl Iterator<Item = &'a f32>) -> f32 {
    weights.fold(0.0, |largest: f32, weight| largest.max(weight.abs()))
}

/// A larger scale makes all errors larger, a smaller one cuts more pairs: the best of some.
fn fit_pairs(row: Row<'_>) -> f32 {
    let Row { weights, squares, taps } = row;
    let least = largest(weights.iter()) / Grid::PairedBytes.limits().1;
    let inputs = weights.len() / taps;
    let first = |at: &usize| (at / taps).is_multiple_of(2);
    let pairs: Vec<(f32, f32)> = (0..weights.len())
        .filter(first)
        .filter_map(|at| {
            let partner = Grid::PairedBytes.partner(at, inputs, taps)?;
            let sum = if weights[at] * weights[partner] > 0.0 { weights[at] + weights[partner] } else { 0.0 };
            Some((sum.abs(), squares[at].min(squares[partner])))
        })
        .collect();
    let widest = largest(pairs.iter().map(|(sum, _)| sum)) / LARGEST_PAIR;
    if widest <= least {
        return least;
    }
    let total: f32 = squares.iter().sum();
    let cost = |scale: f32| {
        let cut = |(sum, square): &(f32, f32)| (sum - LARGEST_PAIR * scale).max(0.0).powi(2) * square;
        scale * scale / 12.0 * total + pairs.iter().map(cut).sum::<f32>()
    };
    let candidates = (0..=STEPS).map(|step| least + (widest - least) * step as f32 / STEPS as f32);
    let best = candidates.map(|scale| (cost(scale), scale)).min_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or(least, |(_, scale)| scale)
}

/// Scales that are tried between two that are sensible.
const STEPS: usize = 24;

fn fit_groups(row: Row<'_>) -> Vec<f32> {
    let Row { weights, squares, taps } = row;
    let mut members = vec![Members::default(); Grid::Nibbles.scales(weights.len() / taps, taps)];
    for (at, (weight, square)) in weights.iter().zip(squares).enumerate() {
        let members = &mut members[Grid::Nibbles.scale_of(at, taps)];
        members.weights[members.count] = *weight;
        members.squares[members.count] = *square;
        members.count += 1;
    }
    members.iter().map(Members::fit).collect()
}

/// The weights of a group and how much each counts, then zeros.
#[derive(Clone, Default)]
struct Members {
    weights: [f32; GROUP],
    squares: [f32; GROUP],
    count: usize,
}

impl Members {
    /// Scales that are tried of each sign, a 32nd apart: one is for the largest weight to be the eighth step.
    const STEPS: usize = 14;

    /// What is cut at the ends is made good by finer steps between them. Never zero: a group of zeros has any scale.
    fn fit(&self) -> f32 {
        let widest = largest(self.weights.iter()) / Grid::Nibbles.limits().1;
        let magnitudes = (0..=Self::STEPS).map(|step| widest * (1.0 - step as f32 / 32.0));
        let candidates = magnitudes.flat_map(|scale| [as_f16(scale), as_f16(-scale)]);
        let usable = candidates.filter(|scale| *scale != 0.0 && scale.is_finite());
        let best = usable.map(|scale| (self.cost(scale), scale)).min_by(|a, b| a.0.total_cmp(&b.0));
        best.map_or(LEAST_SCALE, |(_, scale)| scale)
    }

    fn cost(&self, scale: f32) -> f32 {
        // A loop without branches and calls, which runs on vectors: adding 1.5 * 2^23 leaves no bits for a fraction.
        const MAGIC: f32 = 12_582_912.0;
        let (inverse, (least, largest)) = (scale.recip(), Grid::Nibbles.limits());
        let mut sums = [0.0; 8];
        let (weights, squares) = (self.weights.as_chunks::<8>().0, self.squares.as_chunks::<8>().0);
        for (weights, squares) in weights.iter().zip(squares) {
            for (at, sum) in sums.iter_mut().enumerate() {
                let steps = (weights[at] * inverse).clamp(least, largest);
                let error = weights[at] - scale * (steps + MAGIC - MAGIC);
                *sum += error * error * squares[at];
            }
        }
        sums.iter().sum()
    }
}

/// The smallest number of full precision that an f16 holds.
const LEAST_SCALE: f32 = 6.103_515_6e-5;

fn as_f16(scale: f32) -> f32 {
    f16::from_f32(scale).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_of_neighboring_inputs_at_one_tap() {
        let (inputs, taps) = (70, 9);
        assert_eq!(Grid::Nibbles.scales(inputs, taps), 27);
        let mut counts = vec![0; 27];
        for at in 0..inputs * taps {
            counts[Grid::Nibbles.scale_of(at, taps)] += 1;
        }
        assert_eq!(counts, [[32; 9], [32; 9], [6; 9]].concat());
        assert_eq!(Grid::Nibbles.scale_of(31 * 9 + 4, 9), 4);
        assert_eq!(Grid::Nibbles.scale_of(32 * 9 + 4, 9), 13);
    }

    #[test]
    fn partners_are_neighboring_inputs_at_one_tap() {
        let partner = |at| Grid::PairedBytes.partner(at, 3, 2);
        let expected = [Some(2), Some(3), Some(0), Some(1), None, None];
        assert_eq!((0..6).map(partner).collect::<Vec<_>>(), expected);
        assert_eq!(Grid::Bytes.partner(0, 3, 2), None);
    }

    #[test]
    fn scales_reach_far_enough_but_no_farther() {
        let squares = [1.0; 1000];
        let row = |weights: &[f32]| {
            let row = Row { weights, squares: &squares[..weights.len()], taps: 1 };
            [Grid::Bytes, Grid::PairedBytes, Grid::Nibbles].map(|grid| grid.fit(row)[0])
        };
        // Both large: one scale for which neither is cut is best.
        let [bytes, pairs, _] = row(&[127.0, 127.0]);
        assert_eq!(bytes, 1.0);
        assert!(pairs > 1.9 && pairs < 2.0, "{pairs}");
        // Of other signs they don't add up.
        assert_eq!(row(&[127.0, -127.0])[1], 1.0);
        // One in many is rather cut a little.
        let many: Vec<f32> =
            (0..1000).map(|at| if at == 1 { 5.0 } else { 127.0 * ((at + 1) % 2) as f32 }).collect();
        let [_, pairs, _] = row(&many);
        assert!((1.0..132.0 / 128.0).contains(&pairs), "{pairs}");
        // A single large weight is worth its reach.
        let [_, _, nibbles] = row(&[7.0, 0.0, 1.0, -2.0]);
        assert_eq!(nibbles, 1.0);
        // With the sign that gives the largest weight the further step.
        assert_eq!(row(&[8.0, 0.0, 1.0, -3.0])[2], -1.0);
        assert_eq!(row(&[-8.0, 0.0, 1.0, 3.0])[2], 1.0);
        assert_eq!(row(&[0.0; 4]), [0.0, 0.0, LEAST_SCALE]);
    }
}
