//! How far a result is from the one expected; a NaN, an infinity or another shape is far from everything.

use std::fmt::Display;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

/// Numbers in some shape.
pub trait Numbers {
    fn shape(&self) -> Vec<usize>;
    /// In row-major order.
    fn values(&self) -> Vec<f64>;
}

impl Numbers for Tensor {
    fn shape(&self) -> Vec<usize> {
        self.dims().to_vec()
    }

    fn values(&self) -> Vec<f64> {
        let here = self.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
        here.flatten_all().unwrap().to_vec1().unwrap()
    }
}

impl<N: Copy + Into<f64>> Numbers for [N] {
    fn shape(&self) -> Vec<usize> {
        vec![self.len()]
    }

    fn values(&self) -> Vec<f64> {
        self.iter().map(|&value| value.into()).collect()
    }
}

impl<N: Copy + Into<f64>> Numbers for Vec<N> {
    fn shape(&self) -> Vec<usize> {
        self.as_slice().shape()
    }

    fn values(&self) -> Vec<f64> {
        self.as_slice().values()
    }
}

impl Numbers for RgbImage {
    fn shape(&self) -> Vec<usize> {
        vec![self.height() as usize, self.width() as usize, 3]
    }

    fn values(&self) -> Vec<f64> {
        self.as_raw().values()
    }
}

/// The distance between two results of one shape, all of whose values are finite.
#[derive(Debug, Clone, Copy)]
pub struct Distance {
    /// The largest |found - expected|.
    pub largest: f64,
    /// The largest |expected|.
    magnitude: f64,
    /// Mean of (found - expected)².
    mean_square: f64,
    /// Mean of expected².
    mean_signal: f64,
}

impl Distance {
    /// # Errors
    /// When there is nothing to compare, the shapes differ, or either side holds a NaN or an infinity; says where.
    pub fn between<F, E>(found: &F, expected: &E) -> Result<Self, String>
    where
        F: Numbers + ?Sized,
        E: Numbers + ?Sized,
    {
        let (shape, expected_shape) = (found.shape(), expected.shape());
        if shape != expected_shape {
            return Err(format!("found shape {shape:?} where {expected_shape:?} is expected"));
        }
        let (found, expected) = (found.values(), expected.values());
        if expected.is_empty() || found.len() != expected.len() {
            return Err(format!("{} values found, {} expected", found.len(), expected.len()));
        }
        for (side, values) in [("found", &found), ("expected", &expected)] {
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                let count = values.iter().filter(|value| !value.is_finite()).count();
                let (value, total, at) = (values[at], values.len(), place(at, &shape));
                return Err(format!("{side} {value} at {at}; {count} of {total} values are not finite"));
            }
        }
        let count = expected.len() as f64;
        let mut distance = Self { largest: 0.0, magnitude: 0.0, mean_square: 0.0, mean_signal: 0.0 };
        for (found, expected) in found.into_iter().zip(expected) {
            let difference = (found - expected).abs();
            // Of finite values, so that `max` overlooks nothing.
            distance.largest = distance.largest.max(difference);
            distance.magnitude = distance.magnitude.max(expected.abs());
            distance.mean_square += difference * difference / count;
            distance.mean_signal += expected * expected / count;
        }
        Ok(distance)
    }

    /// The largest difference relative to the largest value expected.
    pub fn relative(self) -> f64 {
        if self.largest == 0.0 { 0.0 } else { self.largest / self.magnitude }
    }

    /// Peak signal-to-noise ratio in dB of values that span `range`; infinite where there is no difference.
    pub fn psnr(self, range: f64) -> f64 {
        10.0 * (range * range / self.mean_square).log10()
    }

    /// The root mean square of the difference relative to that of what is expected.
    pub fn relative_rms(self) -> f64 {
        if self.mean_square == 0.0 { 0.0 } else { (self.mean_square / self.mean_signal).sqrt() }
    }

    /// Signal-to-noise ratio in dB; infinite where there is no difference.
    pub fn snr(self) -> f64 {
        -20.0 * self.relative_rms().log10()
    }
}

/// The index at `at` of `shape`.
fn place(mut at: usize, shape: &[usize]) -> String {
    let mut index = Vec::new();
    for size in shape.iter().rev() {
        index.insert(0, at % size);
        at /= size;
    }
    format!("{index:?}")
}

/// The distance between two results that can be compared.
#[track_caller]
pub fn distance<F, E>(found: &F, expected: &E) -> Distance
where
    F: Numbers + ?Sized,
    E: Numbers + ?Sized,
{
    match Distance::between(found, expected) {
        Ok(distance) => distance,
        Err(reason) => panic!("{reason}"),
    }
}

/// Asserts that the largest difference is at most `bound` of the largest value expected.
#[track_caller]
pub fn assert_close<F, E>(found: &F, expected: &E, bound: f64, what: impl Display)
where
    F: Numbers + ?Sized,
    E: Numbers + ?Sized,
{
    match Distance::between(found, expected).map(Distance::relative) {
        Ok(error) => assert!(error <= bound, "{what}: relative error {error:e}, more than {bound:e}"),
        Err(reason) => panic!("{what}: {reason}"),
    }
}

/// Asserts that all values are equal, and numbers.
#[track_caller]
pub fn assert_identical<F, E>(found: &F, expected: &E, what: impl Display)
where
    F: Numbers + ?Sized,
    E: Numbers + ?Sized,
{
    if let Err(reason) = Distance::between(found, expected) {
        panic!("{what}: {reason}");
    }
    let (values, expected) = (found.values(), expected.values());
    if let Some(at) = values.iter().zip(&expected).position(|(found, expected)| found != expected) {
        let place = place(at, &found.shape());
        panic!("{what}: found {} at {place} where {} is expected", values[at], expected[at]);
    }
}

/// Asserts that all values are finite and returns the largest in magnitude.
#[track_caller]
pub fn largest<N: Numbers + ?Sized>(numbers: &N) -> f64 {
    distance(numbers, numbers).magnitude
}
