//! How far a picture is from the one expected, as numbers and as a picture; nothing is read or written here.

use image::{GenericImage, Rgb, RgbImage};

/// Differences are this many times brighter in [`side_by_side`], so that small ones are seen.
const AMPLIFIED: u16 = 8;

/// The distance between two pictures of one size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Peak signal-to-noise ratio in dB over all samples: 10 log10(255² / mean squared error); infinite when
    /// the pictures are the same.
    pub psnr: f64,
    /// Of any sample, in levels of 255.
    pub largest: u8,
}

/// Compares sample by sample; `None` when the sizes differ.
pub fn compare(expected: &RgbImage, got: &RgbImage) -> Option<Difference> {
    if expected.dimensions() != got.dimensions() {
        return None;
    }
    let distances = || expected.as_raw().iter().zip(got.as_raw()).map(|(a, b)| a.abs_diff(*b));
    let squares: f64 = distances().map(|distance| f64::from(distance).powi(2)).sum();
    let mean = squares / expected.as_raw().len().max(1) as f64;
    let psnr = if squares == 0.0 { f64::INFINITY } else { 10.0 * (255.0 * 255.0 / mean).log10() };
    Some(Difference { psnr, largest: distances().max().unwrap_or(0) })
}

/// Expected, got and, where the sizes are the same, their difference made brighter, from left to right.
pub fn side_by_side(expected: &RgbImage, got: &RgbImage) -> RgbImage {
    let mut parts = vec![expected.clone(), got.clone()];
    if expected.dimensions() == got.dimensions() {
        parts.push(RgbImage::from_fn(got.width(), got.height(), |x, y| {
            let (a, b) = (expected.get_pixel(x, y), got.get_pixel(x, y));
            Rgb([0, 1, 2].map(|i| (u16::from(a[i].abs_diff(b[i])) * AMPLIFIED).min(255) as u8))
        }));
    }
    let width = parts.iter().map(RgbImage::width).sum();
    let height = parts.iter().map(RgbImage::height).max().unwrap_or(0);
    let mut whole = RgbImage::new(width, height);
    let mut left = 0;
    for part in &parts {
        // The sum of widths and the largest height leave room for every part.
        let _ = whole.copy_from(part, left, 0);
        left += part.width();
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: u32, level: u8) -> RgbImage {
        RgbImage::from_pixel(width, 2, Rgb([level; 3]))
    }

    #[test]
    fn distances_are_those_of_the_formula() {
        let mut other = plain(2, 10);
        other.get_pixel_mut(1, 1)[2] = 40;
        let difference = compare(&plain(2, 10), &other).unwrap();
        assert_eq!(difference.largest, 30);
        // One sample of 12 is 30 levels off.
        assert!((difference.psnr - 10.0 * (65025.0f64 / 75.0).log10()).abs() < 1e-9);
        assert_eq!(compare(&other, &other).unwrap(), Difference { psnr: f64::INFINITY, largest: 0 });
        assert_eq!(compare(&plain(2, 0), &plain(3, 0)), None);
    }

    #[test]
    fn parts_stand_side_by_side() {
        let whole = side_by_side(&plain(2, 10), &plain(2, 15));
        assert_eq!(whole.dimensions(), (6, 2));
        assert_eq!([0, 2, 4].map(|x| whole.get_pixel(x, 1)[0]), [10, 15, 40]);
        assert_eq!(side_by_side(&plain(2, 10), &plain(3, 15)).dimensions(), (5, 2));
        assert_eq!(side_by_side(&plain(1, 0), &plain(1, 255)).get_pixel(2, 0)[0], 255);
    }
}
