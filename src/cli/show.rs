//! `--show`: a picture drawn in the terminal, in pixels where the terminal has a protocol for them, else in half blocks.

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
