//! Each network and the whole pipeline against diffusers' outputs for the same f16 weights.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use pochade::checkpoint::{Checkpoint, Defaults, TensorFile, TensorSet};
use pochade::layers::{Backend, Params};
use pochade::networks::clip::TextEncoder;
use pochade::networks::config::{ClipConfig, UnetConfig, VaeConfig};
use pochade::networks::unet::Unet;
use pochade::networks::{taesd, vae};
use pochade::pipeline::{Model, Numerics, Observer, Pipeline, Residency};
use pochade::prompt::Tokenizer;
use pochade::request::{Precision, Request, Schedule};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn small() -> Checkpoint {
    Checkpoint::open(&data("small")).unwrap()
}

fn reference(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(data("reference").join(name), &Device::Cpu).unwrap()
}

/// Every way the networks can be computed on this machine.
fn backends() -> [Backend; 2] {
    [Backend::cpu().unwrap(), Backend::candle(Device::Cpu, DType::F32)]
}

/// `max |a - b| / max |b|`.
fn relative_error(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let max =
        |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    max(&(a - b).unwrap()) / max(b)
}

fn assert_close(what: &str, backend: &Backend, a: &Tensor, b: &Tensor) {
    let error = relative_error(a, b);
    assert!(error <= 1e-4, "{what} on {}: relative error {error}", backend.name());
}

#[test]
fn token_ids_equal() {
    let tokenizer = Tokenizer::new(small().vocabulary()).unwrap();
    let text = std::fs::read_to_string(data("reference/tokens.json")).unwrap();
    let samples: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert!(!samples.is_empty());
    for sample in samples {
        let text = sample["text"].as_str().unwrap();
        let expected: Vec<u32> = serde_json::from_value(sample["ids"].clone()).unwrap();
        assert_eq!(tokenizer.chunk(text, 77).unwrap().0, expected, "{text:?}");
    }
}

#[test]
fn text_embeddings() {
    let checkpoint = small();
    let tokenizer = Tokenizer::new(checkpoint.vocabulary()).unwrap();
    let meta = std::fs::read_to_string(data("reference/meta.json")).unwrap();
    let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
    let expected = reference("text.safetensors");
    for backend in backends() {
        let params = Params::new(checkpoint.tensors(), &backend, "text_encoder");
        let config = ClipConfig::parse(&checkpoint.configs().text_encoder).unwrap();
        let encoder = TextEncoder::load(&params, config).unwrap();
        for (text, embedding) in [("prompt", "prompt_embeds"), ("negative_prompt", "negative_prompt_embeds")]
        {
            let (ids, _) = tokenizer.chunk(meta[text].as_str().unwrap(), 77).unwrap();
            assert_close(text, &backend, &encoder.forward(&ids).unwrap(), &expected[embedding]);
        }
    }
}

#[test]
fn unet() {
    let checkpoint = small();
    let expected = reference("networks.safetensors");
    for backend in backends() {
        let params = Params::new(checkpoint.tensors(), &backend, "unet");
        let unet = Unet::load(&params, UnetConfig::parse(&checkpoint.configs().unet).unwrap()).unwrap();
        let context = unet.context(&expected["unet_context"]).unwrap();
        let timestep = expected["unet_timestep"].to_vec1::<f32>().unwrap()[0];
        let output = unet.forward(&expected["unet_x"], f64::from(timestep), &context).unwrap();
        assert_close("unet", &backend, &output, &expected["unet_y"]);
    }
}

#[test]
fn vae() {
    let checkpoint = small();
    let expected = reference("networks.safetensors");
    let VaeConfig::Kl(config) = VaeConfig::parse(&checkpoint.configs().vae).unwrap() else {
        panic!("the small checkpoint has an AutoencoderKL")
    };
    for backend in backends() {
        let params = Params::new(checkpoint.tensors(), &backend, "vae");
        let decoder = vae::Decoder::load(&params, &config).unwrap();
        let picture = decoder.forward(&expected["vae_z"]).unwrap();
        assert_close("vae decoder", &backend, &picture, &expected["vae_image"]);
        let encoder = vae::Encoder::load(&params, &config).unwrap();
        let latents = encoder.forward(&expected["vae_in"]).unwrap();
        assert_close("vae encoder mean", &backend, &latents.mean, &expected["vae_mean"]);
        assert_close("vae encoder variance", &backend, &latents.log_variance, &expected["vae_logvar"]);
    }
}

#[test]
fn tiny_autoencoder() {
    let folder = data("small/taesd");
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let VaeConfig::Tiny(config) = VaeConfig::parse(&serde_json::from_str(&config).unwrap()).unwrap() else {
        panic!("taesd is an AutoencoderTiny")
    };
    let mut tensors = TensorSet::default();
    let file = TensorFile::open(&folder.join("diffusion_pytorch_model.safetensors")).unwrap();
    tensors.add(file, |name| Some(format!("vae.{name}"))).unwrap();
    let expected = reference("taesd.safetensors");
    for backend in backends() {
        let params = Params::new(&tensors, &backend, "vae");
        let decoder = taesd::Decoder::load(&params, &config).unwrap();
        assert_close("decoder", &backend, &decoder.forward(&expected["z"]).unwrap(), &expected["image"]);
        let encoder = taesd::Encoder::load(&params, &config).unwrap();
        assert_close("encoder", &backend, &encoder.forward(&expected["in"]).unwrap(), &expected["latents"]);
    }
}

/// Runs one picture without being stopped.
struct Quiet;

impl Observer for Quiet {}

fn request(meta: &serde_json::Value, name: &str) -> Request {
    let run = &meta["samplers"][name];
    let variants = ["_karras", "_eta1", "_trailing", "_leading"];
    let sampler = variants.iter().find_map(|variant| name.strip_suffix(variant)).unwrap_or(name);
    let schedule = match run["config"]["use_karras_sigmas"].as_bool() {
        Some(true) => Schedule::Karras,
        _ => run["config"]["timestep_spacing"].as_str().unwrap_or("linspace").parse().unwrap(),
    };
    let integer = |value: &serde_json::Value| value.as_u64().unwrap();
    Request {
        negative_prompt: meta["negative_prompt"].as_str().unwrap().to_owned(),
        eta: run["eta"].as_f64().unwrap_or(0.0),
        ..Request::new(
            meta["prompt"].as_str().unwrap(),
            integer(&meta["seed"]),
            &Defaults {
                width: integer(&meta["width"]) as usize,
                height: integer(&meta["height"]) as usize,
                steps: integer(&run["steps"]) as usize,
                guidance_scale: run["guidance_scale"].as_f64().unwrap(),
                sampler: sampler.parse().unwrap(),
                schedule,
            },
        )
    }
}

/// All 18 sampler configurations of the references, through the whole pipeline.
#[test]
fn pictures() {
    let meta = std::fs::read_to_string(data("reference/meta.json")).unwrap();
    let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
    let expected = reference("samplers.safetensors");
    let model = Model::open(small(), &Numerics::new(Device::Cpu, Precision::F32)).unwrap();
    let mut pipeline = Pipeline::new(&model, Residency::Kept);
    let names: Vec<_> = meta["samplers"].as_object().unwrap().keys().collect();
    assert_eq!(names.len(), 18);
    for name in names {
        let picture = pipeline.generate(&request(&meta, name), &mut Quiet).unwrap();
        let error = relative_error(&picture.latents, &expected[&format!("{name}.final")]);
        assert!(error <= 2e-3, "{name}: relative error of the final latents {error}");
        let image = expected[&format!("{name}.image")].permute((1, 2, 0)).unwrap();
        let image = image.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        let levels = picture.rgb.as_raw().iter().zip(&image).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(levels <= 1, "{name}: a pixel is {levels} levels off");
    }
}
