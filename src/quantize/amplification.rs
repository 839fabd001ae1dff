//! What becomes of rounding errors between two layers whose outliers no factors undo, going by their weights.

use rayon::prelude::*;

use super::equalize::{Matrix, energy};

/// Vectors of random signs by which a product of matrices is measured: its energy comes out to a few percent.
const PROBES: usize = 16;

/// More is taken for outliers. Random weights have 1, those of small models that were trained 0.2 to 1.1.
pub const MOST_AMPLIFIED: f64 = 4.0;

/// The energy of errors behind `reader`, in relation to that of its outputs, as a multiple of what it would be if all
/// channels between it and `giver` were as large, and mattered as much.
///
/// Errors of int8 are as large in all channels, whose root mean square is taken for their size. Where outliers lie in
/// channels of their own, `factors` (of the giver's rows; the reader's columns are divided by them) have made them
/// alike. Where an orthogonal matrix has spread them over their neighbors, channels look alike, but few directions have
/// nearly all energy, and others are what the reader depends on.
pub fn amplification(inputs: &[f64], giver: &Matrix, factors: &[f32], reader: &Matrix) -> f64 {
    let channels = factors.len();
    if channels == 0 || giver.columns != inputs.len() || reader.columns != channels {
        return 1.0;
    }
    let inputs: Vec<f32> = inputs.iter().map(|&input| input as f32).collect();
    let inverses: Vec<f32> = factors.iter().map(|factor| 1.0 / factor).collect();
    let rows = giver.values.par_chunks_exact(giver.columns).zip(factors);
    let given: Vec<f64> =
        rows.map(|(row, factor)| f64::from(energy(row, &inputs) * factor * factor)).collect();
    let rows = reader.values.par_chunks_exact(channels);
    let read: Vec<f64> = rows.map(|row| f64::from(energy(row, &inverses))).collect();
    let probe = |probe: u64| {
        let signs = (0..).map(|at| if sign(probe, at) { 1.0 } else { -1.0 });
        let signed: Vec<f32> = inputs.iter().zip(signs).map(|(input, sign)| input * sign).collect();
        let outputs = product(reader, &product(giver, &signed));
        outputs.into_iter().map(|output| f64::from(output * output)).sum::<f64>()
    };
    let through: Vec<f64> = (0..PROBES as u64).into_par_iter().map(probe).collect();
    let [given, read, through] = [given, read, through].map(|parts| parts.into_iter().sum::<f64>());
    // Of what gives nothing, nothing is lost.
    if through > 0.0 { given * read * PROBES as f64 / (channels as f64 * through) } else { 1.0 }
}

/// Eight sums at a time, which run on vectors.
fn product(matrix: &Matrix, vector: &[f32]) -> Vec<f32> {
    let output = |row: &[f32]| {
        let mut sums = [0.0; 8];
        for (row, values) in row.chunks(8).zip(vector.chunks(8)) {
            for ((sum, weight), value) in sums.iter_mut().zip(row).zip(values) {
                *sum += weight * value;
            }
        }
        sums.iter().sum()
    };
    matrix.values.chunks_exact(matrix.columns).map(output).collect()
}

/// One of as many that are true as not, without a pattern (the finalizer of SplitMix64: Steele et al. 2014).
fn sign(probe: u64, at: u64) -> bool {
    let mut bits = (probe << 32 | at).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (bits >> 63) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNELS: usize = 16;

    fn random(rows: usize, columns: usize, seed: u64) -> Matrix {
        // Sums of signs: nearly normal.
        let value =
            |at: usize| (0..12).map(|bit| if sign(seed + bit, at as u64) { 0.5 } else { -0.5 }).sum::<f32>();
        Matrix { values: (0..rows * columns).map(value).collect(), columns }
    }

    /// Giver and reader with channel c given `sizes[c]` times as large, both mixed by reflections of channel pairs.
    fn planted(sizes: &[f32], mixed: bool) -> (Matrix, Matrix) {
        let (mut giver, mut reader) = (random(CHANNELS, 30, 1), random(50, CHANNELS, 100));
        for (row, size) in giver.values.chunks_exact_mut(30).zip(sizes) {
            row.iter_mut().for_each(|value| *value *= size);
        }
        for row in reader.values.chunks_exact_mut(CHANNELS) {
            row.iter_mut().zip(sizes).for_each(|(value, size)| *value /= size);
        }
        if mixed {
            // I - 2 u u^T with all of u alike is orthogonal, and its own inverse.
            let share = 2.0 / CHANNELS as f32;
            for column in 0..30 {
                let sum: f32 = (0..CHANNELS).map(|row| giver.values[row * 30 + column]).sum();
                (0..CHANNELS).for_each(|row| giver.values[row * 30 + column] -= share * sum);
            }
            for row in reader.values.chunks_exact_mut(CHANNELS) {
                let sum: f32 = row.iter().sum();
                row.iter_mut().for_each(|value| *value -= share * sum);
            }
        }
        (giver, reader)
    }

    fn found(sizes: &[f32], mixed: bool, factors: &[f32]) -> f64 {
        let (giver, reader) = planted(sizes, mixed);
        amplification(&[1.0; 30], &giver, factors, &reader)
    }

    #[test]
    fn only_what_factors_do_not_undo_is_amplified() {
        let alike = [1.0; CHANNELS];
        let mut outlying = alike;
        (outlying[3], outlying[7]) = (100.0, 100.0);
        let inverse = outlying.map(|size| 1.0 / size);
        assert!((0.7..1.4).contains(&found(&alike, false, &alike)));
        assert!((0.7..1.4).contains(&found(&alike, true, &alike)));
        assert!((0.7..1.4).contains(&found(&outlying, false, &inverse)));
        // Two channels of sixteen have 100 times the size: 1250 times the energy.
        for (mixed, factors) in [(false, &alike), (true, &alike), (true, &inverse)] {
            let found = found(&outlying, mixed, factors);
            assert!(found > 50.0 && found.is_finite(), "{mixed} {found}");
        }
    }

    #[test]
    fn what_fits_nothing_or_gives_nothing_amplifies_nothing() {
        let (giver, reader) = planted(&[1.0; CHANNELS], false);
        let zeros = Matrix { values: vec![0.0; CHANNELS * 30], columns: 30 };
        assert_eq!(amplification(&[1.0; 30], &zeros, &[1.0; CHANNELS], &reader), 1.0);
        assert_eq!(amplification(&[1.0; 29], &giver, &[1.0; CHANNELS], &reader), 1.0);
        assert_eq!(amplification(&[1.0; 30], &giver, &[1.0; 3], &reader), 1.0);
        assert_eq!(amplification(&[1.0; 30], &giver, &[], &reader), 1.0);
    }
}
