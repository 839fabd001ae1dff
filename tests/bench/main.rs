//! The benchmark's report: complete, adding up, and counting the work that the published geometry implies.

#[path = "../support/mod.rs"]
mod support;

/// The program's, since huge pages are half of what some operations gain.
#[cfg(target_os = "linux")]
#[global_allocator]
static HEAP: pochade::kernels::Heap = pochade::kernels::Heap::new();

mod counts;
mod fidelity;
mod kernels;
mod learning;
mod less_work;
mod memory;
mod peer;
#[cfg(target_os = "linux")]
mod soak;

use std::time::Duration;

use counts::{Counts, unet_step, vae_decode};
use pochade::bench::{self, Operation, Options, Part, Report};
use pochade::checkpoint::Checkpoint;
use pochade::networks::config::{KlConfig, UnetConfig};
use pochade::request::Precision;
use support::models::{kl_config, small, unet_config};

fn measure(checkpoint: &Checkpoint, width: usize, height: usize) -> Report {
    let opening = Duration::from_millis(1);
    let options =
        Options { precision: Precision::F32, width, height, steps: 2, repeats: 2, opening, streamed: false };
    bench::run(checkpoint.clone(), &options, &mut |_| ()).unwrap()
}

fn geometry(checkpoint: &Checkpoint) -> (UnetConfig, KlConfig) {
    (unet_config(checkpoint), kl_config(checkpoint))
}

fn assert_adds_up(part: &Part) {
    let sum = |value: fn(&Operation) -> f64| part.operations.iter().map(value).sum::<f64>();
    assert!((sum(|o| o.seconds) / part.seconds - 1.0).abs() < 1e-9);
    assert!((sum(|o| o.gmac) / part.gmac - 1.0).abs() < 1e-9);
    assert!((sum(|o| o.share) - 1.0).abs() < 1e-9);
    assert!(part.operations.iter().all(|o| o.seconds >= 0.0), "{:?}", part.operations);
}

#[test]
fn the_report_is_complete_and_adds_up() {
    let report = measure(&Checkpoint::built_in().unwrap(), 64, 48);
    for part in [&report.text_encoder, &report.unet_step, &report.vae_decode] {
        assert_adds_up(part);
    }
    let json = report.json();
    for key in [
        "f32_gmacs",
        "kernel_f32_gmacs",
        "load_seconds",
        "text_encoder_seconds",
        "text_encoder_cost",
        "unet_step_seconds",
        "unet_step_cost",
        "unet_step_gmac",
        "vae_decode_seconds",
        "vae_decode_cost",
    ] {
        assert!(json[key].as_f64().unwrap() > 0.0, "{key}");
    }
    if cfg!(target_os = "linux") {
        assert!(json["peak_rss_bytes"].as_u64().unwrap() > 0);
    }
    assert!(!json["kernels"][0].as_str().unwrap().is_empty());
    let operations = json["operations"].as_array().unwrap();
    let kinds: Vec<_> = operations.iter().map(|o| o["kind"].as_str().unwrap()).collect();
    let expected = ["conv 3x3", "conv 1x1", "linear", "self-attention", "cross-attention", "norms", "rest"];
    assert_eq!(kinds, expected);
    let seconds: f64 = operations.iter().map(|o| o["seconds"].as_f64().unwrap()).sum();
    assert!((seconds / json["unet_step_seconds"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    for operation in &operations[..6] {
        assert!(operation["seconds"].as_f64().unwrap() > 0.0, "{operation}");
    }
}

#[test]
fn the_work_done_is_the_work_implied() {
    let checkpoint = small();
    let (unet, vae) = geometry(&checkpoint);
    // 72 / 8 is odd, so that levels are rounded up.
    let report = measure(&checkpoint, 64, 72);
    let same = |part: &Part, counts: Counts| {
        let expected = counts.by_kind();
        for (operation, (kind, macs)) in part.operations.iter().zip(expected) {
            assert_eq!(operation.kind, kind);
            assert!((operation.gmac * 1e9 - macs as f64).abs() < 0.5, "{kind}: {} {macs}", operation.gmac);
        }
        assert!((part.gmac * 1e9 - expected.iter().map(|(_, macs)| *macs as f64).sum::<f64>()).abs() < 0.5);
    };
    // Both prompts through four layers of CLIP, and their keys and values for each of the transformers.
    let clip = 2 * 4 * 77 * 64 * (4 * 64 + 2 * 77 + 2 * 256);
    let widths: usize = [2 * 32, 4 * 64, 64, 3 * 64, 3 * 64, 3 * 32].iter().sum();
    assert!((report.text_encoder.gmac * 1e9 - (clip + 2 * 77 * 64 * 2 * widths) as f64).abs() < 0.5);
    same(&report.unet_step, unet_step(&unet, 1, 9, 8));
    same(&report.vae_decode, vae_decode(&vae, 9, 8));
}

#[test]
fn sd15_implies_the_published_work() {
    let (unet, vae) = geometry(&Checkpoint::synthetic_sd15());
    // Nobody publishes what a step takes whose halves begin as one.
    for (counts, published) in [(unet_step(&unet, 2, 64, 64), 803.0), (vae_decode(&vae, 64, 64), 1257.0)] {
        let gmac = counts.by_kind().iter().map(|(_, macs)| *macs as f64 / 1e9).sum::<f64>();
        assert!((gmac / published - 1.0).abs() < 0.01, "{gmac} where {published} is published");
    }
}
