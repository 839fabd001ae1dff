//! Runs that start from a picture against diffusers' pipelines, and the pixels a mask keeps.

use std::fs;
use std::path::Path;

use candle_core::Tensor;
use image::{Rgb, RgbImage};
use pochade::checkpoint::Checkpoint;
use pochade::pipeline::Picture;
use pochade::request::{Draft, FileKind, Precision, PromptSyntax};

use crate::support::comparison::assert_close;
use crate::support::model_files::copy_small;
use crate::support::models::{data, draw, load_tensors, reference, reference_draft, small};

/// From `init.png`, as all references were made.
fn draft() -> Draft {
    Draft {
        // The picture's.
        width: None,
        height: None,
        prompt_syntax: Some(PromptSyntax::Plain),
        init: Some(data("reference/init.png")),
        ..reference_draft()
    }
}

fn masked(strength: f64) -> Draft {
    Draft { mask: Some(data("reference/mask.png")), strength: Some(strength), ..draft() }
}

/// Latents within 2e-3, pixels within one level where `mask` is white and those of `init.png` elsewhere.
#[track_caller]
fn assert_drawn(picture: &Picture, latents: &Tensor, image: &Tensor, mask: bool) {
    assert_close(&picture.latents, latents, 2e-3, "final latents");
    let image = image.permute((1, 2, 0)).unwrap();
    assert_eq!(image.dims(), [128, 128, 3]);
    let image = image.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let init = image::open(data("reference/init.png")).unwrap().into_rgb8();
    let white = image::open(data("reference/mask.png")).unwrap().into_luma8();
    assert_eq!(picture.rgb.dimensions(), (128, 128));
    let (mut levels, mut kept) = (0, 0);
    for ((x, y, pixel), expected) in picture.rgb.enumerate_pixels().zip(image.as_chunks::<3>().0) {
        if mask && white.get_pixel(x, y)[0] == 0 {
            assert_eq!(pixel, init.get_pixel(x, y), "kept pixel {x},{y}");
            kept += 1;
        } else {
            levels = pixel.0.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).fold(levels, u8::max);
        }
    }
    assert!(levels <= 1, "a pixel is {levels} levels off");
    assert_eq!(kept, if mask { 128 * 128 - 64 * 64 } else { 0 });
}

#[test]
fn a_picture_to_start_from() {
    let expected = reference("img2img.safetensors");
    let picture = draw(&small(), Precision::F32, Draft { strength: Some(0.6), ..draft() });
    assert_drawn(&picture, &expected["final"], &expected["image"], false);
    assert_eq!(picture.files.iter().map(|file| file.kind).collect::<Vec<_>>(), [FileKind::Init]);
}

#[test]
fn a_mask_over_any_model() {
    let expected = reference("inpaint.safetensors");
    let picture = draw(&small(), Precision::F32, masked(1.0));
    assert_drawn(&picture, &expected["final"], &expected["image"], true);
    let kinds: Vec<_> = picture.files.iter().map(|file| file.kind).collect();
    assert_eq!(kinds, [FileKind::Init, FileKind::Mask]);
}

/// A sampler's own noise comes after what encoding the picture and its kept part draws.
#[test]
fn a_mask_partway_with_fresh_noise() {
    let expected = reference("inpaint_variants.safetensors");
    let picture = draw(&small(), Precision::F32, Draft { eta: Some(1.0), ..masked(0.6) });
    assert_drawn(&picture, &expected["blended.final"], &expected["blended.image"], true);
}

/// The small model with a first convolution for 9 channels.
fn inpainting_model(folder: &Path) -> Checkpoint {
    copy_small(folder);
    let path = folder.join("unet/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["in_channels"] = 9.into();
    fs::write(path, config.to_string()).unwrap();
    let path = folder.join("unet/diffusion_pytorch_model.safetensors");
    let mut weights = load_tensors(&path);
    let conv_in = reference("inpaint_variants.safetensors")["conv_in.weight"].clone();
    weights.insert("conv_in.weight".to_owned(), conv_in);
    candle_core::safetensors::save(&weights, path).unwrap();
    Checkpoint::open(folder).unwrap()
}

#[test]
fn a_mask_for_an_inpainting_model() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = inpainting_model(folder.path());
    let expected = reference("inpaint_variants.safetensors");
    for strength in [1.0, 0.6] {
        let picture = draw(&checkpoint, Precision::F32, masked(strength));
        let of = |what: &str| &expected[&format!("native.{strength:?}.{what}")];
        assert_drawn(&picture, of("final"), of("image"), true);
    }
}

/// int8, the tiny autoencoder, a mask off the grid of latents, one of whose pixels is gray.
#[test]
fn what_a_mask_keeps_is_kept_to_the_pixel() {
    let folder = tempfile::tempdir().unwrap();
    let init = RgbImage::from_fn(72, 64, |x, y| Rgb([(x * 3) as u8, (y * 4) as u8, (x * y) as u8]));
    let mut mask = image::GrayImage::from_fn(72, 64, |x, y| {
        image::Luma([if (13..29).contains(&x) && (5..50).contains(&y) { 255 } else { 0 }])
    });
    mask.put_pixel(40, 40, image::Luma([100]));
    let path = |name: &str| folder.path().join(name);
    init.save(path("init.png")).unwrap();
    mask.save(path("mask.png")).unwrap();
    let checkpoint = Checkpoint::built_in().unwrap();
    let draft = Draft {
        prompt: Some("a red apple".into()),
        steps: Some(4),
        seed: Some(3),
        init: Some(path("init.png")),
        mask: Some(path("mask.png")),
        ..Draft::default()
    };
    let picture = draw(&checkpoint, Precision::Int8, draft);
    assert_eq!(picture.rgb.dimensions(), (72, 64));
    let changed = |(x, y): (u32, u32)| picture.rgb.get_pixel(x, y) != init.get_pixel(x, y);
    let all = (0..64).flat_map(|y| (0..72).map(move |x| (x, y)));
    assert!(all.clone().filter(|&(x, y)| mask.get_pixel(x, y)[0] == 0).all(|at| !changed(at)));
    assert!(all.filter(|&(x, y)| mask.get_pixel(x, y)[0] == 255 && changed((x, y))).count() > 700);
}
