//! PNG files: text chunks come back as written, whatever their kind, and a file is whole or absent.

use std::fs;
use std::path::Path;

use image::RgbImage;
use pochade::files::{save, with_suffix};
use pochade::png::{encode, read_header};

fn picture() -> RgbImage {
    RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8, y as u8, 7]))
}

fn chunk_types(bytes: &[u8]) -> Vec<String> {
    let mut types = Vec::new();
    let mut rest = &bytes[8..];
    while rest.len() >= 12 {
        let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        types.push(String::from_utf8_lossy(&rest[4..8]).into_owned());
        rest = &rest[12 + length..];
    }
    types
}

#[test]
fn pixels_and_text_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let texts = [("latin", "caf\u{e9}, \"quotes\"\nlines".to_owned()), ("other", "猫 🦊\nlines".to_owned())];
    let bytes = encode(&picture(), &texts).unwrap();
    assert_eq!(chunk_types(&bytes), ["IHDR", "tEXt", "iTXt", "IDAT", "IEND"]);
    save(&bytes, &path, false).unwrap();

    assert_eq!(image::open(&path).unwrap().into_rgb8(), picture());
    let header = read_header(&path).unwrap();
    assert_eq!((header.width, header.height), (5, 3));
    let read: Vec<(&str, &str)> = header.chunks().collect();
    assert_eq!(read, texts.each_ref().map(|(keyword, text)| (*keyword, text.as_str())));
}

#[test]
fn long_and_empty_texts_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let texts = [("long", "word ".repeat(200_000)), ("empty", String::new())];
    save(&encode(&picture(), &texts).unwrap(), &path, false).unwrap();
    let header = read_header(&path).unwrap();
    assert_eq!(header.text.len(), 2);
    assert_eq!((header.text[0].1.len(), header.text[1].1.len()), (1_000_000, 0));
}

#[test]
fn compressed_text_and_text_after_the_pixels_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let mut file = fs::File::create(&path).unwrap();
    let mut encoder = png::Encoder::new(&mut file, 1, 1);
    encoder.add_ztxt_chunk("zipped".into(), "z".repeat(1000)).unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[0]).unwrap();
    let mut late = png::text_metadata::ITXtChunk::new("late", "猫");
    late.compressed = true;
    writer.write_text_chunk(&late).unwrap();
    writer.finish().unwrap();

    let header = read_header(&path).unwrap();
    assert_eq!(header.text, [("zipped".into(), "z".repeat(1000)), ("late".into(), "猫".into())]);
}

#[test]
fn a_text_bomb_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.png");
    let mut file = fs::File::create(&path).unwrap();
    let mut encoder = png::Encoder::new(&mut file, 1, 1);
    encoder.add_ztxt_chunk("zipped".into(), "z".repeat(8 << 20)).unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[0]).unwrap();
    writer.finish().unwrap();
    assert!(read_header(&path).is_err());
}

#[test]
fn damage_anywhere_is_an_error_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let bytes = encode(&picture(), &[("latin", "text".into()), ("other", "猫".into())]).unwrap();
    for length in 0..bytes.len() - 12 {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(read_header(&path).is_err(), "cut to {length} bytes");
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0xff;
        fs::write(&path, &damaged).unwrap();
        let _ = read_header(&path);
    }
}

#[test]
fn a_taken_name_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.b.png");
    for expected in ["a.b.png", "a.b-1.png", "a.b-2.png"] {
        assert_eq!(save(expected.as_bytes(), &path, false).unwrap(), folder.path().join(expected));
        assert_eq!(fs::read(folder.path().join(expected)).unwrap(), expected.as_bytes());
    }
    assert_eq!(save(b"new", &path, true).unwrap(), path);
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn suffixes_go_before_the_extension() {
    let suffixed = |path: &str, suffix| with_suffix(Path::new(path), suffix).display().to_string();
    assert_eq!(suffixed("x.png", 0), "x.png");
    assert_eq!(suffixed("x.png", 12), "x-12.png");
    assert_eq!(suffixed("x", 1), "x-1");
    assert_eq!(suffixed(".png", 1), ".png-1");
}

#[test]
fn a_failed_write_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("folder");
    fs::create_dir(&taken).unwrap();
    assert!(save(b"x", &taken, true).is_err());
    assert!(save(b"x", &folder.path().join("gone/a.png"), false).is_err());
    assert!(save(b"x", &folder.path().join("x".repeat(300)), false).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn a_picture_has_the_permissions_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    let ordinary = folder.path().join("ordinary");
    fs::write(&ordinary, "").unwrap();
    let saved = save(b"x", &folder.path().join("a.png"), false).unwrap();
    assert_eq!(mode(&saved), mode(&ordinary));
}
