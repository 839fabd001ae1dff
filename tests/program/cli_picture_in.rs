//! What `--init`, `--mask`, `--strength` and `--resize` take, write down and refuse, through the binary.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use serde_json::Value;

use crate::support::sandbox::Sandbox;

/// Red at the left, green at the right.
fn two_colours(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, _| if x < width / 2 { Rgb([255, 0, 0]) } else { Rgb([0, 255, 0]) })
}

fn bytes(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Puts an EXIF orientation into a JPEG, behind its first two bytes.
fn turned(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let tiff = [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", &[orientation, 0, 0, 0, 0, 0, 0, 0][..]];
    let exif = [b"Exif\0\0", &tiff.concat()[..]].concat();
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], b"\xff\xe1", &length, &exif, &jpeg[2..]].concat()
}

const FEW: [&str; 7] = ["-m", "pocket", "a red apple", "-s", "1", "--force", "--json"];

/// Draws and returns the report and the picture.
fn draw(sandbox: &Sandbox, args: &[&str]) -> (Value, RgbImage) {
    let steps: &[&str] = if args.contains(&"--steps") { &[] } else { &["--steps", "4"] };
    let left = sandbox.run(&[&FEW[..], &["-o", "out.png"], steps, args].concat());
    let report = serde_json::from_str(left.done()).unwrap();
    (report, image::open(sandbox.join("out.png")).unwrap().into_rgb8())
}

/// A mask that keeps everything but a bit of the lower edge shows what became of the picture.
fn kept(sandbox: &Sandbox, args: &[&str], mask: (u32, u32)) -> RgbImage {
    let mut white = image::GrayImage::new(mask.0, mask.1);
    let (width, height) = mask;
    for (x, y) in (0..8).flat_map(|x| (0..8).map(move |y| (x, y))) {
        white.put_pixel(width / 2 + x, height - 1 - y, image::Luma([255]));
    }
    sandbox.write("mask.png", &bytes(white, ImageFormat::Png));
    draw(sandbox, &[&["--mask", "mask.png"], args].concat()).1
}

#[test]
fn every_kind_of_picture_is_known_by_its_content() {
    let sandbox = Sandbox::new();
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
        sandbox.write("picture.dat", &bytes(two_colours(96, 64), format));
        let picture = kept(&sandbox, &["--init", "picture.dat"], (96, 64));
        assert_eq!(picture.dimensions(), (96, 64), "{format:?}");
        let [red, green, _] = picture.get_pixel(10, 30).0;
        assert!(red > 240 && green < 15, "{format:?}");
    }
}

#[test]
fn a_photo_is_turned_upright_and_transparency_is_white() {
    let sandbox = Sandbox::new();
    let jpeg = bytes(two_colours(96, 64), ImageFormat::Jpeg);
    // 6: to be turned clockwise, which brings the left side to the top.
    sandbox.write("photo.jpg", &turned(&jpeg, 6));
    let picture = kept(&sandbox, &["--init", "photo.jpg"], (64, 96));
    assert_eq!(picture.dimensions(), (64, 96));
    let (top, bottom) = (picture.get_pixel(50, 5).0, picture.get_pixel(5, 90).0);
    assert!(top[0] > 240 && top[1] < 15 && bottom[0] < 15 && bottom[1] > 240, "{top:?} {bottom:?}");

    let glass = RgbaImage::from_fn(64, 64, |x, _| Rgba([0, 0, 0, if x < 32 { 0 } else { 255 }]));
    sandbox.write("glass.png", &bytes(glass, ImageFormat::Png));
    let picture = kept(&sandbox, &["--init", "glass.png"], (64, 64));
    assert_eq!((picture.get_pixel(4, 4).0, picture.get_pixel(40, 4).0), ([255; 3], [0; 3]));
}

#[test]
fn resize_crops_fits_or_stretches() {
    let sandbox = Sandbox::new();
    // Blue stripes at both ends of a wide picture.
    let wide =
        RgbImage::from_fn(
            128,
            64,
            |x, _| if (16..112).contains(&x) { Rgb([9; 3]) } else { Rgb([0, 0, 255]) },
        );
    sandbox.write("wide.png", &bytes(wide, ImageFormat::Png));
    let resized =
        |how: &[&str]| kept(&sandbox, &[&["--init", "wide.png", "--size", "64x64"], how].concat(), (128, 64));
    let blue = |picture: &RgbImage, x, y| picture.get_pixel(x, y)[2] > 240;
    let crop = resized(&[]);
    assert_eq!(crop, resized(&["--resize", "crop"]));
    assert!(!blue(&crop, 0, 0) && !blue(&crop, 0, 40));
    let stretched = resized(&["--resize", "stretch"]);
    assert!(blue(&stretched, 2, 2) && !blue(&stretched, 20, 2));
    let fitted = resized(&["--resize", "fit"]);
    assert!(blue(&fitted, 2, 0) && blue(&fitted, 2, 20) && !blue(&fitted, 20, 0));
}

#[test]
fn a_picture_remembers_what_it_was_made_from() {
    let sandbox = Sandbox::new();
    sandbox.write("init.png", &bytes(two_colours(64, 64), ImageFormat::Png));
    let (_, first) = draw(&sandbox, &["--init", "init.png", "--strength", "0.5"]);
    let info = sandbox.run(&["info", "out.png", "--json"]);
    let info: Value = serde_json::from_str(info.done()).unwrap();
    assert_eq!((&info["request"]["init"], &info["request"]["strength"]), (&"init.png".into(), &0.5.into()));
    assert_eq!(info["request"]["resize"], "crop");
    let header = pochade::png::read_header(&sandbox.join("out.png")).unwrap();
    assert!(
        header.chunks().any(|(key, text)| key == "parameters" && text.contains("Denoising strength: 0.5"))
    );

    // A picture opens no file by itself: it may come from anyone.
    let alone = sandbox.run(&["-m", "pocket", "--from", "out.png", "-o", "none.png"]);
    alone.refused(2, &["'init.png'", "--init FILE"]);
    let again = |name: &str| {
        sandbox.run(&["-m", "pocket", "--from", "out.png", "--init", "init.png", "-o", name, "--force"])
    };
    let left = again("again.png");
    left.done();
    assert_eq!(image::open(sandbox.join("again.png")).unwrap().into_rgb8(), first);
    assert!(!left.stderr.contains("not the file"), "{}", left.stderr);

    sandbox.write("init.png", &bytes(two_colours(64, 72), ImageFormat::Png));
    let left = again("other.png");
    left.done();
    assert!(left.stderr.contains("'init'") && left.stderr.contains("not the file"), "{}", left.stderr);

    std::fs::remove_file(sandbox.join("init.png")).unwrap();
    again("none.png").refused(2, &["init.png"]);
}

#[test]
fn a_picture_tells_no_folders() {
    let sandbox = Sandbox::new();
    let init = sandbox.write("init.png", &bytes(two_colours(64, 64), ImageFormat::Png));
    let mask = sandbox.write("mask.png", &bytes(two_colours(64, 64), ImageFormat::Png));
    let (init, mask) = (init.to_str().unwrap(), mask.to_str().unwrap());
    let folder = sandbox.path().to_str().unwrap();
    draw(&sandbox, &["--init", init, "--mask", mask, "--lora-dir", folder, "--embedding-dir", folder]);
    let text = String::from_utf8_lossy(&std::fs::read(sandbox.join("out.png")).unwrap()).into_owned();
    assert!(text.contains("\"init\":\"init.png\"") && text.contains("\"mask\":\"mask.png\""), "{text}");
    assert!(!text.contains(folder), "{text}");
}

#[test]
fn more_strength_goes_further() {
    let sandbox = Sandbox::new();
    let init = two_colours(64, 64);
    sandbox.write("init.png", &bytes(init.clone(), ImageFormat::Png));
    let distance = |strength: &str| {
        let (_, made) = draw(&sandbox, &["--init", "init.png", "--steps", "10", "--strength", strength]);
        made.as_raw().iter().zip(init.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>()
    };
    let [little, half, all] = ["0.1", "0.5", "1"].map(distance);
    assert!(little < half && half < all, "{little} {half} {all}");
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line() {
    let sandbox = Sandbox::new();
    sandbox.write("init.png", &bytes(two_colours(64, 64), ImageFormat::Png));
    sandbox.write("wide.png", &bytes(two_colours(128, 64), ImageFormat::Png));
    sandbox.write("black.png", &bytes(RgbImage::new(64, 64), ImageFormat::Png));
    sandbox.write("notes.txt", b"not a picture");
    sandbox.write("empty.png", b"");
    let whole = bytes(two_colours(64, 64), ImageFormat::Png);
    sandbox.write("cut.png", &whole[..whole.len() / 2]);
    // A header that promises 65535 x 65535 pixels.
    let mut huge = bytes(two_colours(64, 64), ImageFormat::Jpeg);
    let frame = huge.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    huge[frame + 5..frame + 9].fill(0xff);
    sandbox.write("huge.jpg", &huge);

    let refused = |args: &[&str], parts: &[&str]| {
        let left = sandbox.run(&[&FEW[..], &["-o", "no.png", "--steps", "4"], args].concat());
        left.refused(2, parts);
        assert_eq!(left.stderr.lines().filter(|line| line.contains("error: ")).count(), 1, "{}", left.stderr);
        assert!(!sandbox.join("no.png").exists());
    };
    refused(&["--mask", "init.png"], &["mask", "init"]);
    refused(&["--strength", "0.5"], &["strength", "init"]);
    refused(&["--resize", "fit"], &["resize", "init"]);
    for strength in ["0", "-1", "1.01", "nan"] {
        refused(&["--init", "init.png", "--strength", strength], &["strength", "out of range"]);
    }
    refused(&["--init", "init.png", "--strength", "0.2"], &["none of 4 steps", "0.25"]);
    refused(&["--init", "init.png", "--mask", "wide.png"], &["wide.png", "128x64", "64x64"]);
    refused(&["--init", "init.png", "--mask", "black.png"], &["black.png", "white"]);
    for file in ["notes.txt", "empty.png", "cut.png", "huge.jpg", "missing.png"] {
        refused(&["--init", file], &[file]);
        refused(&["--init", file, "--size", "64x64"], &[file]);
        refused(&["--init", "init.png", "--mask", file], &[file]);
    }
}
