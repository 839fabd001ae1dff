//! The picture a request starts from and the mask over it, at the size to be drawn; latents are the pipeline's.

mod mask;
mod pictures;
mod read;
mod resize;

use std::path::Path;

use anyhow::Result;
use image::{GrayImage, RgbImage, imageops};

use crate::request::{FileKind, Init, UsedFile};

pub use pictures::{PictureBytes, Pictures};
use read::Opened;
pub use read::{MAX_DECODED, MAX_FILE};

/// What is known of the picture before it is made.
pub struct PictureIn {
    pub picture: RgbImage,
    /// White is repainted, black is kept, gray is blended.
    pub mask: Option<GrayImage>,
    used: Vec<UsedFile>,
}

/// A picture's values from -1 to 1, `[3, height, width]` flattened.
pub fn values(picture: &RgbImage) -> Vec<f32> {
    mask::values(picture, |_, _| false)
}

impl PictureIn {
    /// Reads the files a request starts from and brings them to its size, `width` and `height` in pixels.
    ///
    /// # Errors
    /// Names the file that can't be used and why.
    pub fn read(init: &Init, width: usize, height: usize, pictures: &Pictures) -> Result<Self> {
        let (width, height) = (width as u32, height as u32);
        let path = &init.picture;
        let read = pictures.read(path)?;
        let mut used = vec![UsedFile::new(FileKind::Init, path, &read.fingerprint)?];
        let filter = imageops::FilterType::Lanczos3;
        let shape = read.rgb.dimensions();
        let held = read.rgb.as_raw().len() as u64;
        pictures.make_room(path, resize::peak_bytes(shape, (width, height)), held)?;
        let picture = resize::resize(&read.rgb, width, height, init.resize, filter);
        drop(read);
        let mask = match &init.mask {
            None => None,
            Some(path) => {
                let read = pictures.read(path)?;
                mask::check_shape(path, read.rgb.dimensions(), shape)?;
                let pixels = read.rgb.as_raw().len() as u64 / 3;
                let resizing = resize::peak_bytes(read.rgb.dimensions(), (width, height));
                pictures.make_room(path, pixels + resizing, 3 * pixels)?;
                let mask = imageops::grayscale(&read.rgb);
                let filter = imageops::FilterType::Triangle;
                let mask = resize::resize(&mask, width, height, init.resize, filter);
                mask::check_use(path, &mask)?;
                used.push(UsedFile::new(FileKind::Mask, path, &read.fingerprint)?);
                Some(mask)
            }
        };
        Ok(Self { picture, mask, used })
    }

    /// The files it was read from.
    pub fn used(&self) -> &[UsedFile] {
        &self.used
    }

    /// Values from -1 to 1, `[3, height, width]` flattened.
    pub fn values(&self) -> Vec<f32> {
        values(&self.picture)
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

/// Width and height of a picture file, upright.
///
/// # Errors
/// Names the file, and says what is wrong with it.
pub fn size_of(path: &Path) -> Result<(u32, u32)> {
    Opened::read(path)?.dimensions()
}
