//! What less work costs the built-in model: the table of the README.
//!
//! `cargo test --release --test bench -- --ignored --nocapture less_work`; with `POCHADE_PICTURES=DIR` the pictures
//! are kept for a judge, in the order of the printed list.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use image::RgbImage;
use pochade::checkpoint::{Checkpoint, lora};
use pochade::compare::compare;
use pochade::pipeline::Pipeline;
use pochade::quantize::Energy;
use pochade::request::{Draft, FIELDS, Lora, Needs, Passes, Precision};
use sha2::{Digest, Sha256};

use crate::support::models::{generate, open, pipeline, resolve};

/// Settings; with commas, the name of their pictures' folder.
const GRID: &[&str] = &[
    "cfg-range=0.2..1",
    "cfg-range=0.4..1",
    "cfg-range=0.6..1",
    "cfg-range=0..0.7",
    "cfg-range=0..0.5",
    "cfg-range=0..0.3",
    "cfg-auto",
    "cache=2",
    "cache=3",
    "cache=4",
    "cache=5",
    "cache=auto",
    "cache=3 cache-branch=2",
    "cache=4 cache-branch=2",
    "steps=15",
    "steps=12",
    "steps=10",
    "steps=15 cache=2",
    "steps=14 cache=2",
    "steps=13 cache=2",
    "steps=8 cache=2",
    "steps=15 cache=3",
    "steps=12 cache=3",
    "steps=17 cache=2 cfg-range=0.5..1",
    "cfg-range=0..0.5 cache=3",
    "cfg-range=0..0.7 cache=4",
    "fast=pocket",
];

/// Half of each: pairs that were held out of the model's training, and others.
fn pairs(count: usize) -> Vec<String> {
    let backgrounds =
        ["white", "black", "red", "orange", "yellow", "green", "blue", "purple", "pink", "gray"];
    let things = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pocket/train/things.txt");
    let things = std::fs::read_to_string(things).unwrap();
    let things = things.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let things: Vec<&str> = things.map(|line| line.split('|').next().unwrap()).collect();
    // As `train/data.py` has it.
    let held_out = |thing: &str, background: &str| {
        let digest = Sha256::digest(format!("{thing} on {background}"));
        background != "white" && u32::from(digest[0]) * 256 + u32::from(digest[1]) < 65536 * 10 / 9 / 10
    };
    let one = |name: &str| {
        let head = name.split(" with ").next().unwrap().split(" of ").next().unwrap();
        if head.ends_with('s') && !["ss", "us", "rhinoceros"].iter().any(|end| head.ends_with(end)) {
            return name.to_owned();
        }
        let vowel = name.starts_with(['a', 'e', 'i', 'o', 'u']) || name.starts_with("hour");
        let an = vowel && !name.starts_with("uni") && !name.starts_with("ufo");
        format!("{} {name}", if an { "an" } else { "a" })
    };
    let all = things.iter().flat_map(|thing| backgrounds.map(|background| (*thing, background)));
    let (unseen, seen): (Vec<_>, Vec<_>) = all.partition(|(thing, background)| held_out(thing, background));
    let some = |pairs: Vec<(&str, &str)>| {
        let chosen = (0..count / 2).map(move |at| pairs[at * pairs.len() / (count / 2)]);
        chosen
            .map(|(thing, background)| format!("{} on {} background", one(thing), one(background)))
            .collect::<Vec<_>>()
    };
    [some(unseen), some(seen)].concat()
}

fn draft(prompt: &str, seed: u64, flags: &str) -> Draft {
    let mut draft = Draft { prompt: Some(prompt.to_owned()), seed: Some(seed), ..Draft::default() };
    for flag in flags.split_whitespace() {
        let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
        let field = FIELDS.iter().find(|field| field.long() == Some(name)).unwrap();
        let value = if value.is_empty() { field.alone } else { value };
        (field.set)(&mut draft, value.as_ref()).unwrap();
    }
    if let Some(Needs::BuiltIn(_, name)) = draft.fast.map(|recipe| recipe.ingredients().needs) {
        draft.lora = Some(vec![Lora { path: lora::built_in(name), weight: 1.0 }]);
    }
    draft
}

struct Drawn {
    rgb: RgbImage,
    latents: Tensor,
    passes: Passes,
}

fn draw(pipeline: &mut Pipeline<'_>, checkpoint: &Checkpoint, draft: Draft) -> Drawn {
    let picture = generate(pipeline, &resolve(draft, checkpoint));
    Drawn { rgb: picture.rgb, latents: picture.latents, passes: picture.passes }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
#[ignore = "takes minutes"]
fn less_work() {
    let count = std::env::var("POCHADE_PAIRS").map_or(200, |count| count.parse().unwrap());
    let folder = std::env::var_os("POCHADE_PICTURES").map(PathBuf::from);
    let only = std::env::var("POCHADE_GRID").ok();
    let grid: Vec<&str> = match &only {
        Some(only) => only.split(';').collect(),
        None => GRID.to_vec(),
    };
    let checkpoint = Checkpoint::built_in().unwrap();
    let model = open(&checkpoint, Precision::Int8);
    let mut pipeline = pipeline(&model);
    let pairs = pairs(count);
    if let Some(folder) = &folder {
        std::fs::create_dir_all(folder.join("exact")).unwrap();
        std::fs::write(folder.join("list.txt"), pairs.join("\n")).unwrap();
    }
    let mut exact = Vec::new();
    let (mut others, mut worst_other) = (0.0, f64::INFINITY);
    for (seed, prompt) in (0..).zip(&pairs) {
        let drawn = draw(&mut pipeline, &checkpoint, draft(prompt, seed, ""));
        let other = draw(&mut pipeline, &checkpoint, draft(prompt, seed + 100_000, ""));
        let psnr = compare(&drawn.rgb, &other.rgb).unwrap().psnr;
        (others, worst_other) = (others + psnr, psnr.min(worst_other));
        if let Some(folder) = &folder {
            drawn.rgb.save(folder.join(format!("exact/{seed}.png"))).unwrap();
        }
        exact.push(drawn);
    }
    println!(
        "{count} pairs; another seed: {:.1} dB on average, {worst_other:.1} at the worst",
        others / count as f64
    );
    for flags in grid {
        let (mut share, mut psnrs, mut latents, mut macs) = (0.0, Vec::new(), Energy::default(), 0.0);
        for ((seed, prompt), exact) in (0..).zip(&pairs).zip(&exact) {
            let drawn = draw(&mut pipeline, &checkpoint, draft(prompt, seed, flags));
            share += drawn.passes.macs as f64 / exact.passes.macs as f64;
            macs += drawn.passes.macs as f64;
            latents.add(&values(&exact.latents), &values(&drawn.latents));
            psnrs.push((compare(&exact.rgb, &drawn.rgb).unwrap().psnr, prompt));
            if let Some(folder) = &folder {
                let own = folder.join(flags.replace(' ', ","));
                std::fs::create_dir_all(&own).unwrap();
                drawn.rgb.save(own.join(format!("{seed}.png"))).unwrap();
            }
        }
        psnrs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let finite: Vec<f64> = psnrs.iter().map(|(psnr, _)| *psnr).filter(|psnr| psnr.is_finite()).collect();
        let mean = finite.iter().sum::<f64>() / finite.len().max(1) as f64;
        let count = pairs.len() as f64;
        println!(
            "{flags:50} {:6.2} GMAC {:5.3}  latents {:5.1} dB  pictures {mean:5.1} dB, worst {}",
            macs / count / 1e9,
            share / count,
            latents.sqnr(),
            psnrs
                .iter()
                .take(5)
                .map(|(psnr, prompt)| format!("{psnr:.1} {prompt}"))
                .collect::<Vec<_>>()
                .join("; "),
        );
    }
}
