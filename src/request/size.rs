//! The size of a picture: as it is spelled, and which one suits a picture to start from.

use anyhow::{Result, ensure};

use super::limits::{MAX_SIZE, SIZE_STEP};

/// The sides in `512x768`.
pub fn parse_size(text: &str) -> Option<(usize, usize)> {
    let (width, height) = text.split_once(['x', 'X'])?;
    Some((width.trim().parse().ok()?, height.trim().parse().ok()?))
}

/// The size nearest to `picture`, in its shape, that is possible and whose area is a quarter to nine quarters of
/// the area of `model`: SD 1.5 repeats itself above and falls apart below.
///
/// # Errors
/// When the picture has no pixels.
pub fn sensible_size(picture: (u32, u32), model: (usize, usize)) -> Result<(usize, usize)> {
    let (width, height) = (f64::from(picture.0), f64::from(picture.1));
    ensure!(width > 0.0 && height > 0.0, "it is empty");
    let (area, trained) = (width * height, (model.0 * model.1) as f64);
    let scale = (area.clamp(trained * 0.25, trained * 2.25) / area).sqrt();
    let side = |pixels: f64| {
        let steps = (pixels * scale / SIZE_STEP as f64).round() as usize;
        steps.clamp(1, MAX_SIZE / SIZE_STEP) * SIZE_STEP
    };
    Ok((side(width), side(height)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_follows_the_picture_within_what_the_model_draws_well() {
        let size = |picture| sensible_size(picture, (512, 512)).unwrap();
        assert_eq!(size((512, 768)), (512, 768));
        assert_eq!(size((509, 515)), (512, 512));
        assert_eq!(size((4000, 3000)), (888, 664));
        assert_eq!(size((64, 32)), (360, 184));
        let (width, height) = size((30_000, 1));
        assert!((width, height) == (2048, 8));
    }
}
