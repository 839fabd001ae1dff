//! Long runs: thousands of pictures in one process, and one batch that is killed again and again.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};
use pochade::checkpoint::Checkpoint;
use serde_json::json;

use crate::support::sandbox::Sandbox;

/// A LoRA of one layer of the built-in model.
fn write_lora(path: &Path) {
    let checkpoint = Checkpoint::built_in().unwrap();
    let tensors = checkpoint.tensors();
    let mut names: Vec<&str> = tensors.parameters().collect();
    names.sort_unstable();
    let layer =
        names.iter().find_map(|name| name.strip_prefix("unet.")?.strip_suffix(".to_q.weight")).unwrap();
    let shape = tensors.view(&format!("unet.{layer}.to_q.weight")).unwrap().shape.to_vec();
    let (rows, columns) = (shape[0], shape[1]);
    let factor = |shape| Tensor::full(0.02f32, shape, &Device::Cpu).unwrap();
    let factors = HashMap::from([
        (format!("unet.{layer}.to_q.lora_A.weight"), factor((4, columns))),
        (format!("unet.{layer}.to_q.lora_B.weight"), factor((rows, 4))),
    ]);
    candle_core::safetensors::save(&factors, path).unwrap();
}

/// As little work per picture as there can be, in every way a line can ask for some: ten lines have all of them.
fn line(index: usize) -> String {
    let size = ["64x64", "72x64", "64x96", "96x64", "80x80", "64x64", "64x64", "64x64", "128x128", "16x16"];
    let mut line = json!({
        "id": format!("{index:04}"),
        "prompt": format!("a red apple, number {index}"),
        "seed": index,
        "steps": 1 + index % 2,
        "cfg": if index % 10 < 5 { 1 } else { 5 },
        "sampler": "euler",
        "size": size[index % 10],
    });
    let more = match index % 10 {
        1 => json!({"prompt": format!("a (red:1.3) [apple] BREAK number {index}"), "negative": "blurry"}),
        3 => json!({"init": "init.png", "strength": 1, "steps": 2}),
        4 => json!({"init": "init.png", "mask": "mask.png", "strength": 0.5, "steps": 2}),
        6 => json!({"hires": 1.5, "hires-steps": 1}),
        7 => json!({"lora": ["lora.safetensors:0.8"]}),
        8 => json!({"sampler": "dpmpp_2m_sde"}),
        _ => json!({}),
    };
    line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    line.to_string() + "\n"
}

/// A folder with a list of so many lines and what they need.
fn sandbox(lines: usize) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("list.jsonl", (0..lines).map(line).collect::<String>().as_bytes());
    write_lora(&sandbox.join("lora.safetensors"));
    RgbImage::from_fn(96, 64, |x, y| Rgb([(2 * x) as u8, (4 * y) as u8, 99]))
        .save(sandbox.join("init.png"))
        .unwrap();
    let half = RgbImage::from_fn(96, 64, |x, _| if x < 48 { Rgb([255; 3]) } else { Rgb([0; 3]) });
    half.save(sandbox.join("mask.png")).unwrap();
    sandbox
}

fn batch(out: &str) -> [&str; 10] {
    ["batch", "list.jsonl", "-q", "-m", "pocket", "--skip-existing", "--out-dir", out, "-o", "{id}.png"]
}

/// Resident kilobytes, the most of them so far, and open descriptors.
#[derive(Debug, Clone, Copy)]
struct Sample {
    resident: u64,
    peak: u64,
    descriptors: usize,
}

fn sample(process: u32) -> Option<Sample> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim_start_matches(':').trim().strip_suffix(" kB")?.parse().ok()
    };
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).ok()?.count();
    Some(Sample { resident: field("VmRSS")?, peak: field("VmHWM")?, descriptors })
}

/// `cargo test --release --test bench -- --ignored --nocapture soak::two_thousand`: minutes.
#[test]
#[ignore = "long"]
fn two_thousand_pictures_take_no_more_than_the_first_fifty() {
    const PICTURES: usize = 2000;
    const FIRST: usize = 50;
    let sandbox = sandbox(PICTURES);
    let started = Instant::now();
    let mut child = sandbox.command(&batch("out")).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let samples: Vec<Sample> = lines.map_while(|line| line.ok().and_then(|_| sample(child.id()))).collect();
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read_dir(sandbox.join("out")).unwrap().count(), PICTURES);
    // The last line may be read when the process is gone.
    assert!(samples.len() >= PICTURES - 1, "{}", samples.len());

    let (first, rest) = samples.split_at(FIRST);
    let peak = first.last().unwrap().peak;
    let growth = rest.last().unwrap().peak as f64 / peak as f64 - 1.0;
    // Of the same ten kinds of lines, so that what is resident between pictures can be compared too.
    let mean =
        |samples: &[Sample]| samples.iter().map(|s| s.resident as f64).sum::<f64>() / samples.len() as f64;
    let (early, late) = (mean(&rest[..100]), mean(&rest[rest.len() - 100..]));
    // The next picture may have a file open already: what is leaked is open at all times.
    let descriptors = |samples: &[Sample]| samples.iter().map(|s| s.descriptors).min().unwrap();
    let last = &rest[rest.len() - FIRST..];
    println!(
        "{PICTURES} pictures in {:.0} s: peak {peak} kB after {FIRST} and {:+.2} % at the end, \
         between pictures {early:.0} and {late:.0} kB ({:+.2} %), descriptors {} and {}",
        started.elapsed().as_secs_f64(),
        100.0 * growth,
        100.0 * (late / early - 1.0),
        descriptors(first),
        descriptors(last),
    );
    assert!(growth < 0.02, "the peak has grown by {:.2} %", 100.0 * growth);
    assert!(late < 1.02 * early, "{early} kB have become {late}");
    assert!(descriptors(last) <= descriptors(first));
}

/// The finished pictures of a folder.
fn pictures(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(Result::unwrap);
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    let finished = named.filter(|(name, _)| !name.starts_with(".pochade-"));
    finished.map(|(name, path)| (name, fs::read(path).unwrap())).collect()
}

/// `cargo test --release --test bench -- --ignored --nocapture soak::a_hundred`: minutes.
#[test]
#[ignore = "long"]
fn a_hundred_kills_change_nothing() {
    const KILLS: usize = 100;
    let sandbox = sandbox(600);
    let started = Instant::now();
    assert!(sandbox.command(&batch("whole")).stdout(Stdio::null()).status().unwrap().success());
    let alone = started.elapsed();
    let whole = pictures(&sandbox.join("whole"));
    assert_eq!(whole.len(), 600);
    // Steele and Vigna's splitmix64: moments that are spread, and the same in every run.
    let mut state = 0u64;
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    // From before the list is read to some pictures later.
    let longest = (alone / 40).as_micros() as u64 + 200_000;
    let (mut kills, mut finished, mut found) = (0, 0, Vec::new());
    while kills < KILLS {
        let mut child =
            sandbox.command(&batch("out")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_micros(next() % longest));
        child.kill().unwrap();
        kills += usize::from(child.wait().unwrap().code().is_none());
        let done = pictures(&sandbox.join("out"));
        for (name, bytes) in &done {
            assert!(whole[name] == *bytes, "{name} differs after {kills} kills");
        }
        found.push(done.len());
        // A batch that has been finished begins anew.
        if done.len() == whole.len() && kills < KILLS {
            finished += 1;
            fs::remove_dir_all(sandbox.join("out")).unwrap();
        }
    }
    assert!(sandbox.command(&batch("out")).stdout(Stdio::null()).status().unwrap().success());
    assert!(pictures(&sandbox.join("out")) == whole);
    println!(
        "{KILLS} kills in {:.0} s: {} pictures after the last one, {finished} batches finished before, equal to \
         an undisturbed run of {:.0} s",
        started.elapsed().as_secs_f64(),
        found.last().unwrap(),
        alone.as_secs_f64(),
    );
}
