//! Rounding that is learned: the whole model is nearer to its floats than when rounded to the nearest.

use pochade::calibration::{self, Learned, Runs};
use pochade::checkpoint::{Checkpoint, FloatType, Storage};
use pochade::quantize::{Balance, Policy};
use pochade::request::{Defaults, Request};
use pochade::sensitivity::{Recording, Settings};
use tempfile::TempDir;

use crate::support::models::{prompts, small};

fn runs(checkpoint: &Checkpoint, pixels: usize, count: u64) -> Runs {
    let defaults = Defaults { width: pixels, height: pixels, ..checkpoint.defaults() };
    let requests: Vec<Request> = (0..count)
        .map(|seed| Request::new(calibration::PROMPTS[seed as usize], 77 + seed, &defaults))
        .collect();
    Runs::draw(checkpoint, &requests, 8, &mut |_, _| {}).unwrap()
}

fn learn(checkpoint: &Checkpoint, balance: &Balance, runs: &Runs, memory: usize) -> Learned {
    let policy = Policy::default();
    calibration::learn(checkpoint, &policy, balance, runs, memory, &mut |_, _| {}).unwrap()
}

#[test]
fn what_is_learned_does_not_depend_on_the_memory_for_it() {
    let model = small();
    let balance = model.tensors().balance(&Policy::default()).unwrap();
    let runs = runs(&model, 64, 1);
    let [whole, parts] = [1 << 30, 0].map(|memory| model.merged(learn(&model, &balance, &runs, memory)));
    for name in model.tensors().parameters().filter(|name| name.starts_with("unet.")) {
        let shape = model.tensors().view(name).unwrap().shape;
        let weight = |model: &Checkpoint| model.tensors().weight(name, shape).unwrap();
        assert_eq!(weight(&whole), weight(&parts), "{name}");
    }
}

/// The whole built-in model, from its file.
#[test]
fn a_model_that_learned_is_nearer_to_its_floats() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    Checkpoint::built_in().unwrap().write_native(&path("f32"), Storage::Float(FloatType::F32)).unwrap();
    let model = Checkpoint::open(&path("f32")).unwrap();
    let policy = Policy::default();
    let balance = model.tensors().balance(&policy).unwrap();
    let storage = Storage::Balanced(&policy, &balance);
    model.write_native(&path("nearest"), storage).unwrap();
    let learned = learn(&model, &balance, &runs(&model, 128, 4), 1 << 30);
    model.merged(learned).write_native(&path("learned"), storage).unwrap();

    let prompts = prompts().into_iter().take(2).collect();
    let settings = Settings { prompts, steps: 1, width: 128, height: 128, seed: 5 };
    let recording = Recording::new(&model, settings, &mut |_, _| {}).unwrap();
    let [nearest, learned] = ["nearest", "learned"]
        .map(|name| recording.compare(&Checkpoint::open(&path(name)).unwrap(), &mut |_, _| {}).unwrap());
    println!("{nearest}\n{learned}");
    let gain = learned.output_mean_sqnr.unwrap() - nearest.output_mean_sqnr.unwrap();
    assert!(gain > 0.2, "{gain} dB");
}
