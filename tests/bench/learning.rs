//! What learned rounding keeps, at eight and at four bits: the tables of the README.
//!
//! `POCHADE_FLOATS=FOLDER cargo test --release --test bench -- --ignored --nocapture learning`, of the built-in model's
//! int8 weights as floats where no other floats are named.

use std::time::Instant;

use pochade::calibration::{self, Kept, Learned, Lesson, Runs};
use pochade::checkpoint::{Checkpoint, Storage};
use pochade::kernels::Isa;
use pochade::quantize::grid::Grid;
use pochade::quantize::{Balance, Cancellation, Learning, Moments, Policy};
use pochade::request::Request;
use pochade::sensitivity::Recording;
use tempfile::TempDir;

use crate::fidelity::{named_floats, record, row};
use crate::support::models::noise;

/// The floats and what is learned from.
fn source(folder: &TempDir) -> (Checkpoint, Runs) {
    let source = named_floats(folder);
    let defaults = source.defaults();
    let requests: Vec<Request> = (1000..)
        .zip(calibration::PROMPTS)
        .map(|(seed, prompt)| Request::new(prompt, seed, &defaults))
        .collect();
    let runs = Runs::draw(&source, &requests, 8, &Kept::nothing(), &mut |_, _| {}).unwrap();
    (source, runs)
}

fn compare(recording: &Recording, name: &str, quantized: &Checkpoint) -> f64 {
    let found = recording.compare(quantized, &mut |_, _| {}).unwrap();
    row(name, &found);
    found.output_mean_sqnr.unwrap()
}

#[test]
#[ignore = "takes minutes"]
fn eight_bits_learned() {
    let folder = TempDir::new().unwrap();
    let (source, runs) = source(&folder);
    let recording = record(&source, 8, 0);
    let policy = Policy::default();
    let nearest = compare(&recording, "nearest", &source);
    let balance = source.tensors().balance(&policy).unwrap();
    for learning in [Learning::Gptq, Learning::AdaRound] {
        let learned = learn(&source, &policy, &balance, &runs, learning);
        let name = format!("{learning:?}");
        compare(&recording, &name, &source.merged(learned.clone().without_corrections()));
        let corrected = compare(&recording, &format!("{name}, biases corrected"), &source.merged(learned));
        assert!(corrected > nearest + 0.3);
    }
}

fn learn(
    source: &Checkpoint,
    policy: &Policy,
    balance: &Balance,
    runs: &Runs,
    learning: Learning,
) -> Learned {
    let lesson = Lesson { learning, runs, memory: 1 << 30, kept: &Kept::nothing() };
    calibration::learn(source, policy, balance, &lesson, &mut |_, _| {}).unwrap()
}

/// Files of eight and four bits, by each method.
#[test]
#[ignore = "takes minutes"]
fn four_bits_learned() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("rounded.safetensors");
    let (source, runs) = source(&folder);
    let recording = record(&source, 8, 0);
    let rounded = |rules: &[&str], learning: Option<Learning>| {
        let policy = Policy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect());
        let balance = source.tensors().balance(&policy).unwrap();
        let mut model = source.clone();
        if let Some(learning) = learning {
            model = source.merged(learn(&source, &policy, &balance, &runs, learning));
        }
        model.write_native(&path, Storage::Balanced(&policy, &balance)).unwrap();
        let megabytes = path.metadata().unwrap().len() as f64 / 1e6;
        let name = format!("{} {learning:?} {megabytes:.2} MB", rules.join(","));
        compare(&recording, &name, &Checkpoint::open(&path).unwrap())
    };
    for rules in [
        &[][..],
        &["conv3x3=4"],
        &["conv3x3=4", "text_encoder.*=4"],
        &["conv3x3=4", "text_encoder.*=4", "vae.*=4"],
        &["unet.*=4"],
        &["*=4"],
    ] {
        for learning in [None, Some(Learning::Gptq), Some(Learning::AdaRound)] {
            let found = rounded(rules, learning);
            assert!(rules != ["conv3x3=4"] || learning.is_none() || found > 25.0, "{found}");
        }
    }
}

/// Seconds that one of Stable Diffusion 1.5's largest 3x3 convolutions takes: 1280 to 1280 channels.
#[test]
#[ignore = "takes a minute and a gigabyte"]
fn a_large_layer() {
    let (inputs, taps, outputs, rows) = (1280, 9, 1280, 16384);
    let columns = inputs * taps;
    let mut seconds = Instant::now();
    let mut lap = |what: &str| {
        println!("{what}: {:.1} s", seconds.elapsed().as_secs_f64());
        seconds = Instant::now();
    };
    let values = noise(1, &[1 << 20]).to_vec1::<f32>().unwrap();
    let mut moments = Moments::new(Isa::chosen().unwrap(), inputs, taps);
    moments.add(rows, |row, to| {
        let start = row * 7919 % (values.len() - columns);
        to.copy_from_slice(&values[start..][..columns]);
    });
    let moments = moments.finish();
    lap(&format!("moments of {rows} rows"));
    let cancellation = Cancellation::of(moments).unwrap();
    lap("factorization");
    let weights: Vec<f32> = values.iter().cycle().copied().take(outputs * columns).collect();
    lap("weights");
    let rounded = cancellation.round(Grid::Bytes, &weights).unwrap();
    lap("rounding");
    assert_eq!(rounded.values.len(), weights.len());
}
