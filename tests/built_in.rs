//! The built-in model: its pictures against diffusers', and int8 against float.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::Device;
use pochade::checkpoint::Checkpoint;
use pochade::compare::compare;
use pochade::pipeline::{LoadOptions, Observer, Pipeline};
use pochade::request::{Precision, Request};

struct Quiet;

impl Observer for Quiet {}

static MODEL: LazyLock<Checkpoint> = LazyLock::new(|| Checkpoint::built_in().unwrap());

fn pipeline(precision: Precision) -> Pipeline<'static> {
    let options = LoadOptions { device: Device::Cpu, precision, single: false };
    Pipeline::load(&MODEL, &options).unwrap()
}

fn request(prompt: &str, seed: u64) -> Request {
    let defaults = MODEL.defaults();
    Request::new(prompt, seed, &defaults)
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

#[test]
fn pictures_equal_diffusers() {
    let meta = std::fs::read_to_string(data("golden/meta.json")).unwrap();
    let samples: Vec<serde_json::Value> = serde_json::from_str(&meta).unwrap();
    assert_eq!(samples.len(), 8);
    for precision in [Precision::F32, Precision::Int8] {
        let pipeline = pipeline(precision);
        for sample in &samples {
            let prompt = sample["prompt"].as_str().unwrap();
            let request = request(prompt, sample["seed"].as_u64().unwrap());
            let picture = pipeline.generate(&request, &mut Quiet).unwrap().rgb;
            let file = data("golden").join(sample["file"].as_str().unwrap());
            let psnr = compare(&image::open(file).unwrap().to_rgb8(), &picture).unwrap().psnr;
            assert!(psnr >= 40.0, "{prompt} in {precision}: {psnr:.1} dB");
        }
    }
}

/// What quantizing weights and activations does to 24 pictures.
#[test]
fn int8_keeps_the_picture() {
    let things = [
        "a tulip",
        "a rose",
        "a cactus",
        "a rabbit face",
        "a cat face",
        "a dragon face",
        "a panda face",
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
        "a fox face",
    ];
    let backgrounds = ["", " on a blue background", " on yellow", ", green background"];
    let (float, int8) = (pipeline(Precision::F32), pipeline(Precision::Int8));
    let mut all = Vec::new();
    for (index, thing) in things.iter().enumerate() {
        let request = request(&format!("{thing}{}", backgrounds[index % 4]), index as u64);
        let [expected, got] =
            [&float, &int8].map(|pipeline| pipeline.generate(&request, &mut Quiet).unwrap().rgb);
        let psnr = compare(&expected, &got).unwrap().psnr;
        assert!(psnr >= 28.0, "{}: {psnr:.1} dB", request.prompt);
        all.push(psnr);
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    println!(
        "int8 against f32 over {} pictures: mean {mean:.1} dB, worst {:.1} dB",
        all.len(),
        all.iter().copied().fold(f64::INFINITY, f64::min)
    );
    assert!(mean >= 34.0, "mean {mean:.1} dB");
}
