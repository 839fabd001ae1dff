//! Weights made up on demand, for measuring a geometry without a model: reproducible random numbers by tensor name.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;

/// Standard deviation of biases.
const BIAS: f32 = 0.02;

/// Answers for every weight and bias there could be.
#[derive(Default)]
pub struct RandomTensors {
    nanoseconds: AtomicU64,
}

impl RandomTensors {
    pub fn contains(&self, name: &str) -> bool {
        name.ends_with(".weight") || name.ends_with(".bias")
    }

    /// The values of tensor `name`: weights whose products keep the variance of what they read, gains of 1,
    /// small biases. The same name and shape always get the same values.
    pub fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let start = Instant::now();
        let count = shape.iter().product();
        let values = match shape {
            [] | [_] if name.ends_with(".bias") => normal(name, 0..count, BIAS),
            [] | [_] => vec![1.0; count],
            [_, filter @ ..] => normal(name, 0..count, deviation(filter)),
        };
        let spent = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(spent, Ordering::Relaxed);
        values
    }

    /// Some rows of the same values of a matrix.
    pub fn rows(&self, name: &str, shape: [usize; 2], rows: &[usize]) -> Vec<f32> {
        let deviation = deviation(&shape[1..]);
        rows.iter().flat_map(|row| normal(name, row * shape[1]..(row + 1) * shape[1], deviation)).collect()
    }

    /// How long all values so far took to make.
    pub fn spent(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }
}

/// For products with filters of this shape to keep the variance of what they read.
fn deviation(filter: &[usize]) -> f32 {
    let fan_in: usize = filter.iter().product();
    (fan_in.max(1) as f32).sqrt().recip()
}

/// Part of a sequence of nearly normal numbers of mean 0: sums of four uniform ones, which end at 3.5 standard
/// deviations.
fn normal(name: &str, range: Range<usize>, deviation: f32) -> Vec<f32> {
    const BLOCK: usize = 1 << 14;
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv1a);
    // Four 16-bit lanes: mean 4 * 32767.5, variance 4 * (2^32 - 1) / 12.
    let scale = deviation / (((1u64 << 32) - 1) as f32 / 3.0).sqrt();
    let mut values = vec![0.0; range.len()];
    values.par_chunks_mut(BLOCK).enumerate().for_each(|(block, values)| {
        for (index, value) in values.iter_mut().enumerate() {
            let bits = split_mix(seed, (range.start + block * BLOCK + index) as u64);
            let pairs = (bits & 0x0000_ffff_0000_ffff) + (bits >> 16 & 0x0000_ffff_0000_ffff);
            let sum = (pairs as u32 as i64 + (pairs >> 32) as i64) as i32;
            *value = (sum - 2 * 0xffff) as f32 * scale;
        }
    });
    values
}

/// One byte of the FNV-1a hash.
fn fnv1a(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
}

/// The number at `index` of the sequence from `seed` (`SplitMix64`, Steele et al. 2014).
fn split_mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_promised_variance() {
        let random = RandomTensors::default();
        let values = random.values("unet.conv.weight", &[64, 32, 3, 3]);
        let count = values.len() as f32;
        let mean = values.iter().sum::<f32>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / count;
        assert!(mean.abs() < 2e-3, "{mean}");
        assert!((variance * 288.0 - 1.0).abs() < 0.03, "{variance}");
        assert!(random.spent() > Duration::ZERO);
    }

    #[test]
    fn names_decide() {
        let random = RandomTensors::default();
        let values = |name: &str| random.values(name, &[20_000, 2]);
        assert_eq!(values("a.weight"), values("a.weight"));
        assert_ne!(values("a.weight"), values("b.weight"));
        assert_eq!(random.values("norm.weight", &[3]), [1.0; 3]);
        assert!(random.values("norm.bias", &[3]).iter().all(|bias| bias.abs() < 4.0 * BIAS));
        let whole = values("a.weight");
        let row = |row: usize| &whole[2 * row..2 * row + 2];
        assert_eq!(random.rows("a.weight", [20_000, 2], &[19_999, 3]), [row(19_999), row(3)].concat());
        assert!(random.contains("a.bias") && !random.contains("a.weight_scale"));
    }
}
