//! The arithmetic of the second pass at a larger size: its pixels, steps and limits; how it is run is the pipeline's.

use anyhow::{Result, ensure};

use super::limits::{MAX_SCALE, MAX_SIZE, MAX_STEPS, SIZE_STEP, share};

/// AUTOMATIC1111's.
pub const DEFAULT_STRENGTH: f64 = 0.7;

/// One side of the final picture, in pixels.
pub fn side(pixels: usize, scale: f64) -> usize {
    (pixels as f64 * scale) as usize / SIZE_STEP * SIZE_STEP
}

/// Of how many steps from noise `steps` are the last that do so much.
pub fn steps_from_noise(steps: usize, strength: f64) -> usize {
    // With a little less than 1 rounding down gives 20 for 14 steps of strength 0.7, and 20 for 20 of 1.
    ((steps as f64 / strength + 1e-9) as usize).max(steps)
}

/// # Errors
/// Names the first value out of range and what would be accepted.
pub fn limits((width, height): (usize, usize), scale: f64, steps: usize, strength: f64) -> Result<()> {
    ensure!((1.0..=MAX_SCALE).contains(&scale), "hires scale {scale} is out of range (1 to {MAX_SCALE})");
    let (wide, high) = (side(width, scale), side(height, scale));
    ensure!(
        wide.max(high) <= MAX_SIZE,
        "hires scale {scale} makes {wide}x{high} of {width}x{height}: the most is {MAX_SIZE}"
    );
    ensure!((1..=MAX_STEPS).contains(&steps), "hires steps {steps} is out of range (1 to {MAX_STEPS})");
    share("hires strength", strength, "above 0 up to 1")?;
    let from_noise = steps_from_noise(steps, strength);
    ensure!(
        from_noise <= MAX_STEPS,
        "{steps} hires steps of strength {strength} are the last of {from_noise}: the most is {MAX_STEPS}"
    );
    Ok(())
}
