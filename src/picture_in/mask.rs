//! What a mask does to pixels and to the grid of latents.

use std::path::Path;

use anyhow::{Result, ensure};
use image::{GrayImage, RgbImage};

use super::read::mix;

/// From this value on a pixel counts as one to repaint, as in diffusers.
const WHITE: u8 = 128;

pub fn repaints(mask: &GrayImage, x: u32, y: u32) -> bool {
    mask.get_pixel(x, y)[0] >= WHITE
}

/// # Errors
/// When a mask of one size doesn't have the shape of a picture of the other, give or take a pixel.
pub fn check_shape(path: &Path, mask: (u32, u32), picture: (u32, u32)) -> Result<()> {
    let wide = u64::from(mask.0) * u64::from(picture.1);
    let tall = u64::from(mask.1) * u64::from(picture.0);
    let pixel = [mask.0, mask.1, picture.0, picture.1].into_iter().max().unwrap_or_default();
    ensure!(
        wide.abs_diff(tall) <= u64::from(pixel),
        "the mask {} has {}x{} pixels, another shape than the picture's {}x{}",
        path.display(),
        mask.0,
        mask.1,
        picture.0,
        picture.1
    );
    Ok(())
}

/// # Errors
/// When nothing is left to repaint.
pub fn check_use(path: &Path, mask: &GrayImage) -> Result<()> {
    ensure!(
        mask.as_raw().iter().any(|&value| value >= WHITE),
        "the mask {} is black where the picture is drawn: white is what is repainted",
        path.display()
    );
    Ok(())
}

/// A latent is repainted when any of its `factor` x `factor` pixels is: however thin a line, it is repainted whole,
/// and what is too much is put back in pixels.
pub fn latent_mask(mask: &GrayImage, factor: u32) -> Vec<f32> {
    let (width, height) = (mask.width() / factor, mask.height() / factor);
    let block = |x, y| (0..factor).flat_map(move |dy| (0..factor).map(move |dx| (x + dx, y + dy)));
    let blocks = (0..height).flat_map(|y| (0..width).map(move |x| (x * factor, y * factor)));
    blocks.map(|(x, y)| f32::from(u8::from(block(x, y).any(|(x, y)| repaints(mask, x, y))))).collect()
}

/// Puts `kept` into `made` as far as `mask` is black: exactly where it is wholly so.
pub fn composite(made: &mut RgbImage, kept: &RgbImage, mask: &GrayImage) {
    for ((made, kept), mask) in made.pixels_mut().zip(kept.pixels()).zip(mask.pixels()) {
        for (made, &kept) in made.0.iter_mut().zip(&kept.0) {
            *made = mix(*made, kept, mask[0]);
        }
    }
}

/// Values from -1 to 1, `[3, height, width]` flattened, 0 where `hidden`.
pub fn values(picture: &RgbImage, hidden: impl Fn(u32, u32) -> bool) -> Vec<f32> {
    let mut values = Vec::with_capacity(picture.as_raw().len());
    for channel in 0..3 {
        values.extend(picture.enumerate_pixels().map(|(x, y, pixel)| {
            if hidden(x, y) { 0.0 } else { f32::from(pixel[channel]) / 255.0 * 2.0 - 1.0 }
        }));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Luma, Rgb};

    #[test]
    fn one_pixel_repaints_its_latent_and_gray_below_the_middle_none() {
        let mut mask = GrayImage::new(24, 16);
        mask.put_pixel(15, 8, Luma([128]));
        mask.put_pixel(0, 0, Luma([127]));
        assert_eq!(latent_mask(&mask, 8), [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn black_keeps_white_repaints_gray_blends() {
        let mut made = RgbImage::from_pixel(3, 1, Rgb([200, 0, 255]));
        let kept = RgbImage::from_pixel(3, 1, Rgb([100, 1, 0]));
        let mask = GrayImage::from_raw(3, 1, vec![0, 51, 255]).unwrap();
        composite(&mut made, &kept, &mask);
        assert_eq!(made.as_raw()[..], [100, 1, 0, 120, 1, 51, 200, 0, 255]);
    }

    #[test]
    fn a_mask_may_be_smaller_but_not_of_another_shape() {
        let check = |mask, picture| check_shape(Path::new("m.png"), mask, picture);
        assert!(check((500, 333), (1000, 667)).is_ok());
        assert!(check((100, 100), (1000, 1000)).is_ok());
        let error = check((100, 120), (100, 100)).unwrap_err().to_string();
        assert!(error.contains("m.png") && error.contains("100x120"), "{error}");
    }
}
