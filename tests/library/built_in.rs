//! The built-in model: its pictures against diffusers', int8 against float, and the background that was asked for.

use std::sync::LazyLock;

use image::RgbImage;
use pochade::checkpoint::Checkpoint;
use pochade::request::{Precision, Request};

use crate::support::comparison::distance;
use crate::support::models::{data, generate, open, pipeline, prompts};

static MODEL: LazyLock<Checkpoint> = LazyLock::new(|| Checkpoint::built_in().unwrap());

/// The backgrounds the model was trained on.
const BACKGROUNDS: [(&str, [u8; 3]); 10] = [
    ("white", [255, 255, 255]),
    ("black", [20, 20, 20]),
    ("red", [220, 50, 47]),
    ("orange", [245, 140, 40]),
    ("yellow", [250, 215, 70]),
    ("green", [80, 175, 80]),
    ("blue", [70, 130, 220]),
    ("purple", [150, 90, 200]),
    ("pink", [245, 160, 190]),
    ("gray", [150, 150, 150]),
];

fn draw(precision: Precision, requests: &[Request]) -> Vec<RgbImage> {
    let model = open(&MODEL, precision);
    let mut pipeline = pipeline(&model);
    requests.iter().map(|request| generate(&mut pipeline, request).rgb).collect()
}

fn psnr(expected: &RgbImage, got: &RgbImage) -> f64 {
    distance(got, expected).psnr(255.0)
}

/// What diffusers drew in float32 with the floats that the weights stand for, and what was asked for.
fn samples() -> Vec<(Request, RgbImage)> {
    let meta = std::fs::read_to_string(data("golden/meta.json")).unwrap();
    let samples: Vec<serde_json::Value> = serde_json::from_str(&meta).unwrap();
    let sample = |sample: &serde_json::Value| {
        let prompt = sample["prompt"].as_str().unwrap();
        let request = Request::new(prompt, sample["seed"].as_u64().unwrap(), &MODEL.defaults());
        let picture = image::open(data("golden").join(sample["file"].as_str().unwrap())).unwrap().to_rgb8();
        (request, picture)
    };
    samples.iter().map(sample).collect()
}

/// The background whose colour most pixels of the border are nearest to.
fn background(picture: &RgbImage) -> &'static str {
    let distance = |pixel: &[u8; 3], colour: &[u8; 3]| -> i32 {
        pixel.iter().zip(colour).map(|(&a, &b)| (i32::from(a) - i32::from(b)).pow(2)).sum()
    };
    let mut votes = [0; BACKGROUNDS.len()];
    let (width, height) = picture.dimensions();
    for (x, y, pixel) in picture.enumerate_pixels() {
        if x < 4 || y < 4 || x + 4 >= width || y + 4 >= height {
            let nearest = |&at: &usize| distance(&pixel.0, &BACKGROUNDS[at].1);
            votes[(0..BACKGROUNDS.len()).min_by_key(nearest).unwrap()] += 1;
        }
    }
    BACKGROUNDS[(0..votes.len()).max_by_key(|&at| votes[at]).unwrap()].0
}

#[test]
fn pictures_equal_diffusers_and_have_the_background_asked_for() {
    let samples = samples();
    assert_eq!(samples.len(), 8);
    let requests: Vec<_> = samples.iter().map(|(request, _)| request.clone()).collect();
    for (precision, least) in [(Precision::Int8, 42.0), (Precision::F32, 75.0)] {
        for ((request, expected), picture) in samples.iter().zip(draw(precision, &requests)) {
            let psnr = psnr(expected, &picture);
            assert!(psnr >= least, "{} in {precision}: {psnr:.1} dB", request.prompt);
            let found = background(&picture);
            assert!(request.prompt.contains(&format!("{found} background")), "{}: {found}", request.prompt);
        }
    }
}

/// What quantizing activations does to 24 pictures; the weights are the same integers in both.
#[test]
fn int8_keeps_the_picture() {
    let request = |(seed, prompt): (usize, &String)| Request::new(prompt, seed as u64, &MODEL.defaults());
    let prompts = prompts();
    let requests: Vec<_> = prompts.iter().enumerate().map(request).collect();
    let (expected, got) = (draw(Precision::F32, &requests), draw(Precision::Int8, &requests));
    let mut all = Vec::new();
    for (request, (expected, got)) in requests.iter().zip(expected.iter().zip(&got)) {
        let psnr = psnr(expected, got);
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
