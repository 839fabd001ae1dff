//! `--vae`, `--taesd` and `--text-encoder` in every form these components come in, and what a picture says of them.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::{Value, json};

use crate::support::model_files as files;
use crate::support::models::data;
use crate::support::sandbox::Sandbox;

fn small() -> String {
    data("small").to_str().unwrap().to_owned()
}

/// The pixels of a picture of the small model with further `args`.
#[track_caller]
fn pixels(sandbox: &Sandbox, args: &[&str]) -> Vec<u8> {
    let small = small();
    let settings = ["-q", "-m", &small, "a red apple", "-s", "1", "--steps", "2", "--size", "64x64"];
    sandbox.run(&[&settings[..], &["-o", "out.png", "--force"], args].concat()).done();
    image::open(sandbox.join("out.png")).unwrap().into_rgb8().into_raw()
}

/// Twice the weights that end with `name`, so that a component is seen to be used.
fn altered(tensors: BTreeMap<String, Tensor>, name: &str) -> BTreeMap<String, Tensor> {
    let alter = |(key, tensor): (String, Tensor)| {
        let tensor = if key.ends_with(name) { (tensor * 2.0).unwrap() } else { tensor };
        (key, tensor)
    };
    tensors.into_iter().map(alter).collect()
}

fn without_prefix(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone())))
        .collect()
}

fn with_prefix(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    tensors
        .iter()
        .filter(|(name, _)| name.starts_with(prefix))
        .map(|(name, tensor)| (name.clone(), tensor.clone()))
        .collect()
}

#[test]
fn a_vae_is_taken_in_every_spelling() {
    let sandbox = Sandbox::new();
    let plain = pixels(&sandbox, &[]);
    let diffusers = altered(files::component("vae"), "decoder.conv_out.weight");
    let ldm = altered(files::ldm(), "decoder.conv_out.weight");
    files::save(&diffusers, &sandbox.join("diffusers.safetensors"));
    files::save(&with_prefix(&ldm, "first_stage_model."), &sandbox.join("prefixed.safetensors"));
    files::save(&without_prefix(&ldm, "first_stage_model."), &sandbox.join("bare.safetensors"));
    files::save(&ldm, &sandbox.join("whole.safetensors"));
    let expected = pixels(&sandbox, &["--vae", "diffusers.safetensors"]);
    assert_ne!(expected, plain);
    for file in ["prefixed.safetensors", "bare.safetensors", "whole.safetensors"] {
        assert_eq!(pixels(&sandbox, &["--vae", file]), expected, "{file}");
    }
    assert_eq!(pixels(&sandbox, &["--vae", &format!("{}/vae", small())]), plain);
    assert_eq!(pixels(&sandbox, &["--vae", &small()]), plain);
}

#[test]
fn a_taesd_is_taken_in_both_spellings() {
    let sandbox = Sandbox::new();
    let folder = format!("{}/taesd", small());
    let tensors = files::component("taesd");
    files::save(&tensors, &sandbox.join("diffusers.safetensors"));
    // The author's file counts the clamp, too.
    let original: BTreeMap<String, Tensor> = without_prefix(&tensors, "decoder.layers.")
        .into_iter()
        .map(|(name, tensor)| {
            let (number, rest) = name.split_once('.').unwrap();
            (format!("{}.{rest}", number.parse::<usize>().unwrap() + 1), tensor)
        })
        .collect();
    files::save(&original, &sandbox.join("taesd_decoder.safetensors"));
    let expected = pixels(&sandbox, &["--taesd", &folder]);
    assert_ne!(expected, pixels(&sandbox, &[]));
    for file in ["diffusers.safetensors", "taesd_decoder.safetensors", &small()] {
        assert_eq!(pixels(&sandbox, &["--taesd", file]), expected, "{file}");
    }
}

#[test]
fn a_text_encoder_is_taken_in_every_spelling() {
    let sandbox = Sandbox::new();
    let plain = pixels(&sandbox, &[]);
    let ldm = altered(files::ldm(), "final_layer_norm.weight");
    let prefix = "cond_stage_model.transformer.";
    let newest = format!("{prefix}text_model.");
    files::save(&with_prefix(&ldm, prefix), &sandbox.join("prefixed.safetensors"));
    files::save(&without_prefix(&ldm, prefix), &sandbox.join("old.safetensors"));
    files::save(&without_prefix(&ldm, &newest), &sandbox.join("new.safetensors"));
    let expected = pixels(&sandbox, &["--text-encoder", "prefixed.safetensors"]);
    assert_ne!(expected, plain);
    for file in ["old.safetensors", "new.safetensors"] {
        // A lone file says nothing of its heads; the name of the folder's config does not matter.
        assert_eq!(pixels(&sandbox, &["--text-encoder", file]), expected, "{file}");
    }
    assert_eq!(pixels(&sandbox, &["--text-encoder", &small()]), plain);
}

#[test]
fn a_picture_says_which_components_made_it() {
    let sandbox = Sandbox::new();
    files::save(&files::component("vae"), &sandbox.join("other.safetensors"));
    let plain = pixels(&sandbox, &["--vae", "other.safetensors"]);
    let info: Value = serde_json::from_str(sandbox.run(&["info", "out.png", "--json"]).done()).unwrap();
    assert_eq!(info["components"], json!({"vae": "other"}));
    assert!(sandbox.run(&["info", "out.png"]).done().contains("vae other"));
    let small = small();
    let again = sandbox.run(&["--from", "out.png", "-m", &small, "-o", "again.png"]);
    again.done();
    assert!(again.stderr.contains("--vae 'other'"), "{}", again.stderr);
    let again =
        sandbox.run(&["--from", "out.png", "-m", &small, "--vae", "other.safetensors", "-o", "same.png"]);
    again.done();
    assert!(!again.stderr.contains("--vae"), "{}", again.stderr);
    assert_eq!(image::open(sandbox.join("same.png")).unwrap().into_rgb8().into_raw(), plain);
}

#[test]
fn what_does_not_fit_is_refused() {
    let sandbox = Sandbox::new();
    let small = small();
    files::save(&files::component("vae"), &sandbox.join("vae.safetensors"));
    files::save(&files::component("taesd"), &sandbox.join("taesd.safetensors"));
    let mut unet = files::component("unet");
    files::save(&unet, &sandbox.join("unet.safetensors"));
    let refused = |args: &[&str], code: i32, parts: &[&str]| {
        sandbox.run(&[&["x", "-o", "out.png"], args].concat()).refused(code, parts);
    };
    refused(&["-m", &small, "--vae", "absent"], 3, &["absent"]);
    refused(&["-m", &small, "--vae", "taesd.safetensors"], 3, &["taesd.safetensors", "--taesd"]);
    refused(&["-m", &small, "--taesd", "vae.safetensors"], 3, &["vae.safetensors", "--vae"]);
    refused(&["-m", &small, "--text-encoder", "vae.safetensors"], 3, &["no text encoder"]);
    refused(&["-m", &small, "--vae", "vae.safetensors", "--taesd", "taesd.safetensors"], 2, &["--taesd"]);
    refused(&["-m", "vae.safetensors"], 3, &["--vae", "no whole model"]);
    refused(&["-m", "unet.safetensors"], 3, &["no text encoder and no autoencoder", "--text-encoder"]);
    sandbox.run(&["bench", "--vae", "vae.safetensors"]).refused(3, &["random weights", "--vae"]);
    refused(&["--text-encoder", &small], 3, &["64 channels"]);
    unet.insert("lora_up.weight".to_owned(), unet["conv_in.bias"].clone());
    files::save(&unet, &sandbox.join("lora.safetensors"));
    refused(&["-m", &small, "--vae", "lora.safetensors"], 3, &["LoRA"]);
}
