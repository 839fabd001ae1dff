//! Latents to a small preview by one matrix, fitted to the decoder in use; the decoder lives in `networks`.
//!
//! A fitted matrix suits every latent space, also those of fine-tuned autoencoders and with other channels; the
//! factors published for Stable Diffusion 1.5 are for its own alone.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use crate::networks::autoencoder::LatentDecoder;
use crate::noise::NoiseSource;
use crate::request::Rng;

/// What each latent channel and a constant give to red, green and blue, from -1 to 1.
pub struct Projection {
    /// `[channels + 1][3]`, the constant last.
    factors: Vec<[f64; 3]>,
}

/// Side of the latents that are decoded once to fit the matrix.
const SAMPLE: usize = 16;
/// Latents of one color, each this many wide: pictures are smooth, and noise decodes to something else.
const PATCH: usize = 4;

impl Projection {
    /// Fits the matrix by least squares to what `decoder` makes of patches of random latents with as much
    /// variance as those of pictures.
    ///
    /// # Errors
    /// Those of the decoder.
    pub fn fit(decoder: &LatentDecoder, channels: usize, device: &Device) -> Result<Self> {
        let few = SAMPLE / PATCH;
        let drawn = NoiseSource::new(Rng::Torch, 0).normal(&[1, channels, few, few], device)?;
        let latents = drawn.upsample_nearest2d(SAMPLE, SAMPLE)?;
        let picture = decoder.decode(&latents)?.to_dtype(DType::F32)?;
        let factor = picture.dim(2)? / SAMPLE;
        let picture = picture.clamp(-1.0, 1.0)?.avg_pool2d(factor)?;
        Self::solve(&rows(&latents)?, &rows(&picture)?).context("the preview's colors can't be fitted")
    }

    /// The factors that turn each of `latents`, with a constant 1 after it, into its color with the least error.
    fn solve(latents: &[Vec<f32>], colors: &[Vec<f32>]) -> Option<Self> {
        let size = latents.first()?.len() + 1;
        // The normal equations, and on the right what they equal for red, green and blue.
        let mut equations = vec![vec![0.0; size + 3]; size];
        for (latent, color) in latents.iter().zip(colors) {
            let inputs: Vec<f64> = latent.iter().map(|&x| f64::from(x)).chain([1.0]).collect();
            for (row, &a) in equations.iter_mut().zip(&inputs) {
                for (sum, b) in
                    row.iter_mut().zip(inputs.iter().copied().chain(color.iter().map(|&x| f64::from(x))))
                {
                    *sum += a * b;
                }
            }
        }
        for (at, row) in equations.iter_mut().enumerate() {
            // Keeps a channel that is always the same from having no solution.
            row[at] += 1e-3;
        }
        for at in 0..size {
            let pivot =
                (at..size).max_by(|&a, &b| equations[a][at].abs().total_cmp(&equations[b][at].abs()))?;
            equations.swap(at, pivot);
            let row = equations[at].clone();
            for (other, equation) in equations.iter_mut().enumerate() {
                let share = if other == at { 0.0 } else { equation[at] / row[at] };
                equation.iter_mut().zip(&row).for_each(|(value, taken)| *value -= share * taken);
            }
        }
        let factors: Vec<[f64; 3]> = (0..size)
            .map(|at| std::array::from_fn(|color| equations[at][size + color] / equations[at][at]))
            .collect();
        factors.iter().flatten().all(|factor| factor.is_finite()).then_some(Self { factors })
    }

    /// `[1, channels, h, w]` to a picture of w by h pixels.
    ///
    /// # Errors
    /// When the latents have another number of channels.
    pub fn project(&self, latents: &Tensor) -> Result<RgbImage> {
        let (_, channels, height, width) = latents.dims4()?;
        anyhow::ensure!(channels + 1 == self.factors.len(), "a preview of {channels} latent channels");
        let mut pixels = Vec::with_capacity(height * width * 3);
        for latent in rows(latents)? {
            for color in 0..3 {
                let inputs = latent.iter().map(|&x| f64::from(x)).chain([1.0]);
                let value: f64 = inputs.zip(&self.factors).map(|(x, factor)| x * factor[color]).sum();
                pixels.push(((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8);
            }
        }
        RgbImage::from_raw(width as u32, height as u32, pixels).context("the preview has an odd size")
    }
}

/// The values of each pixel of `[1, channels, h, w]`.
fn rows(map: &Tensor) -> Result<Vec<Vec<f32>>> {
    let pixels = map.squeeze(0)?.flatten_from(1)?.t()?;
    Ok(pixels.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_vec2()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_decoder_is_found_again() {
        let factors = [[0.5, -0.2, 0.1], [0.0, 0.3, -0.4], [0.1, 0.2, -0.3]];
        let latents: Vec<Vec<f32>> =
            (0..40).map(|i| vec![(i % 7) as f32 - 3.0, (i % 5) as f32 - 2.0]).collect();
        let color = |latent: &Vec<f32>| -> Vec<f32> {
            (0..3)
                .map(|c| {
                    (factors[0][c] * f64::from(latent[0])
                        + factors[1][c] * f64::from(latent[1])
                        + factors[2][c]) as f32
                })
                .collect()
        };
        let colors: Vec<Vec<f32>> = latents.iter().map(color).collect();
        let found = Projection::solve(&latents, &colors).unwrap();
        for (found, expected) in found.factors.iter().flatten().zip(factors.iter().flatten()) {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
    }
}
