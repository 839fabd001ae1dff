//! The memory that whole runs take, beside what is estimated for them.

use std::process::Command;

use pochade::checkpoint::Checkpoint;
use pochade::networks::config::{ClipConfig, UnetConfig, VaeConfig};
use pochade::pipeline::footprint::{Footprint, Series};
use pochade::request::{Draft, Precision};

/// The most memory that a run of the program had resident, in bytes.
fn measured(args: &[&str]) -> u64 {
    let output = Command::new(env!("CARGO_BIN_EXE_pochade")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    report["peak_rss_bytes"].as_u64().unwrap()
}

/// What is estimated for a picture of this side.
fn estimated(checkpoint: &Checkpoint, precision: Precision, side: usize) -> u64 {
    let configs = checkpoint.configs();
    let clip = ClipConfig::parse(&configs.text_encoder).unwrap();
    let unet = UnetConfig::parse(&configs.unet).unwrap();
    let vae = VaeConfig::parse(&configs.vae).unwrap();
    let (prompt, seed) = (Some("x".to_owned()), Some(1));
    let draft = Draft { prompt, seed, width: Some(side), height: Some(side), ..Draft::default() };
    let request = draft.resolve(&checkpoint.defaults(), pochade::picture_in::size_of).unwrap();
    Footprint::new(checkpoint, &clip, unet, vae, precision).peak(&request, Series::One)
}

/// `cargo test --release --test bench -- --ignored --nocapture measured_peaks`: minutes, 6 GB.
#[test]
#[ignore = "long, and takes much memory"]
fn measured_peaks_are_near_estimates() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("out.png");
    let picture = picture.to_str().unwrap();
    let (pocket, sd15) = (Checkpoint::built_in().unwrap(), Checkpoint::synthetic_sd15());
    let mut wrong = Vec::new();
    for precision in [Precision::Int8, Precision::F32] {
        let name = precision.to_string();
        for side in [128, 256, 512, 768] {
            let size = format!("{side}x{side}");
            let common = ["--size", &size, "--steps", "1", "--precision", &name, "--json"];
            let drawing = ["-q", "x", "-m", "pocket", "-s", "1", "--tile", "off", "--force", "-o", picture];
            let benching = ["bench", "--synthetic", "sd15", "--repeats", "1"];
            for (checkpoint, args) in [(&pocket, &drawing[..]), (&sd15, &benching)] {
                let measured = measured(&[args, &common].concat());
                let estimated = estimated(checkpoint, precision, side);
                let ratio = estimated as f64 / measured as f64;
                let line = format!(
                    "{} {precision} {side}: {} MB estimated, {} MB measured, {ratio:.3}",
                    checkpoint.name(),
                    estimated / 1_000_000,
                    measured / 1_000_000,
                );
                println!("{line}");
                if !(0.95..=1.25).contains(&ratio) {
                    wrong.push(line);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
