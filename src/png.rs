//! PNG: pixels and text chunks to bytes, and text chunks back; what the text means is not known here.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use ::png::{BitDepth, ColorType, Decoder, Encoder, EncodingError, Limits};
use anyhow::{Context, Result};
use image::RgbImage;

use crate::files;

/// The most text of a file that is read, in bytes, all its chunks together and decompressed.
const MAX_TEXT: usize = 2 << 20;
/// What a file's other chunks may have allocated, in bytes, e.g. for a color profile.
const MAX_CHUNKS: usize = 16 << 20;

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

fn parse_header(file: BufReader<File>) -> Result<Header> {
    let limits = Limits { bytes: MAX_CHUNKS };
    let mut reader = Decoder::new_with_limits(file, limits).read_info()?;
    reader.finish()?;
    let info = reader.info();
    // One budget for the texts of a file: many small chunks can swell to as much as a large one.
    let mut left = MAX_TEXT;
    let mut text = Vec::new();
    let mut add = |keyword: &str, content: String| -> Result<usize> {
        let length = keyword.len() + content.len();
        left = left
            .checked_sub(length)
            .with_context(|| format!("it holds more than {} KiB of text", MAX_TEXT >> 10))?;
        text.push((keyword.to_owned(), content));
        Ok(left)
    };
    let mut room = MAX_TEXT;
    for chunk in &info.uncompressed_latin1_text {
        room = add(&chunk.keyword, chunk.text.clone())?;
    }
    for chunk in &info.compressed_latin1_text {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(room)?;
        room = add(&chunk.keyword, chunk.get_text()?)?;
    }
    for chunk in &info.utf8_text {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(room)?;
        room = add(&chunk.keyword, chunk.get_text()?)?;
    }
    Ok(Header { width: info.width, height: info.height, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_texts_of_a_file_share_one_budget() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("swollen.png");
        let with = |add: &dyn Fn(&mut Encoder<'_, &mut Vec<u8>>)| {
            let mut bytes = Vec::new();
            let mut encoder = Encoder::new(&mut bytes, 1, 1);
            add(&mut encoder);
            let mut writer = encoder.write_header().unwrap();
            writer.write_image_data(&[0]).unwrap();
            writer.finish().unwrap();
            std::fs::write(&path, &bytes).unwrap();
            (bytes.len(), read_header(&path))
        };
        let long = "x".repeat(1 << 20);
        let (size, read) = with(&|encoder| {
            for _ in 0..1000 {
                encoder.add_ztxt_chunk("parameters".into(), long.clone()).unwrap();
            }
        });
        assert!(size < 8 << 20, "{size}");
        assert!(format!("{:#}", read.unwrap_err()).contains("swollen.png"));
        let (_, read) = with(&|encoder| {
            for _ in 0..3 {
                encoder.add_text_chunk("parameters".into(), long.clone()).unwrap();
            }
        });
        assert!(format!("{:#}", read.unwrap_err()).contains("more than 2048 KiB of text"));
        let (_, read) = with(&|encoder| encoder.add_ztxt_chunk("parameters".into(), long.clone()).unwrap());
        assert_eq!(read.unwrap().chunks().next(), Some(("parameters", long.as_str())));
    }
}
