//! The picture a request starts from and the mask over it, at the size to be drawn; latents are the pipeline's.

mod mask;
mod read;
mod resize;

use std::path::Path;

use anyhow::{Context, Result};
use image::{GrayImage, RgbImage, imageops};

use crate::request::{FileKind, Request, Resize, UsedFile};

pub use read::{MAX_DECODED, MAX_FILE};

/// What is known of the picture before it is made.
pub struct PictureIn {
    pub picture: RgbImage,
    /// White is repainted, black is kept, gray is blended.
    pub mask: Option<GrayImage>,
    used: Vec<UsedFile>,
}

impl PictureIn {
    /// Reads the files `request` starts from, if it does, and brings them to its size.
    ///
    /// # Errors
    /// Names the file that can't be used and why.
    pub fn read(request: &Request) -> Result<Option<Self>> {
        let Some(path) = &request.init else { return Ok(None) };
        let (width, height) = (request.width as u32, request.height as u32);
        let resize = request.resize.unwrap_or(Resize::Crop);
        let init = read::picture(path)?;
        let mut used = vec![UsedFile::new(FileKind::Init, path, &init.fingerprint)?];
        let mask = match &request.mask {
            None => None,
            Some(path) => {
                let read = read::picture(path)?;
                let mask = imageops::grayscale(&read.rgb);
                mask::check_shape(path, mask.dimensions(), init.rgb.dimensions())?;
                let mask = resize::resize(&mask, width, height, resize, imageops::FilterType::Triangle);
                mask::check_use(path, &mask)?;
                used.push(UsedFile::new(FileKind::Mask, path, &read.fingerprint)?);
                Some(mask)
            }
        };
        let picture = resize::resize(&init.rgb, width, height, resize, imageops::FilterType::Lanczos3);
        Ok(Some(Self { picture, mask, used }))
    }

    /// The files it was read from.
    pub fn used(&self) -> &[UsedFile] {
        &self.used
    }

    /// Values from -1 to 1, `[3, height, width]` flattened.
    pub fn values(&self) -> Vec<f32> {
        mask::values(&self.picture, |_, _| false)
    }

    /// The same with the part to repaint gray, which is what an inpainting UNet is shown.
    pub fn values_to_keep(&self) -> Vec<f32> {
        let mask = self.mask.as_ref();
        mask::values(&self.picture, |x, y| mask.is_some_and(|mask| mask::repaints(mask, x, y)))
    }

    /// 1 where latents are repainted and 0 where they are kept, `[height / factor, width / factor]` flattened.
    pub fn latent_mask(&self, factor: usize) -> Option<Vec<f32>> {
        self.mask.as_ref().map(|mask| mask::latent_mask(mask, factor as u32))
    }

    /// Puts the part that is kept back into the picture made of it: its very pixels.
    ///
    /// # Panics
    /// When `made` has another size.
    pub fn restore(&self, made: &mut RgbImage) {
        if let Some(mask) = &self.mask {
            assert_eq!(made.dimensions(), self.picture.dimensions());
            mask::composite(made, &self.picture, mask);
        }
    }
}

/// The size to draw in when only a picture says how large: its own, rounded to what is possible, and reduced or
/// enlarged to the range of areas a model of the default size `model` draws well.
///
/// # Errors
/// When the file is no picture.
pub fn default_size(path: &Path, model: (usize, usize)) -> Result<(usize, usize)> {
    let (width, height) = read::dimensions(path)?;
    resize::sensible_size((width, height), model)
        .with_context(|| format!("{} has no size to draw in", path.display()))
}
