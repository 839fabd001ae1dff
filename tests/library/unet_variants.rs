//! Relatives of SD 1.5's UNet against diffusers: fewer blocks, more input channels, guidance as an input.

use std::fs;

use candle_core::Tensor;
use pochade::checkpoint::{TensorFile, TensorSet};
use pochade::layers::Params;
use pochade::networks::config::UnetConfig;
use pochade::networks::unet::Unet;
use serde_json::Value;

use crate::support::comparison::assert_close;
use crate::support::model_files::copy_small;
use crate::support::models::{data, float_backends, load_tensors};
use crate::support::sandbox::Sandbox;

/// A network of `reference` with its config, and the other tensors beside it.
fn reference(name: &str) -> (TensorSet, Value, impl Fn(&str) -> Tensor) {
    let path = data("reference").join(name);
    let file = TensorFile::open(&path).unwrap();
    let config = serde_json::from_str(&file.metadata()["config"]).unwrap();
    let mut tensors = TensorSet::default();
    tensors.add(file, |name| name.starts_with("unet.").then(|| name.to_owned())).unwrap();
    let all = load_tensors(&path);
    (tensors, config, move |name: &str| all[name].clone())
}

#[test]
fn a_unet_with_missing_blocks_and_nine_channels_is_diffusers() {
    let (tensors, config, stored) = reference("unet_distilled.safetensors");
    for backend in float_backends() {
        let config = UnetConfig::parse(&config).unwrap();
        assert_eq!((config.in_channels, config.has_mid_block, config.layers_per_block), (9, false, 1));
        let unet = Unet::load(&Params::new(&tensors, &backend, "unet"), config).unwrap();
        let context = unet.context(&stored("context")).unwrap();
        let output = unet.forward(&stored("latents"), 401.0, &context).unwrap();
        assert_close(&output, &stored("output"), 1e-4, backend.name());
    }
}

#[test]
fn a_unet_that_takes_the_guidance_scale_is_diffusers() {
    let (tensors, config, stored) = reference("unet_guided.safetensors");
    for backend in float_backends() {
        let config = UnetConfig::parse(&config).unwrap();
        let unet = Unet::load(&Params::new(&tensors, &backend, "unet"), config).unwrap();
        for scale in [1.0, 2.5, 8.0] {
            let context = unet.context(&stored("context")).unwrap().guided_by(scale);
            let output = unet.forward(&stored("latents"), 601.0, &context).unwrap();
            let expected = stored(&format!("output.{scale:?}"));
            assert_close(&output, &expected, 1e-4, format_args!("{} at {scale}", backend.name()));
        }
    }
}

/// The small model's folder with a UNet of `reference` instead of its own.
fn model_with(sandbox: &Sandbox, name: &str) {
    let (_, config, _) = reference(name);
    copy_small(sandbox.path());
    fs::write(sandbox.join("unet/config.json"), config.to_string()).unwrap();
    let tensors = load_tensors(&data("reference").join(name));
    let weights = tensors
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("unet.")?.to_owned(), tensor)));
    let path = sandbox.join("unet/diffusion_pytorch_model.safetensors");
    candle_core::safetensors::save(&weights.collect(), path).unwrap();
}

#[test]
fn a_distilled_model_takes_one_pass_and_few_steps() {
    let sandbox = Sandbox::new();
    model_with(&sandbox, "unet_guided.safetensors");
    let draw = |args: &[&str]| {
        let settings =
            ["-m", ".", "x", "-s", "1", "--precision", "f32", "--json", "-o", "out.png", "--force"];
        let left = sandbox.run(&[&settings[..], args].concat());
        let report: Value = serde_json::from_str(left.done()).unwrap();
        (image::open(sandbox.join("out.png")).unwrap().into_rgb8().into_raw(), report, left.stderr)
    };
    let (plain, report, _) = draw(&[]);
    assert_eq!((&report["steps"], &report["sampler"]), (&4.into(), &"lcm".into()));
    let (opposed, _, said) = draw(&["-n", "blurry"]);
    assert_eq!(opposed, plain);
    assert!(said.contains("negative prompt has no effect"), "{said}");
    assert_ne!(draw(&["--cfg", "1.5"]).0, plain);
}

#[test]
fn an_inpainting_model_without_a_mask_says_what_it_needs() {
    let sandbox = Sandbox::new();
    model_with(&sandbox, "unet_guided.safetensors");
    let path = sandbox.join("unet/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["in_channels"] = 9.into();
    fs::write(&path, config.to_string()).unwrap();
    sandbox.run(&["-m", ".", "x", "--steps", "1"]).refused(2, &["inpainting model", "a mask"]);
}

#[test]
fn sizes_of_no_whole_latents_are_refused() {
    let sandbox = Sandbox::new();
    model_with(&sandbox, "unet_guided.safetensors");
    let path = sandbox.join("vae/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // A fifth level: 16 pixels for each latent.
    for (key, value) in [
        ("block_out_channels", 64.into()),
        ("down_block_types", "DownEncoderBlock2D".into()),
        ("up_block_types", "UpDecoderBlock2D".into()),
    ] {
        config[key].as_array_mut().unwrap().push(value);
    }
    fs::write(&path, config.to_string()).unwrap();
    let run = sandbox.run(&["-m", ".", "x", "--steps", "1", "--size", "72x64"]);
    run.refused(2, &["multiples of 16", "72x64"]);
}
