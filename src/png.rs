//! PNG: pixels and text chunks to bytes, and text chunks back; what the text means is not known here.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use ::png::{BitDepth, ColorType, Decoder, DecodingError, Encoder, EncodingError};
use anyhow::{Context, Result};
use image::RgbImage;

use crate::files;

/// Compressed text that would grow beyond this many bytes is refused.
const MAX_TEXT: usize = 2 << 20;

/// A PNG's header and text, without its pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub width: u32,
    pub height: u32,
    /// Keyword and text of every text chunk, tEXt before zTXt before iTXt.
    pub text: Vec<(String, String)>,
}

impl Header {
    pub fn chunks(&self) -> impl Iterator<Item = (&str, &str)> {
        self.text.iter().map(|(keyword, text)| (keyword.as_str(), text.as_str()))
    }
}

/// Encodes a picture; each text becomes a tEXt chunk when it is Latin-1, else an iTXt chunk.
///
/// # Errors
/// When the picture is empty or a keyword is not 1 to 79 Latin-1 characters.
pub fn encode(picture: &RgbImage, text: &[(&str, String)]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    write(&mut bytes, picture, text).context("encoding the PNG")?;
    Ok(bytes)
}

fn write(bytes: &mut Vec<u8>, picture: &RgbImage, text: &[(&str, String)]) -> Result<(), EncodingError> {
    let mut encoder = Encoder::new(bytes, picture.width(), picture.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    for (keyword, text) in text {
        if text.chars().all(|c| u8::try_from(c).is_ok()) {
            encoder.add_text_chunk((*keyword).to_owned(), text.clone())?;
        } else {
            encoder.add_itxt_chunk((*keyword).to_owned(), text.clone())?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()
}

/// Reads a PNG's size and text chunks, wherever they are in the file.
///
/// # Errors
/// Names the file and why it can't be read as a PNG.
pub fn read_header(path: &Path) -> Result<Header> {
    let file = files::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse_header(BufReader::new(file))
        .with_context(|| format!("{} is not a PNG file that can be read", path.display()))
}

fn parse_header(file: BufReader<File>) -> Result<Header, DecodingError> {
    let mut reader = Decoder::new(file).read_info()?;
    reader.finish()?;
    let info = reader.info();
    let mut text: Vec<(String, String)> = info
        .uncompressed_latin1_text
        .iter()
        .map(|chunk| (chunk.keyword.clone(), chunk.text.clone()))
        .collect();
    for chunk in &info.compressed_latin1_text {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(MAX_TEXT)?;
        text.push((chunk.keyword.clone(), chunk.get_text()?));
    }
    for chunk in &info.utf8_text {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(MAX_TEXT)?;
        text.push((chunk.keyword.clone(), chunk.get_text()?));
    }
    Ok(Header { width: info.width, height: info.height, text })
}
