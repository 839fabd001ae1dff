//! The measure of what int8 costs: it agrees with itself, sees a fault that pictures of 20 steps hide, and says no.

use std::fs;

use pochade::checkpoint::{Checkpoint, FloatType, Storage};
use pochade::sensitivity::{Fidelity, Recording, Settings};
use tempfile::TempDir;

use crate::support::models::prompts;

fn settings(prompts: Vec<String>) -> Settings {
    Settings { prompts, steps: 1, width: 128, height: 128, seed: 5 }
}

fn record(checkpoint: &Checkpoint, count: usize) -> Recording {
    let prompts = prompts().into_iter().take(count).collect();
    Recording::of_any(checkpoint, settings(prompts), &mut |_, _| {}).unwrap()
}

fn compare(recording: &Recording, quantized: &Checkpoint) -> Fidelity {
    recording.compare(quantized, &mut |_, _| {}).unwrap()
}

#[test]
fn int8_is_nearer_than_another_seed_at_every_timestep_and_in_every_picture() {
    let model = Checkpoint::built_in().unwrap();
    let recording = record(&model, 2);
    let found = compare(&recording, &model);
    println!("{found}");
    assert_eq!((found.timesteps.len(), found.pictures.len()), (20, 2));
    assert_eq!(found.timesteps[0].timestep, 999.0);
    assert_eq!(found.timesteps[19].timestep, 0.0);
    // The text encoder's weights are the same in both, and computed in floats.
    assert_eq!(found.text_sqnr, None);
    let (mean, worst) = (found.output_mean_sqnr.unwrap(), found.output_worst.sqnr.unwrap());
    let sum: f64 = found.timesteps.iter().map(|timestep| timestep.sqnr.unwrap()).sum();
    assert!((mean - sum / 20.0).abs() < 1e-9);
    assert!(found.timesteps.iter().all(|timestep| timestep.sqnr.unwrap() >= worst));
    assert!(mean > 30.0 && worst > 20.0, "{mean} {worst}");
    assert!(found.latents_sqnr.unwrap() > 25.0);
    for picture in &found.pictures {
        assert!(picture.psnr > picture.other_seed_psnr, "{picture:?}");
    }
    assert!(found.picture_worst_psnr <= found.picture_mean_psnr);
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["output_worst"]["timestep"], found.output_worst.timestep);
    assert_eq!(json["pictures"][1]["seed"], 6);
    // The same again is the same to the last bit.
    assert_eq!(serde_json::to_value(compare(&recording, &model)).unwrap(), json);
}

/// One layer of many is a tenth too large.
#[test]
fn a_fault_in_one_layer_shows() {
    let folder = TempDir::new().unwrap();
    let model = Checkpoint::built_in().unwrap();
    let path = folder.path().join("damaged.safetensors");
    model.write_native(&path, Storage::Float(FloatType::F32)).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let entries: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let at = |end: usize| {
        let offsets = &entries["unet.down_blocks.0.resnets.0.conv2.weight"]["data_offsets"];
        8 + header + offsets[end].as_u64().unwrap() as usize
    };
    for value in bytes[at(0)..at(1)].as_chunks_mut().0 {
        *value = (1.1 * f32::from_le_bytes(*value)).to_le_bytes();
    }
    fs::write(&path, bytes).unwrap();
    let recording = record(&model, 1);
    let (whole, damaged) =
        (compare(&recording, &model), compare(&recording, &Checkpoint::open(&path).unwrap()));
    println!("{whole}\n{damaged}");
    let worst = |found: &Fidelity| found.output_worst.sqnr.unwrap();
    assert!(damaged.output_mean_sqnr.unwrap() < whole.output_mean_sqnr.unwrap() - 3.0);
    assert!(worst(&damaged) < worst(&whole));
    assert!(damaged.latents_sqnr.unwrap() < whole.latents_sqnr.unwrap() - 3.0);
}

#[test]
fn another_model_is_no_comparison() {
    let recording = record(&Checkpoint::built_in().unwrap(), 1);
    let other = crate::support::models::small();
    let error = recording.compare(&other, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("another model"), "{error}");
}
