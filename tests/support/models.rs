//! The models, references and requests of the tests, and runs that nobody watches: one place to follow the library's API.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use pochade::checkpoint::{Checkpoint, TensorFile, TensorSet};
use pochade::layers::{Backend, Params};
use pochade::networks::clip::TextEncoder;
use pochade::networks::config::{ClipConfig, KlConfig, TinyConfig, UnetConfig, VaeConfig};
use pochade::networks::unet::Unet;
use pochade::noise::NoiseSource;
use pochade::pipeline::{Model, Numerics, Observer, Picture, Pipeline, Residency};
use pochade::request::{Draft, Precision, Request, Rng, Sampler, Schedule};
use serde_json::Value;

/// A file or folder of `tests/data`.
pub fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// The tensors of a file of `tests/data/reference`.
pub fn reference(name: &str) -> HashMap<String, Tensor> {
    load_tensors(&data("reference").join(name))
}

pub fn load_tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// What the references were made with.
pub fn reference_settings() -> Value {
    serde_json::from_str(&fs::read_to_string(data("reference/meta.json")).unwrap()).unwrap()
}

/// Every way in which the networks can be computed with floats here.
pub fn float_backends() -> [Backend; 2] {
    [Backend::cpu().unwrap(), Backend::candle(Device::Cpu, DType::F32)]
}

/// The small model: SD 1.5's structure, of random weights.
pub fn small() -> Checkpoint {
    Checkpoint::open(&data("small")).unwrap()
}

pub fn clip_config(checkpoint: &Checkpoint) -> ClipConfig {
    ClipConfig::parse(&checkpoint.configs().text_encoder).unwrap()
}

pub fn unet_config(checkpoint: &Checkpoint) -> UnetConfig {
    UnetConfig::parse(&checkpoint.configs().unet).unwrap()
}

/// Of a model whose autoencoder is the usual one.
pub fn kl_config(checkpoint: &Checkpoint) -> KlConfig {
    match VaeConfig::parse(&checkpoint.configs().vae).unwrap() {
        VaeConfig::Kl(config) => config,
        VaeConfig::Tiny(_) => panic!("an AutoencoderKL is expected"),
    }
}

pub fn text_encoder(checkpoint: &Checkpoint, backend: &Backend) -> TextEncoder {
    let params = Params::new(checkpoint.tensors(), backend, "text_encoder");
    TextEncoder::load(&params, clip_config(checkpoint)).unwrap()
}

pub fn unet(checkpoint: &Checkpoint, backend: &Backend) -> Unet {
    Unet::load(&Params::new(checkpoint.tensors(), backend, "unet"), unet_config(checkpoint)).unwrap()
}

/// The tiny autoencoder beside the small model.
pub fn taesd() -> (TensorSet, TinyConfig) {
    let folder = data("small/taesd");
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let VaeConfig::Tiny(config) = VaeConfig::parse(&serde_json::from_str(&config).unwrap()).unwrap() else {
        panic!("an AutoencoderTiny is expected")
    };
    let mut tensors = TensorSet::default();
    let file = TensorFile::open(&folder.join("diffusion_pytorch_model.safetensors")).unwrap();
    tensors.add(file, |name| Some(format!("vae.{name}"))).unwrap();
    (tensors, config)
}

/// Standard normal values.
pub fn noise(seed: u64, shape: &[usize]) -> Tensor {
    NoiseSource::new(Rng::Torch, seed).normal(shape, &Device::Cpu).unwrap()
}

/// Things that the built-in model draws, on some of its backgrounds.
pub fn prompts() -> Vec<String> {
    let things = [
        "a tulip",
        "a rose",
        "a cactus",
        "a rabbit",
        "a cat",
        "a dragon",
        "a panda",
        "an owl",
        "a shark",
        "a penguin",
        "a snail",
        "a red apple",
        "a lemon",
        "a pineapple",
        "a doughnut",
        "a birthday cake",
        "slice of pizza",
        "french fries",
        "a teapot",
        "a carrot",
        "broccoli",
        "a crab",
        "an elephant",
        "a fox",
    ];
    let backgrounds = ["", " on a blue background", " on yellow", ", green background"];
    let prompt = |(index, thing): (usize, &&str)| format!("{thing}{}", backgrounds[index % 4]);
    things.iter().enumerate().map(prompt).collect()
}

/// What most references were drawn with: DDIM in 10 steps.
pub fn reference_draft() -> Draft {
    let settings = reference_settings();
    let text = |key: &str| Some(settings[key].as_str().unwrap().to_owned());
    let size = |key: &str| Some(settings[key].as_u64().unwrap() as usize);
    Draft {
        prompt: text("prompt"),
        negative_prompt: text("negative_prompt"),
        width: size("width"),
        height: size("height"),
        steps: Some(10),
        guidance_scale: settings["guidance_scale"].as_f64(),
        sampler: Some(Sampler::Ddim),
        schedule: Some(Schedule::Leading),
        seed: settings["seed"].as_u64(),
        ..Draft::default()
    }
}

pub fn resolve(draft: Draft, checkpoint: &Checkpoint) -> Request {
    draft.resolve(&checkpoint.defaults(), pochade::picture_in::size_of).unwrap()
}

/// Ready to be computed with on this CPU.
pub fn open(checkpoint: &Checkpoint, precision: Precision) -> Model {
    Model::open(checkpoint.clone(), &Numerics::new(Device::Cpu, precision)).unwrap()
}

/// For any number of pictures.
pub fn pipeline(model: &Model) -> Pipeline<'_> {
    Pipeline::new(model, Residency::Kept)
}

pub fn generate(pipeline: &mut Pipeline<'_>, request: &Request) -> Picture {
    pipeline.generate(request, &mut Quiet).unwrap()
}

/// One picture by a pipeline of its own, which gives each network's memory back before the next.
pub fn draw(checkpoint: &Checkpoint, precision: Precision, draft: Draft) -> Picture {
    let model = open(checkpoint, precision);
    generate(&mut Pipeline::new(&model, Residency::OneByOne), &resolve(draft, checkpoint))
}

/// Watches a run to its end without a word.
pub struct Quiet;

impl Observer for Quiet {}

/// Keeps what a run says.
#[derive(Default)]
pub struct Listener(pub Vec<String>);

impl Observer for Listener {
    fn warn(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }

    fn inform(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }
}
