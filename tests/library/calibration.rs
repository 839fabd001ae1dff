//! Rounding that is learned: the whole model is nearer to its floats than when rounded to the nearest.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use pochade::calibration::{self, Kept, Learned, Lesson, Runs};
use pochade::checkpoint::{Checkpoint, Storage};
use pochade::quantize::{Balance, Bits, Learning, Policy};
use pochade::request::{Defaults, Request};
use pochade::sensitivity::{Recording, Settings};
use tempfile::TempDir;

use crate::support::model_files::disturbed_floats;
use crate::support::models::{prompts, small};

fn runs(checkpoint: &Checkpoint, pixels: usize, count: u64) -> Runs {
    let defaults = Defaults { width: pixels, height: pixels, ..checkpoint.defaults() };
    let requests: Vec<Request> = (0..count)
        .map(|seed| Request::new(calibration::PROMPTS[seed as usize], 77 + seed, &defaults))
        .collect();
    Runs::draw(checkpoint, &requests, 8, &Kept::nothing(), &mut |_, _| {}).unwrap()
}

fn learn(checkpoint: &Checkpoint, balance: &Balance, runs: &Runs, memory: usize) -> Learned {
    let lesson = Lesson { learning: Learning::Gptq, runs, memory, kept: &Kept::nothing() };
    calibration::learn(checkpoint, &Policy::default(), balance, &lesson, &mut |_, _| {}).unwrap()
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

#[test]
fn what_was_kept_is_not_learned_again() {
    let (model, folder) = (small(), TempDir::new().unwrap());
    let path = folder.path().join("model.learning");
    let policies = [Bits::Eight, Bits::Four].map(Policy::all);
    let balance = model.tensors().balance(&policies[0]).unwrap();
    let requests = [Request::new("a fox", 3, &Defaults { width: 64, height: 64, ..model.defaults() })];
    // As many groups as there are layers. How much there is to do tells what is not done again.
    let learn = |kept: &Kept| {
        let runs = Runs::draw(&model, &requests, 2, kept, &mut |_, _| {}).unwrap();
        let lesson = Lesson { learning: Learning::Gptq, runs: &runs, memory: 0, kept };
        let mut work = 0;
        let learned =
            calibration::learn_each(&model, policies.each_ref(), &balance, &lesson, &mut |_, all| work = all);
        (learned.unwrap().map(|learned| model.merged(learned)), work)
    };
    let (undisturbed, all) = learn(&Kept::nothing());
    let (kept, goes_on) = Kept::open(&path, "this").unwrap();
    assert!(!goes_on);
    learn(&kept);
    let parts = || {
        let names = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
        let number = |path: &PathBuf| path.file_stem()?.to_str()?.strip_prefix("learned-")?.parse().ok();
        names.filter_map(|path| Some((number(&path)?, path))).collect::<BTreeMap<usize, PathBuf>>()
    };
    let count = parts().len();
    for (number, part) in parts() {
        if number >= count / 2 {
            fs::remove_file(part).unwrap();
        }
    }
    let (kept, goes_on) = Kept::open(&path, "this").unwrap();
    assert!(goes_on);
    let (resumed, rest) = learn(&kept);
    assert!(rest <= all - count / 2 * all / count, "{rest} of {all}");
    for (undisturbed, resumed) in undisturbed.iter().zip(&resumed) {
        for name in model.tensors().parameters().filter(|name| name.starts_with("unet.")) {
            let shape = model.tensors().view(name).unwrap().shape;
            let weight = |model: &Checkpoint| model.tensors().weight(name, shape).unwrap();
            assert_eq!(weight(undisturbed), weight(resumed), "{name}");
        }
    }

    let damaged = parts().remove(&0).unwrap();
    fs::write(&damaged, fs::read(&damaged).unwrap().split_at(1000).0).unwrap();
    let runs = Runs::draw(&model, &requests, 2, &kept, &mut |_, _| {}).unwrap();
    let lesson = Lesson { learning: Learning::Gptq, runs: &runs, memory: 0, kept: &kept };
    let error = calibration::learn_each(&model, policies.each_ref(), &balance, &lesson, &mut |_, _| {});
    assert!(format!("{:#}", error.unwrap_err()).contains("learned-0.safetensors is damaged"));
    kept.finish().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_calibration_is_known_by_all_that_it_depends_on() {
    let model = small();
    let requests = [Request::new("a fox", 3, &model.defaults())];
    let eight = Policy::default();
    let identity = |learning, policies: &[&Policy], requests: &[Request], timesteps| {
        calibration::identity(&model, learning, policies, requests, timesteps).unwrap()
    };
    let first = identity(Learning::Gptq, &[&eight], &requests, 8);
    assert_eq!(identity(Learning::Gptq, &[&eight], &requests, 8), first);
    let four = Policy::all(Bits::Four);
    let other = [Request::new("a fox", 4, &model.defaults())];
    for different in [
        identity(Learning::AdaRound, &[&eight], &requests, 8),
        identity(Learning::Gptq, &[&eight, &four], &requests, 8),
        identity(Learning::Gptq, &[&eight], &other, 8),
        identity(Learning::Gptq, &[&eight], &requests, 4),
        calibration::identity(&Checkpoint::built_in().unwrap(), Learning::Gptq, &[&eight], &requests, 8)
            .unwrap(),
    ] {
        assert_ne!(different, first);
    }
}

/// The whole built-in model, from its file.
#[test]
fn a_model_that_learned_is_nearer_to_its_floats() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    disturbed_floats(&path("f32"), 0.05);
    let model = Checkpoint::open(&path("f32")).unwrap();
    let policy = Policy::default();
    let balance = model.tensors().balance(&policy).unwrap();
    let storage = Storage::Balanced(&policy, &balance);
    model.write_native(&path("nearest"), storage).unwrap();
    let learned = learn(&model, &balance, &runs(&model, 128, 16), 1 << 30);
    model.merged(learned).write_native(&path("learned"), storage).unwrap();

    let prompts = prompts().into_iter().take(2).collect();
    let settings = Settings { prompts, steps: 1, width: 128, height: 128, seed: 5 };
    let recording = Recording::new(&model, settings, &mut |_, _| {}).unwrap();
    let [nearest, learned] = ["nearest", "learned"]
        .map(|name| recording.compare(&Checkpoint::open(&path(name)).unwrap(), &mut |_, _| {}).unwrap());
    println!("{nearest}\n{learned}");
    let gain = learned.output_mean_sqnr.unwrap() - nearest.output_mean_sqnr.unwrap();
    assert!(gain > 0.8, "{gain} dB");
}
