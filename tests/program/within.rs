//! `--within`: what is chosen by the speeds of earlier runs, what is told and recorded, and what can't be met.

use std::fs;
use std::path::PathBuf;

use pochade::compare::compare;
use serde_json::Value;

use crate::support::sandbox::{Left, Sandbox};

/// The built-in model's picture of 20 steps: 18.65 * 10^9 multiply-accumulates.
const FLAGS: [&str; 7] = ["a fox", "-m", "pocket", "-s", "3", "--precision", "int8"];

fn draw(sandbox: &Sandbox, name: &str, args: &[&str]) -> Left {
    sandbox.run(&[&FLAGS[..], args, &["-o", name]].concat())
}

fn figures(sandbox: &Sandbox) -> Vec<PathBuf> {
    let folder = sandbox.cache().join("speeds");
    fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

/// Has earlier runs of this kind of picture take so many seconds for each 10^9 multiply-accumulates, and 4 for the rest,
/// of which 2 for loading.
fn plant(sandbox: &Sandbox, seconds: f64) {
    let [path] = &figures(sandbox)[..] else { panic!("{:?}", figures(sandbox)) };
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    json["runs"] = serde_json::json!([
        {"load": 2.0, "encode": 0.5, "decode": 1.5, "whole": seconds, "outer": seconds}
    ]);
    fs::write(path, json.to_string()).unwrap();
}

/// The record of a picture.
fn request(sandbox: &Sandbox, name: &str) -> Value {
    let info: Value = serde_json::from_str(sandbox.run(&["info", "--json", name]).done()).unwrap();
    info["request"].clone()
}

#[test]
fn the_gentlest_settings_that_fit_are_chosen_told_and_recorded() {
    let sandbox = Sandbox::new();
    draw(&sandbox, "exact.png", &[]).done();
    assert_eq!(figures(&sandbox).len(), 1);
    plant(&sandbox, 1.0);
    // 18.65 s for the UNet and 4 s besides.
    let asked = draw(&sandbox, "asked.png", &["--within", "25s"]);
    asked.done();
    assert!(asked.stderr.contains("within 25 s: as asked, about 23 s"), "{}", asked.stderr);
    let bytes = |name: &str| fs::read(sandbox.join(name)).unwrap();
    assert!(bytes("asked.png") == bytes("exact.png"));

    plant(&sandbox, 1.0);
    let left = draw(&sandbox, "less.png", &["--within", "17s"]);
    left.done();
    // 11.54 of 18.65.
    let told = "within 17 s: --cache 2, about 16 s (0.62 of the UNet's work; as asked it would be 23 s)";
    assert!(left.stderr.contains(told), "{}", left.stderr);
    let record = request(&sandbox, "less.png");
    assert_eq!((&record["cache"], &record["steps"]), (&2.into(), &20.into()), "{record}");
    assert!(record.get("within").is_none(), "{record}");
    // A machine with other speeds repeats what was chosen.
    plant(&sandbox, 9.0);
    sandbox.run(&["--from", "less.png", "-o", "again.png"]).done();
    assert!(bytes("again.png") == bytes("less.png"));
    assert!(bytes("less.png") != bytes("exact.png"));

    // Less and less, until nothing is left to leave out.
    let mut work = 0.62;
    for seconds in ["12s", "10s", "8s", "7s", "6.5s"] {
        plant(&sandbox, 1.0);
        let left = draw(&sandbox, "rough.png", &["--within", seconds, "--force"]);
        left.done();
        let (_, share) = left.stderr.split_once("about ").unwrap().1.split_once('(').unwrap();
        let share: f64 = share.split(' ').next().unwrap().parse().unwrap();
        assert!(share <= work, "{seconds}: {}", left.stderr);
        work = share;
    }
    plant(&sandbox, 1.0);
    draw(&sandbox, "no.png", &["--within", "3s"])
        .refused(2, &["nothing draws this within 3", "the least is"]);
    assert!(!sandbox.join("no.png").exists());
}

#[test]
fn what_is_said_stays_and_what_is_told_to_be_the_least_works() {
    let sandbox = Sandbox::new();
    draw(&sandbox, "exact.png", &["--steps", "2"]).done();
    plant(&sandbox, 1.0);
    // No cache, and the steps as they are: guidance is all that is left.
    let flags = ["--cache", "1", "--steps", "20", "--sampler", "dpmpp_2m"];
    draw(&sandbox, "said.png", &[&flags[..], &["--within", "19.5s"]].concat()).done();
    let record = request(&sandbox, "said.png");
    assert!(record.get("cache").is_none() && record["steps"] == 20, "{record}");
    assert!(record.get("guidance_range").is_some(), "{record}");
    plant(&sandbox, 1.0);
    let left =
        draw(&sandbox, "least.png", &[&flags[..], &["--cfg-range", "0..1", "--within", "9s"]].concat());
    left.refused(2, &["the least is"]);
    let (_, least) = left.stderr.split_once("the least is ").unwrap();
    let least = least.split(' ').next().unwrap();
    plant(&sandbox, 1.0);
    draw(&sandbox, "least.png", &[&flags[..], &["--cfg-range", "0..1", "--within", least]].concat()).done();
}

#[test]
fn without_earlier_runs_it_measures() {
    let sandbox = Sandbox::new();
    let args = ["--size", "64x64", "--steps", "4", "--within", "1h"];
    let left = draw(&sandbox, "a.png", &args);
    left.done();
    assert!(left.stderr.contains("measuring three steps"), "{}", left.stderr);
    assert!(left.stderr.contains("within 1 h 00 min: as asked"), "{}", left.stderr);
    let [path] = &figures(&sandbox)[..] else { panic!() };
    // What is not of this kind, or no speed, is measured anew.
    for wrong in ["", "{}", r#"{"of": {}, "runs": []}"#] {
        fs::write(path, wrong).unwrap();
        let left = draw(&sandbox, "b.png", &[&args[..], &["--force"]].concat());
        left.done();
        assert!(left.stderr.contains("measuring"), "{wrong}: {}", left.stderr);
    }
    let left = draw(&sandbox, "c.png", &args);
    left.done();
    assert!(!left.stderr.contains("measuring"), "{}", left.stderr);
    draw(&sandbox, "d.png", &["--size", "64x64", "--within", "1ms"]).refused(2, &["the least is"]);
    draw(&sandbox, "e.png", &["--within", "soon"]).refused(2, &["expected a time"]);
}

#[test]
fn a_list_has_the_time_for_each_picture() {
    let sandbox = Sandbox::new();
    draw(&sandbox, "exact.png", &["--steps", "2"]).done();
    plant(&sandbox, 1.0);
    sandbox.write(
        "list.jsonl",
        b"{\"prompt\": \"a cat\"}\n{\"prompt\": \"a dog\"}\n{\"prompt\": \"an owl\", \"cache\": 3}\n",
    );
    let args =
        ["batch", "list.jsonl", "-m", "pocket", "--precision", "int8", "--seed", "1", "-o", "{index}.png"];
    let batch = |more: &[&str]| sandbox.run(&[&args[..], more].concat());
    // Loading is not counted: 11.54 s and 2 s.
    let left = batch(&["--within", "15s"]);
    left.done();
    assert_eq!(left.stderr.matches("within 15 s: --cache 2, about 14 s").count(), 1, "{}", left.stderr);
    assert_eq!(left.stderr.matches("within 15 s: as asked, about 11 s").count(), 1, "{}", left.stderr);
    let caches = ["1.png", "2.png", "3.png"].map(|name| request(&sandbox, name)["cache"].clone());
    assert_eq!(caches, [2, 2, 3].map(Value::from));
    plant(&sandbox, 9.0);
    batch(&["--within", "5s", "--force"])
        .refused(2, &["3 lines can't be drawn", "line 3: nothing draws this within 5"]);
    for other in ["--skip-existing", "--dry-run"] {
        batch(&["--within", "15s", other]).refused(2, &["--within", other]);
    }
}

#[test]
fn the_built_in_models_recipe_brings_its_lora_and_is_for_no_other() {
    let sandbox = Sandbox::new();
    let left = draw(&sandbox, "fast.png", &["--fast", "pocket", "--json"]);
    assert!(left.stderr.contains("lora built-in/pocket-lcm at 1: merged into"), "{left:?}");
    let json: Value = serde_json::from_str(left.done()).unwrap();
    assert_eq!(
        (&json["sampler"], &json["steps"], &json["guidance_scale"]),
        (&"lcm".into(), &4.into(), &1.0.into())
    );
    assert!(json["unet"]["macs"].as_f64().unwrap() < 0.15 * 18.65e9, "{json}");
    sandbox.run(&["--from", "fast.png", "-o", "again.png"]).done();
    assert!(fs::read(sandbox.join("again.png")).unwrap() == fs::read(sandbox.join("fast.png")).unwrap());
    // What it was trained for: nearer to the picture of all steps than the same four without it.
    draw(&sandbox, "exact.png", &[]).done();
    draw(
        &sandbox,
        "without.png",
        &["--sampler", "lcm", "--schedule", "leading", "--steps", "4", "--cfg", "1"],
    )
    .done();
    let picture = |name: &str| image::open(sandbox.join(name)).unwrap().to_rgb8();
    let [fast, without] =
        ["fast.png", "without.png"].map(|name| compare(&picture("exact.png"), &picture(name)).unwrap().psnr);
    assert!(fast > without + 0.5, "{fast} {without}");
    let named = ["--lora", "built-in/pocket-lcm:0", "--fast", "pocket", "--steps", "4"];
    draw(&sandbox, "zero.png", &named).done();
    assert!(picture("zero.png") == picture("without.png"));

    let small = crate::support::models::data("small").display().to_string();
    sandbox
        .run(&["a fox", "-m", &small, "--fast", "pocket"])
        .refused(2, &["recipe pocket is for the model 'pocket'"]);
}
