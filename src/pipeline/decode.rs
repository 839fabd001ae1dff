//! From latents to 8-bit pixels, whole or in strips, and the refusal of what is no picture.

use anyhow::{Context as _, Result, ensure};
use candle_core::{Device, Tensor};
use image::RgbImage;

use super::Model;
use super::finite::check_finite;
use super::projection::Projection;
use crate::networks::autoencoder::LatentDecoder;

impl Model {
    /// The picture of `latents`, and whether it was decoded in strips.
    pub(super) fn decode(&self, decoder: &LatentDecoder, latents: &Tensor) -> Result<(RgbImage, bool)> {
        let (_, _, height, width) = latents.dims4()?;
        let strips = self.strips(self.factor() * width, self.factor() * height);
        let picture = match strips {
            Some(strips) => decoder.decode_in_strips(latents, strips)?,
            None => decoder.decode(latents)?,
        };
        Ok((to_rgb(&picture)?, strips.is_some()))
    }

    /// What previews need of `decoder`.
    pub(super) fn projection(&self, decoder: &LatentDecoder) -> Result<Projection> {
        Projection::fit(decoder, self.vae_config.latent_channels(), &self.backend.device)
    }
}

/// `[1, 3, height, width]` from -1 to 1 as 8-bit pixels.
fn to_rgb(picture: &Tensor) -> Result<RgbImage> {
    let (_, _, height, width) = picture.dims4()?;
    let values = picture.permute((0, 2, 3, 1))?.flatten_all()?.to_device(&Device::Cpu)?.to_vec1::<f32>()?;
    check_finite(&values, "the picture")?;
    let pixels: Vec<u8> =
        values.iter().map(|value| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8).collect();
    ensure!(
        pixels.chunks_exact(3).any(|pixel| *pixel != pixels[..3]),
        "the picture is all one color ({}, {}, {}): the model or its precision is unsuited to these settings",
        pixels[0],
        pixels[1],
        pixels[2]
    );
    RgbImage::from_raw(width as u32, height as u32, pixels).context("the picture has an odd size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_without_numbers_or_of_one_color_is_refused() {
        let picture = |values: [f32; 12]| {
            // Planes of 2x2 pixels.
            to_rgb(&Tensor::from_slice(&values, (1, 3, 2, 2), &Device::Cpu).unwrap())
        };
        let refused = |values| picture(values).unwrap_err().to_string();
        let mut values = [0.5; 12];
        assert!(refused(values).contains("all one color (191, 191, 191)"));
        values[5] = f32::NAN;
        assert!(refused(values).contains("NaN"));
        // Differences that eight bits don't show are none.
        values[5] = 0.5001;
        assert!(refused(values).contains("all one color"));
        values[5] = -3.0;
        assert_eq!(picture(values).unwrap().get_pixel(1, 0).0, [191, 0, 191]);
    }
}
