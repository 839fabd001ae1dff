//! The arithmetic of equalization: how large channels are expected to be, and the factors that make them alike.

use rayon::prelude::*;

/// Rows that are summed by one thread; sums of such parts are added in their order, whatever the number of threads.
const PART: usize = 32;

/// Factors are at most this far from their geometric mean, up or down.
const FARTHEST: f64 = (1u64 << 20) as f64;

/// A linear layer's weights, `[rows, columns]`, or a vector.
#[derive(Debug, Clone)]
pub struct Matrix {
    pub values: Vec<f32>,
    pub columns: usize,
}

/// What is expected of some channels, each for itself.
#[derive(Debug, Clone)]
pub struct Channels {
    pub means: Vec<f32>,
    pub deviations: Vec<f32>,
}

impl Channels {
    /// What a norm gives: numbers of mean 0 and deviation 1 times `gain` plus `offset`.
    pub fn normed(gain: &[f32], offset: Vec<f32>) -> Self {
        Self { means: offset, deviations: gain.iter().map(|gain| gain.abs()).collect() }
    }

    /// `count` channels of which nothing is known.
    pub fn alike(count: usize) -> Self {
        Self { means: vec![0.0; count], deviations: vec![1.0; count] }
    }

    /// What a linear layer makes of these if they are independent.
    pub fn through(&self, layer: &Matrix, bias: Option<&[f32]>) -> Self {
        let row = |weights: &[f32]| {
            let (mut mean, mut variance) = (0.0, 0.0);
            for ((weight, input), deviation) in weights.iter().zip(&self.means).zip(&self.deviations) {
                mean += weight * input;
                variance += (weight * deviation) * (weight * deviation);
            }
            (mean, variance.sqrt())
        };
        let (mut means, deviations): (Vec<f32>, _) =
            layer.values.par_chunks_exact(layer.columns.max(1)).map(row).unzip();
        for (mean, bias) in means.iter_mut().zip(bias.into_iter().flatten()) {
            *mean += bias;
        }
        Self { means, deviations }
    }

    /// The first half times GELU of the second.
    pub fn gated(&self) -> Self {
        let half = self.means.len() / 2;
        let (values, gates) = (self.sizes(0..half), half..2 * half);
        let gates = gates.map(|at| relu_size(f64::from(self.means[at]), f64::from(self.deviations[at])));
        let deviations = values.into_iter().zip(gates).map(|(value, gate)| (value * gate) as f32).collect();
        Self { means: vec![0.0; half], deviations }
    }

    /// Root mean squares.
    pub fn sizes(&self, channels: std::ops::Range<usize>) -> Vec<f64> {
        let size = |at| f64::from(self.means[at]).hypot(f64::from(self.deviations[at]));
        channels.map(size).collect()
    }
}

/// The root mean square of ReLU, which is near GELU, of a normal variable.
fn relu_size(mean: f64, deviation: f64) -> f64 {
    if deviation == 0.0 {
        return mean.max(0.0);
    }
    let at = mean / deviation;
    let density = (-at * at / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let below = candle_core::cpu::erf::erf_f64(at / std::f64::consts::SQRT_2) / 2.0 + 0.5;
    ((mean * mean + deviation * deviation) * below + mean * deviation * density).max(0.0).sqrt()
}

/// How much the readers' outputs depend on each of their inputs, of these sizes: the root mean square over outputs of
/// its weight, outputs having been made equally large.
pub fn weights_sizes(readers: &[Matrix], inputs: &[f64]) -> Vec<f64> {
    let sizes: Vec<f32> = inputs.iter().map(|&input| input as f32).collect();
    let mut squares = vec![0.0; inputs.len()];
    for reader in readers {
        let parts = reader.values.par_chunks(PART * reader.columns.max(1)).map(|rows| {
            let mut squares = vec![0.0; sizes.len()];
            for row in rows.chunks_exact(sizes.len()) {
                let output = energy(row, &sizes);
                if output > 0.0 {
                    for (square, weight) in squares.iter_mut().zip(row) {
                        *square += weight * weight / output;
                    }
                }
            }
            squares
        });
        for part in parts.collect::<Vec<Vec<f32>>>() {
            for (sum, square) in squares.iter_mut().zip(part) {
                *sum += f64::from(square);
            }
        }
    }
    squares.into_iter().map(f64::sqrt).collect()
}

/// The expected square of an output whose inputs are independent. Eight sums at a time, which run on vectors.
pub fn energy(row: &[f32], inputs: &[f32]) -> f32 {
    let mut sums = [0.0; 8];
    for (row, inputs) in row.chunks(8).zip(inputs.chunks(8)) {
        for ((sum, weight), input) in sums.iter_mut().zip(row).zip(inputs) {
            *sum += (weight * input) * (weight * input);
        }
    }
    sums.iter().sum()
}

/// The share of the unevenness that goes into the weights. From 0.3 to 0.7 it makes little difference.
const SHARE: f64 = 0.4;

/// What channels are to be multiplied with, and the columns that read them divided by, so that both are about as large
/// in relation to their likes: `weights^(1 - SHARE) / inputs^SHARE` (SmoothQuant, Xiao et al. 2023; with a share of one
/// half cross-layer equalization, Nagel et al. 2019), around a geometric mean of 1.
///
/// If channels had been multiplied and columns divided by anything before, the products would be the same.
pub fn factors(inputs: &[f64], weights: &[f64]) -> Vec<f32> {
    let logarithm = |(input, weight): (&f64, &f64)| (1.0 - SHARE) * weight.ln() - SHARE * input.ln();
    let logarithms: Vec<f64> = inputs.iter().zip(weights).map(logarithm).collect();
    let known = || logarithms.iter().filter(|value| value.is_finite());
    let mean = known().sum::<f64>() / known().count().max(1) as f64;
    let least = known().copied().fold(mean, f64::min);
    let factor = |logarithm: &f64| {
        let logarithm = if logarithm.is_finite() {
            *logarithm
        } else if *logarithm < 0.0 {
            // Nobody reads the channel: it shall not be in the others' way.
            least
        } else {
            // It is always zero.
            mean
        };
        (logarithm - mean).exp().clamp(1.0 / FARTHEST, FARTHEST) as f32
    };
    logarithms.iter().map(factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize) -> Matrix {
        let values = (0..rows * columns).map(|at| ((at * 7919 + 13) % 101) as f32 / 50.0 - 1.01).collect();
        Matrix { values, columns }
    }

    #[test]
    fn what_was_planted_is_undone() {
        let (gain, offset) = (vec![0.5, 1.0, 2.0, 0.1], vec![0.1, 0.0, -0.3, 0.2]);
        let reader = matrix(70, 4);
        let equalize = |gain: &[f32], offset: &[f32], reader: Matrix| {
            let inputs = Channels::normed(gain, offset.to_vec()).sizes(0..4);
            factors(&inputs, &weights_sizes(&[reader], &inputs))
        };
        let plain = equalize(&gain, &offset, reader.clone());
        let planted = [1.0f32, 100.0, 1.0, 0.03];
        let times = |values: &[f32]| values.iter().zip(planted).map(|(v, p)| v * p).collect::<Vec<_>>();
        let divided = reader.values.chunks(4).flat_map(|row| row.iter().zip(planted).map(|(v, p)| v / p));
        let divided = Matrix { values: divided.collect(), columns: 4 };
        let undone = times(&equalize(&times(&gain), &times(&offset), divided));
        let ratio = undone[0] / plain[0];
        for (undone, plain) in undone.iter().zip(&plain) {
            assert!((undone / plain / ratio - 1.0).abs() < 1e-5, "{undone} {plain}");
        }
        let mean: f32 = plain.iter().map(|factor| factor.ln()).sum();
        assert!(mean.abs() < 1e-5, "{plain:?}");
    }

    #[test]
    fn equal_rows_in_other_units_count_alike() {
        let (one, mut other) = (matrix(40, 5), matrix(40, 5));
        for (number, row) in other.values.chunks_mut(5).enumerate() {
            row.iter_mut().for_each(|value| *value *= 1.5f32.powi(number as i32 % 9 - 4));
        }
        let inputs = [1.0, 2.0, 0.5, 3.0, 1.0];
        for (one, other) in weights_sizes(&[one], &inputs).iter().zip(weights_sizes(&[other], &inputs)) {
            assert!((one / other - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn dead_channels_get_ordinary_factors() {
        let factors = factors(&[1.0, 0.0, 4.0, 0.0, 1e-300], &[1.0, 1.0, 0.0, 0.0, 1e300]);
        assert!(factors.iter().all(|factor| factor.is_finite() && *factor > 0.0), "{factors:?}");
        assert!(factors[2] <= factors[0]);
        assert!(super::factors(&[0.0; 3], &[0.0; 3]) == [1.0; 3]);
    }

    #[test]
    fn expectations_are_those_of_samples() {
        // A thousand quantiles of the normal distribution, by bisection of its integral.
        let below = |x: f64| candle_core::cpu::erf::erf_f64(x / std::f64::consts::SQRT_2) / 2.0 + 0.5;
        let quantile = |share: f64| {
            let (mut low, mut high) = (-9.0, 9.0);
            for _ in 0..60 {
                let middle = (low + high) / 2.0;
                if below(middle) < share { low = middle } else { high = middle }
            }
            low
        };
        let normal: Vec<f64> = (0..1000).map(|at| quantile((f64::from(at) + 0.5) / 1000.0)).collect();
        for (mean, deviation) in [(0.0, 1.0), (-2.0, 1.0), (3.0, 0.5), (0.5, 2.0)] {
            let squares = normal.iter().map(|x| (mean + deviation * x).max(0.0).powi(2)).sum::<f64>();
            let expected = (squares / 1000.0).sqrt();
            assert!(
                (relu_size(mean, deviation) - expected).abs() < 0.02 * expected + 1e-3,
                "{mean} {deviation}"
            );
        }
        assert_eq!((relu_size(-1.0, 0.0), relu_size(2.0, 0.0)), (0.0, 2.0));
        let inputs = Channels { means: vec![1.0, 0.0], deviations: vec![0.0, 2.0] };
        let layer = Matrix { values: vec![1.0, 1.0, 3.0, 0.5], columns: 2 };
        let outputs = inputs.through(&layer, Some(&[0.0, -1.0]));
        assert_eq!((outputs.means, outputs.deviations), (vec![1.0, 2.0], vec![2.0, 1.0]));
    }
}
