//! Picture files to upright RGB pixels within bounds of memory; sizes are changed in `resize`.

use std::io::{Cursor, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, Rgb, RgbImage};

use crate::files::{self, Fingerprint};

/// The largest file, in bytes.
pub const MAX_FILE: u64 = 256 << 20;
/// The most bytes of pixels as they are stored.
pub const MAX_DECODED: u64 = 256 << 20;
/// The most pixels, whatever their form: 192 MiB when they have become RGB.
const MAX_PIXELS: u64 = 1 << 26;
/// The longest side, in pixels.
const MAX_SIDE: u32 = 1 << 15;

/// A picture file's bytes.
pub struct Opened<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
}

/// A decoded file.
pub struct Decoded {
    pub rgb: RgbImage,
    pub fingerprint: Fingerprint,
}

impl<'a> Opened<'a> {
    /// # Errors
    /// Names the file, and says why it can't be read.
    pub fn read(path: &'a Path) -> Result<Self> {
        let bytes = bytes(path).with_context(|| unusable(path))?;
        Ok(Self { path, bytes })
    }

    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// Decodes a PNG, JPEG or WebP, whatever its ending: turned as its EXIF orientation says, transparency laid on
    /// white, an animation's first frame.
    ///
    /// # Errors
    /// Names the file, and says what is wrong with it.
    pub fn decode(&self) -> Result<Decoded> {
        let rgb = decode(&self.bytes).with_context(|| unusable(self.path))?;
        Ok(Decoded { rgb, fingerprint: Fingerprint::of_bytes(&self.bytes) })
    }

    /// Width and height, upright.
    ///
    /// # Errors
    /// As [`Self::decode`], except for what only shows in the pixels.
    pub fn dimensions(&self) -> Result<(u32, u32)> {
        let read = || {
            let (_, mut decoder) = decoder(&self.bytes)?;
            let (width, height) = decoder.dimensions();
            anyhow::Ok(if turns(decoder.orientation()?) { (height, width) } else { (width, height) })
        };
        read().with_context(|| unusable(self.path))
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Bytes that [`Self::decode`] takes at the most beside the file's own.
    ///
    /// # Errors
    /// As [`Self::dimensions`].
    pub fn decoding_bytes(&self) -> Result<u64> {
        let estimate = || {
            let (format, mut decoder) = decoder(&self.bytes)?;
            let (width, height) = decoder.dimensions();
            let (pixels, stored) = (u64::from(width) * u64::from(height), decoder.total_bytes());
            let decoding = match format {
                // Rows go straight to where they belong.
                ImageFormat::Png => 0,
                // A copy of the file; all coefficients of a progressive JPEG, frame and canvas of a WebP.
                _ => self.file_bytes() + 8 * pixels,
            };
            let turning = if turns(decoder.orientation()?) { stored } else { 0 };
            let converting = match decoder.color_type() {
                ColorType::Rgb8 => 0,
                ColorType::Rgba8 => 3 * pixels,
                color if color.has_alpha() => 7 * pixels,
                _ => 3 * pixels,
            };
            anyhow::Ok(stored + decoding.max(turning).max(converting))
        };
        estimate().with_context(|| unusable(self.path))
    }
}

pub fn unusable(path: &Path) -> String {
    format!("cannot use the picture {}", path.display())
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    files::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MAX_FILE, "the file is larger than {} MiB", MAX_FILE >> 20);
    Ok(bytes)
}

/// Whether width and height change places.
fn turns(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

fn decoder(bytes: &[u8]) -> Result<(ImageFormat, impl ImageDecoder)> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let format = match reader.format() {
        Some(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => format,
        _ => bail!("it is no PNG, JPEG or WebP"),
    };
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODED);
    reader.limits(limits);
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    ensure!(
        u64::from(width) * u64::from(height) <= MAX_PIXELS,
        "{width}x{height} pixels are more than the {} million that are decoded",
        MAX_PIXELS / 1_000_000
    );
    ensure!(
        decoder.total_bytes() <= MAX_DECODED,
        "{width}x{height} pixels are more than the {} MiB that are decoded",
        MAX_DECODED >> 20
    );
    Ok((format, decoder))
}

fn decode(bytes: &[u8]) -> Result<RgbImage> {
    let (_, mut decoder) = decoder(bytes)?;
    let orientation = decoder.orientation()?;
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    if !picture.color().has_alpha() {
        return Ok(picture.into_rgb8());
    }
    let with_alpha = picture.into_rgba8();
    let (width, height) = with_alpha.dimensions();
    Ok(RgbImage::from_fn(width, height, |x, y| {
        let [rgb @ .., alpha] = with_alpha.get_pixel(x, y).0;
        Rgb(rgb.map(|value| mix(value, u8::MAX, alpha)))
    }))
}

/// `a` where `share` is 255, `b` where it is 0, both exactly; rounded in between.
pub fn mix(a: u8, b: u8, share: u8) -> u8 {
    let (a, b, share) = (u32::from(a), u32::from(b), u32::from(share));
    ((a * share + b * (255 - share) + 127) / 255) as u8
}
