//! What learned rounding keeps, at eight and at four bits: the tables of the README.
//!
//! `POCHADE_FLOATS=FOLDER cargo test --release --test bench -- --ignored --nocapture learning`, of the built-in model's
//! int8 weights as floats where no other floats are named.

use std::path::Path;
use std::time::Instant;

use pochade::calibration::{self, Runs};
use pochade::checkpoint::{Checkpoint, Overlay};
use pochade::kernels::Isa;
use pochade::layers::Calibrated;
use pochade::quantize::grid::Grid;
use pochade::quantize::{Cancellation, Gridded, Moments, Policy, Weight};
use pochade::request::Request;
use pochade::sensitivity::Recording;
use tempfile::TempDir;

use crate::fidelity::{floats, record, row};
use crate::support::models::noise;

/// The floats and what is learned from.
fn source(folder: &TempDir) -> (Checkpoint, Runs) {
    let source = match std::env::var_os("POCHADE_FLOATS") {
        Some(path) => Checkpoint::open(Path::new(&path)).unwrap(),
        None => floats(folder),
    };
    let defaults = source.defaults();
    let requests: Vec<Request> = (1000..)
        .zip(calibration::PROMPTS)
        .map(|(seed, prompt)| Request::new(prompt, seed, &defaults))
        .collect();
    let runs = Runs::draw(&source, &requests, 8, &mut |_, _| {}).unwrap();
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
    let grid = |layer: &Calibrated| layer.grid;
    let learned =
        calibration::learn(&source, &policy, &balance, &grid, &runs, 1 << 30, &mut |_, _| {}).unwrap();
    compare(&recording, "gptq", &source.merged(learned.clone().without_corrections()));
    let corrected = compare(&recording, "gptq, biases corrected", &source.merged(learned));
    assert!(corrected > nearest + 0.3);
}

/// Rounds 3x3 convolutions, or all that int8 computes, to the nearest at four bits.
struct Nearest {
    all: bool,
}

impl Overlay for Nearest {
    fn changes(&self, name: &str) -> bool {
        name.starts_with("unet.") && Policy::default().computes_int8(name, pochade::quantize::Origin::Float)
    }

    fn apply(&self, name: &str, shape: &[usize], stored: Weight) -> anyhow::Result<Weight> {
        let taps: usize = shape.iter().skip(2).product();
        if !self.changes(name) || (taps == 1 && !self.all) {
            return Ok(stored);
        }
        let values = stored.into_f32();
        let columns = values.len() / shape[0];
        let squares = vec![1.0; columns];
        Ok(Weight::Float(Gridded::nearest(Grid::Nibbles, &values, &squares, taps).dequantize(columns)))
    }
}

/// Four-bit weights are floats here that lie on the grid: they lose a little more to the int8 kernels.
#[test]
#[ignore = "takes minutes"]
fn four_bits_learned() {
    let folder = TempDir::new().unwrap();
    let (source, runs) = source(&folder);
    let recording = record(&source, 8, 0);
    let policy = Policy::default();
    let balance = source.tensors().balance(&policy).unwrap();
    let learn = |all: bool| {
        let grid = |layer: &Calibrated| if all || layer.taps == 9 { Grid::Nibbles } else { layer.grid };
        let learned = calibration::learn(&source, &policy, &balance, &grid, &runs, 1 << 30, &mut |_, _| {});
        source.merged(learned.unwrap())
    };
    compare(&recording, "W8, nearest", &source);
    compare(&recording, "3x3 W4, rest W8, nearest", &source.merged(Nearest { all: false }));
    let learned = compare(&recording, "3x3 W4, rest W8, gptq", &learn(false));
    compare(&recording, "all W4, nearest", &source.merged(Nearest { all: true }));
    compare(&recording, "all W4, gptq", &learn(true));
    assert!(learned > 25.0);
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
