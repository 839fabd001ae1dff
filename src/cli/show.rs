//! `--show`: a picture drawn in the terminal, in pixels where the terminal has a protocol for them, else in half blocks.

use std::io::Write;

use anyhow::Result;
use image::{DynamicImage, RgbImage};
use viuer::Config;

/// Draws a picture on stdout, which must be a terminal.
///
/// # Errors
/// When the terminal can't be written.
pub fn show(picture: RgbImage) -> Result<()> {
    let config = Config {
        absolute_offset: false,
        use_kitty: speaks_kitty(|name| std::env::var(name).ok()),
        ..Config::default()
    };
    viuer::print(&DynamicImage::ImageRgb8(picture), &config)?;
    Ok(())
}

/// Lines that a preview in half blocks takes at most.
const PREVIEW_LINES: u32 = 20;

/// Draws a preview on stderr in half blocks, over the last one if `again`: unlike a terminal's own pictures, they
/// are text, of which the number of lines is known.
///
/// # Errors
/// When the terminal can't be written.
pub fn redraw(picture: RgbImage, again: bool) -> Result<()> {
    use std::fmt::Write as _;
    let (width, height) = picture.dimensions();
    let lines = PREVIEW_LINES.min(height.div_ceil(2)).max(1);
    let columns = (2 * lines * width / height).clamp(1, 72);
    let small = image::imageops::thumbnail(&picture, columns, 2 * lines);
    let mut text = if again { format!("\x1b[{lines}A") } else { String::new() };
    for line in 0..lines {
        for column in 0..columns {
            let [[r, g, b], [r2, g2, b2]] = [0, 1].map(|half| small.get_pixel(column, 2 * line + half).0);
            write!(text, "\x1b[38;2;{r};{g};{b}m\x1b[48;2;{r2};{g2};{b2}m\u{2580}")?;
        }
        text += "\x1b[0m\x1b[K\n";
    }
    Ok(std::io::stderr().lock().write_all(text.as_bytes())?)
}

/// Known by name: asking a terminal waits for an answer that some never give.
fn speaks_kitty(variable: impl Fn(&str) -> Option<String>) -> bool {
    let names = ["TERM", "TERM_PROGRAM"].map(|name| variable(name).unwrap_or_default().to_ascii_lowercase());
    variable("KITTY_WINDOW_ID").is_some()
        || names.iter().any(|name| ["kitty", "ghostty", "wezterm"].iter().any(|known| name.contains(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_known_by_name() {
        let speaks = |name: &'static str, value: &'static str| {
            speaks_kitty(|asked| (asked == name).then(|| value.to_owned()))
        };
        assert!(speaks("TERM", "xterm-kitty"));
        assert!(speaks("TERM_PROGRAM", "WezTerm"));
        assert!(speaks("KITTY_WINDOW_ID", "1"));
        assert!(!speaks("TERM", "xterm-256color"));
    }
}
