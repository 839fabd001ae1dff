//! PNG files: pixels and text chunks to bytes, bytes to a file that is whole or absent, text chunks back; what the text means is not known here.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::png::{BitDepth, ColorType, Decoder, DecodingError, Encoder, EncodingError};
use anyhow::{Context, Result, bail};
use image::RgbImage;
use tempfile::NamedTempFile;

/// How many names are tried beside a taken one.
const MAX_SUFFIX: u32 = 9999;

/// How the names of temporary files begin and end.
const TEMPORARY: (&str, &str) = (".pochade-", ".tmp");

/// A picture is written in far less time than this.
const ABANDONED: Duration = Duration::from_secs(60);

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

/// Writes `bytes` to `path` so that a reader sees all of them or nothing, and returns the name used:
/// when `path` is taken and `overwrite` is false, `-1`, `-2`, … is added before the extension.
///
/// # Errors
/// Names the file that could not be written.
pub fn save(bytes: &[u8], path: &Path, overwrite: bool) -> Result<PathBuf> {
    let context = || format!("cannot write {}", path.display());
    let mut temporary = whole(bytes, path)?;
    if overwrite {
        // Renaming would replace a device or a pipe by a file.
        if path.metadata().is_ok_and(|target| !target.is_file()) {
            bail!("cannot write {}: it is not a regular file", path.display());
        }
        temporary.persist(path).with_context(context)?;
        return Ok(path.to_owned());
    }
    for suffix in 0..=MAX_SUFFIX {
        let candidate = with_suffix(path, suffix);
        match named(temporary, &candidate)? {
            None => return Ok(candidate),
            Some(unnamed) => temporary = unnamed,
        }
    }
    bail!("cannot write {}: it and its next {MAX_SUFFIX} names are taken", path.display())
}

/// Writes `bytes` to `path` as [`save`] does, or to no file where the name is taken; whether it was free.
///
/// # Errors
/// Names the file that could not be written.
pub fn save_new(bytes: &[u8], path: &Path) -> Result<bool> {
    Ok(named(whole(bytes, path)?, path)?.is_none())
}

/// A temporary file beside `path` that holds `bytes`.
fn whole(bytes: &[u8], path: &Path) -> Result<NamedTempFile> {
    let context = || format!("cannot write {}", path.display());
    let mut temporary = sibling().tempfile_in(folder_of(path)).with_context(context)?;
    // The lock tells that a living process owns the file; not every file system has locks.
    let _ = temporary.as_file().try_lock();
    temporary.write_all(bytes).with_context(context)?;
    Ok(temporary)
}

/// Gives the file its name, or gives it back where the name is taken.
fn named(temporary: NamedTempFile, path: &Path) -> Result<Option<NamedTempFile>> {
    match temporary.persist_noclobber(path) {
        Ok(_) => Ok(None),
        Err(failed) if failed.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Some(failed.file)),
        Err(failed) => Err(failed.error).with_context(|| format!("cannot write {}", path.display())),
    }
}

/// Removes the temporary files that killed processes left in `folder`, never one that a living process writes:
/// those are locked, and young where locks mean nothing. Returns how many.
pub fn sweep(folder: &Path) -> usize {
    let abandoned = |path: &Path| {
        let age = path.metadata().and_then(|file| file.modified()).ok().and_then(|time| time.elapsed().ok());
        age.is_some_and(|age| age > ABANDONED) && File::open(path).is_ok_and(|file| file.try_lock().is_ok())
    };
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(TEMPORARY.0)
                && name.ends_with(TEMPORARY.1)
                && abandoned(&entry.path())
                && std::fs::remove_file(entry.path()).is_ok()
        })
        .count()
}

/// The folder a file lies in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sibling() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
    // Temporary files are private by default; a picture is an ordinary file, as the umask says.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder
}

/// `apple.png`, `apple-1.png`, `apple-2.png`, …
pub fn with_suffix(path: &Path, suffix: u32) -> PathBuf {
    if suffix == 0 {
        return path.to_owned();
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{suffix}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Reads a PNG's size and text chunks, wherever they stand in the file.
///
/// # Errors
/// Names the file and why it is no readable PNG.
pub fn read_header(path: &Path) -> Result<Header> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
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
