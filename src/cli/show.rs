//! `--show`: a picture in the terminal, in pixels where the terminal has a protocol for them, else in half blocks.

use std::io::Write;

use anyhow::Result;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use image::{DynamicImage, RgbImage};
use viuer::Config;

use super::printer::stdout;
use crate::png;

/// Draws a picture on stdout, which must be a terminal.
///
/// # Errors
/// When the terminal can't be written.
pub fn show(picture: RgbImage) -> Result<()> {
    if speaks_kitty(|name| std::env::var(name).ok()) {
        return stdout(&kitty(&picture)?);
    }
    let config = Config { absolute_offset: false, use_kitty: false, ..Config::default() };
    viuer::print(&DynamicImage::ImageRgb8(picture), &config)?;
    Ok(())
}

/// The longest piece of a picture in one sequence, by kitty's protocol.
const KITTY_CHUNK: usize = 4096;
/// Wider pictures are shown this many columns wide, so that they fit into an ordinary window.
const KITTY_COLUMNS: u32 = 80;
/// About what a column is wide, in pixels.
const KITTY_COLUMN_WIDTH: u32 = 8;

/// A PNG in kitty's graphics protocol (`f=100`, transmit and display), which a terminal is not to answer (`q=2`):
/// one that does not know it leaves it out.
fn kitty(picture: &RgbImage) -> Result<Vec<u8>> {
    let encoded = BASE64_STANDARD.encode(png::encode(picture, &[])?);
    let columns = match picture.width() {
        wide if wide > KITTY_COLUMNS * KITTY_COLUMN_WIDTH => format!(",c={KITTY_COLUMNS}"),
        _ => String::new(),
    };
    let mut text = Vec::with_capacity(encoded.len() + encoded.len() / 128 + 64);
    let mut chunks = encoded.as_bytes().chunks(KITTY_CHUNK).peekable();
    let mut control = format!("a=T,f=100,q=2{columns},");
    while let Some(chunk) = chunks.next() {
        let more = u8::from(chunks.peek().is_some());
        write!(text, "\x1b_G{control}m={more};")?;
        text.extend(chunk);
        text.extend(b"\x1b\\");
        control.clear();
    }
    text.push(b'\n');
    Ok(text)
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
    fn kitty_gets_a_png_in_pieces_it_does_not_answer() {
        let noise =
            RgbImage::from_fn(300, 90, |x, y| image::Rgb([(x * y) as u8, (x + 7 * y) as u8, (x * x) as u8]));
        let text = String::from_utf8(kitty(&noise).unwrap()).unwrap();
        let pieces: Vec<&str> = text.trim_end().split_terminator("\x1b\\").collect();
        assert!(pieces.len() > 2, "{}", pieces.len());
        let mut bytes = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let (control, payload) = piece.strip_prefix("\x1b_G").unwrap().split_once(';').unwrap();
            assert_eq!(control.ends_with("m=0"), index + 1 == pieces.len());
            assert_eq!(control.contains("q=2"), index == 0);
            assert!(payload.len() <= KITTY_CHUNK);
            bytes.extend(payload.bytes());
        }
        let png = BASE64_STANDARD.decode(bytes).unwrap();
        assert_eq!(image::load_from_memory(&png).unwrap().to_rgb8(), noise);
        let wide = kitty(&RgbImage::new(2048, 8)).unwrap();
        assert!(wide.starts_with(b"\x1b_Ga=T,f=100,q=2,c=80,m=0;"));
    }

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
