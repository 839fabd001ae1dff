//! Bringing a picture to another size and shape; which size that is when nobody says is the request's to tell.

use image::imageops::{self, FilterType};
use image::{GenericImageView, ImageBuffer, Pixel};

use crate::request::Resize;

/// Bytes that [`resize`] takes at the most: its rows are scaled first, as four floats a pixel.
pub fn peak_bytes(from: (u32, u32), to: (u32, u32)) -> u64 {
    if from == to { 0 } else { 16 * u64::from(from.0) * u64::from(to.1) }
}

/// `picture` at `width` x `height`; one that has this size already is not touched.
pub fn resize<P>(
    picture: &ImageBuffer<P, Vec<u8>>,
    width: u32,
    height: u32,
    how: Resize,
    filter: FilterType,
) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8> + 'static,
{
    let (from_width, from_height) = picture.dimensions();
    if (from_width, from_height) == (width, height) {
        return picture.clone();
    }
    let scales = [f64::from(width) / f64::from(from_width), f64::from(height) / f64::from(from_height)];
    match how {
        Resize::Stretch => imageops::resize(picture, width, height, filter),
        Resize::Crop => {
            let scale = scales[0].max(scales[1]);
            let side = |to: u32, from: u32| ((f64::from(to) / scale).round() as u32).clamp(1, from);
            let (part_width, part_height) = (side(width, from_width), side(height, from_height));
            let (x, y) = ((from_width - part_width) / 2, (from_height - part_height) / 2);
            let part = picture.view(x, y, part_width, part_height);
            imageops::resize(&*part, width, height, filter)
        }
        Resize::Fit => {
            let scale = scales[0].min(scales[1]);
            let side = |from: u32, to: u32| ((f64::from(from) * scale).round() as u32).clamp(1, to);
            let inner = (side(from_width, width), side(from_height, height));
            let whole = imageops::resize(picture, inner.0, inner.1, filter);
            let (left, top) = ((width - inner.0) / 2, (height - inner.1) / 2);
            let nearest = |at: u32, before: u32, count: u32| at.saturating_sub(before).min(count - 1);
            ImageBuffer::from_fn(width, height, |x, y| {
                *whole.get_pixel(nearest(x, left, inner.0), nearest(y, top, inner.1))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma};

    /// Columns 0, 10, 20, …
    fn columns(width: u32, height: u32) -> GrayImage {
        GrayImage::from_fn(width, height, |x, _| Luma([(10 * x) as u8]))
    }

    fn row(picture: &GrayImage, y: u32) -> Vec<u8> {
        (0..picture.width()).map(|x| picture.get_pixel(x, y)[0]).collect()
    }

    #[test]
    fn crop_cuts_the_longer_side_fit_extends_the_shorter_one_stretch_does_neither() {
        let wide = columns(8, 4);
        let resized = |how| resize(&wide, 4, 4, how, FilterType::Triangle);
        assert_eq!(row(&resized(Resize::Crop), 0), [20, 30, 40, 50]);
        let stretched = row(&resized(Resize::Stretch), 2);
        assert!(stretched[0] < 15 && stretched[3] > 55, "{stretched:?}");
        // 4 x 2 in the middle; above and below are its edge rows.
        let fitted = resized(Resize::Fit);
        assert_eq!(row(&fitted, 0), stretched);
        assert_eq!(row(&fitted, 3), stretched);

        let tall = imageops::rotate90(&wide);
        let fitted = resize(&tall, 4, 4, Resize::Fit, FilterType::Triangle);
        assert_eq!(fitted.get_pixel(0, 1), fitted.get_pixel(3, 1));
        assert_ne!(fitted.get_pixel(0, 0), fitted.get_pixel(0, 3));
    }

    #[test]
    fn odd_sizes_and_extreme_shapes_have_a_result() {
        for how in [Resize::Crop, Resize::Fit, Resize::Stretch] {
            for (width, height) in [(1, 1), (1, 999), (999, 1), (7, 13), (16, 8)] {
                let resized = resize(&columns(width, height), 16, 8, how, FilterType::Lanczos3);
                assert_eq!(resized.dimensions(), (16, 8));
            }
        }
    }
}
