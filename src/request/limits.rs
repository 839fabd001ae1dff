//! The limits of a request's fields, each with the message that names it and what would be accepted.

use std::fmt::Display;
use std::ops::RangeInclusive;

use anyhow::{Result, bail, ensure};

/// The largest width and height, in pixels.
pub const MAX_SIZE: usize = 2048;
/// Width and height are multiples of this: the VAE's factor.
pub const SIZE_STEP: usize = 8;
/// The most steps: as many as the schedule was trained with.
pub const MAX_STEPS: usize = 1000;
/// The longest prompt, in bytes: more than the most chunks a prompt may make.
pub const MAX_PROMPT: usize = 1 << 16;
/// The largest scale of a second pass.
pub const MAX_SCALE: f64 = 4.0;

/// A prompt: a PNG text chunk ends at a NUL character.
pub fn text(name: &str, text: &str) -> Result<()> {
    ensure!(!text.contains('\0'), "the {name} holds a NUL character");
    ensure!(text.len() <= MAX_PROMPT, "the {name} is {} bytes long: the most is {MAX_PROMPT}", text.len());
    Ok(())
}

/// A number in a range, both ends included; NaN is in none.
pub fn within<T: PartialOrd + Display>(name: &str, value: T, range: RangeInclusive<T>) -> Result<()> {
    let (least, most) = (range.start(), range.end());
    ensure!(range.contains(&value), "{name} {value} is out of range ({least} to {most})");
    Ok(())
}

/// A share of steps or of change.
pub fn share(name: &str, share: f64, range: &str) -> Result<()> {
    ensure!(share > 0.0 && share <= 1.0, "{name} {share} is out of range ({range})");
    Ok(())
}

/// Width or height.
pub fn side(name: &str, pixels: usize) -> Result<()> {
    if (SIZE_STEP..=MAX_SIZE).contains(&pixels) && pixels.is_multiple_of(SIZE_STEP) {
        return Ok(());
    }
    let below = (pixels / SIZE_STEP * SIZE_STEP).clamp(SIZE_STEP, MAX_SIZE);
    let above = (below + SIZE_STEP).min(MAX_SIZE);
    if pixels < below || below == above {
        bail!("{name} {pixels} is not possible: the nearest size is {below}");
    }
    bail!("{name} {pixels} is not a multiple of {SIZE_STEP}: the nearest sizes are {below} and {above}");
}

/// How far to go from a picture: at least one step.
pub fn strength(strength: f64, steps: usize) -> Result<()> {
    share("strength", strength, "above 0, up to 1")?;
    ensure!(
        steps as f64 * strength >= 1.0,
        "strength {strength} leaves none of {steps} steps: take more steps, or a strength of at least {}",
        (1000.0 / steps as f64).ceil() / 1000.0
    );
    Ok(())
}
