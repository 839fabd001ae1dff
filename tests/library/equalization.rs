//! Equalization: floats stay what they are, planted outliers cost nothing, files hold the factors, LoRAs still fit.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use pochade::checkpoint::lora::{Adapter, Merge};
use pochade::checkpoint::{Checkpoint, FloatType, Replaceable, Storage, TensorFile, TensorSet};
use pochade::layers::{Backend, Params};
use pochade::networks::unet::Unet;
use pochade::quantize::Policy;
use pochade::sensitivity::{Fidelity, Recording, Settings};
use safetensors::Dtype;
use tempfile::TempDir;

use crate::support::comparison::{assert_identical, distance};
use crate::support::models::{data, float_backends, noise, prompts, small, text_encoder, unet_config};
use crate::support::planting::{Place, Spread, plant};

const OUTLIERS: Spread = Spread::Outliers { share: 0.05, times: 100.0 };

/// A model as an int8 file, equalized.
fn balanced(source: &Checkpoint, path: &Path) -> Checkpoint {
    let policy = Policy::default();
    let balance = source.tensors().balance(&policy).unwrap();
    source.write_native(path, Storage::Balanced(&policy, &balance)).unwrap();
    Checkpoint::open(path).unwrap()
}

/// The same, rounded as it is.
fn plain(source: &Checkpoint, path: &Path) -> Checkpoint {
    source.write_native(path, Storage::Int8(&Policy::default())).unwrap();
    Checkpoint::open(path).unwrap()
}

fn planted(source: &Checkpoint, folder: &TempDir) -> Checkpoint {
    plant(source, Place::All, OUTLIERS, 1, &folder.path().join("planted.safetensors"))
}

/// One call of a UNet, loaded with or without factors.
fn call(checkpoint: &Checkpoint, backend: &Backend, equalized: bool) -> Tensor {
    call_with(checkpoint, checkpoint.tensors(), backend, equalized)
}

/// The same with these tensors.
fn call_with(checkpoint: &Checkpoint, tensors: &TensorSet, backend: &Backend, equalized: bool) -> Tensor {
    let config = unet_config(checkpoint);
    let embeddings = noise(3, &[1, 16, config.context_channels]);
    let latents = noise(4, &[1, config.in_channels, 16, 24]);
    let balance = tensors.balance(&Policy::default()).unwrap();
    let params = Params::new(tensors, backend, "unet");
    let params = if equalized { params.balanced(&balance) } else { params };
    let unet = Unet::load(&params, config).unwrap();
    unet.forward(&latents, 300.0, &unet.context(&embeddings).unwrap()).unwrap()
}

#[test]
fn floats_compute_the_same_with_and_without() {
    let folder = TempDir::new().unwrap();
    for source in [small(), planted(&small(), &folder)] {
        for backend in float_backends() {
            let (without, with) = (call(&source, &backend, false), call(&source, &backend, true));
            let same = distance(&with, &without).snr();
            assert!(same > 90.0, "{}: {same} dB", backend.name());
            assert!(same.is_finite(), "factors change the last bits");
        }
    }
}

#[test]
fn planting_changes_no_float_and_much_int8() {
    let folder = TempDir::new().unwrap();
    let source = small();
    let planted = planted(&source, &folder);
    let (float, int8) = (Backend::cpu().unwrap(), Backend::cpu_int8().unwrap());
    let embed = |checkpoint: &Checkpoint| {
        text_encoder(checkpoint, &float).forward(&[49406, 320, 49407]).unwrap().to_vec3::<f32>().unwrap()
    };
    assert_ne!(embed(&source), embed(&planted), "the prompt's channels are planted too");
    // The prompt is the one channel that a call is given from outside.
    let others = |place| plant(&source, place, OUTLIERS, 1, &folder.path().join("others.safetensors"));
    for place in [Place::Norm, Place::Value, Place::Gated, Place::QueryKey] {
        let planted = others(place);
        let reference = call(&source, &float, false);
        let same = distance(&call(&planted, &float, false), &reference).snr();
        assert!(same > 90.0, "{place:?}: {same} dB");
        let loss = |equalized| distance(&call(&planted, &int8, equalized), &reference).snr();
        let (with, without) = (loss(true), loss(false));
        let unplanted = distance(&call(&source, &int8, true), &reference).snr();
        println!("{place:?}: int8 {without:.1} dB, equalized {with:.1} dB, unplanted {unplanted:.1} dB");
        assert!((with - unplanted).abs() < 1.0, "{place:?}: {with} {unplanted}");
        if place != Place::QueryKey {
            assert!(with > without + 3.0, "{place:?}: {with} {without}");
        }
    }
}

fn fidelity(recording: &Recording, checkpoint: &Checkpoint) -> Fidelity {
    let found = recording.compare(checkpoint, &mut |_, _| {}).unwrap();
    println!("{found}");
    found
}

/// The full table is a benchmark, `outliers_planted_everywhere`.
#[test]
fn planted_outliers_cost_the_built_in_model_nothing() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("floats.safetensors");
    Checkpoint::built_in().unwrap().write_native(&path, Storage::Float(FloatType::F32)).unwrap();
    let source = Checkpoint::open(&path).unwrap();
    let planted = planted(&source, &folder);
    let settings = Settings { prompts: prompts()[..1].to_vec(), steps: 1, width: 128, height: 128, seed: 3 };
    let record = |model: &Checkpoint| Recording::new(model, settings.clone(), &mut |_, _| {}).unwrap();
    let unplanted = fidelity(&record(&source), &source);
    let recording = record(&planted);
    let equalized = fidelity(&recording, &planted);
    let rounded = fidelity(&recording, &plain(&planted, &folder.path().join("plain.safetensors")));
    let output = |found: &Fidelity| found.output_mean_sqnr.unwrap();
    let picture = |found: &Fidelity| found.picture_worst_psnr.unwrap();
    assert!(picture(&equalized) > 46.0);
    assert!(output(&equalized) > output(&unplanted) - 0.5);
    // Rounded as they are, the measure says no.
    assert!(output(&rounded) < output(&equalized) - 6.0);
    assert!(picture(&rounded) < picture(&equalized) - 6.0);
}

#[test]
fn files_hold_the_factors_and_the_weights_they_had() {
    let folder = TempDir::new().unwrap();
    let source = planted(&small(), &folder);
    let path = folder.path().join("int8.safetensors");
    let file = balanced(&source, &path);
    let names: Vec<_> = source.tensors().names().collect();
    assert_eq!(file.tensors().parameters().collect::<Vec<_>>(), names);
    let block = "unet.mid_block.attentions.0.transformer_blocks.0";
    let mut factors = 0;
    for name in names {
        let shape = source.tensors().view(name).unwrap().shape;
        let (expected, found) =
            (source.tensors().f32(name, shape).unwrap(), file.tensors().f32(name, shape).unwrap());
        let loss = distance(&found, &expected).snr();
        assert!(loss > 20.0, "{name}: {loss} dB");
        let Ok(columns) = file.tensors().view(&format!("{name}_columns")) else { continue };
        factors += 1;
        assert_eq!((columns.dtype, columns.shape), (Dtype::F32, &shape[1..2]), "{name}");
        assert!(name.contains(".transformer_blocks."), "{name}");
    }
    // Seven pairs have ten readers in each transformer.
    let transformers = source.tensors().names().filter(|name| name.ends_with(".norm1.weight"));
    let transformers = transformers.filter(|name| name.contains("transformer_blocks")).count();
    assert_eq!(factors, 10 * transformers);
    let factors_of = |layer: &str| {
        let view = file.tensors().view(&format!("{block}.{layer}.weight_columns")).unwrap();
        view.to_f32().unwrap()
    };
    assert_eq!(factors_of("attn1.to_q"), factors_of("attn1.to_v"), "what reads one norm shares its factors");
    assert_ne!(factors_of("attn1.to_q"), factors_of("attn2.to_q"));

    let header = |path: &Path| -> serde_json::Value {
        serde_json::from_str(&TensorFile::open(path).unwrap().metadata()["pochade"]).unwrap()
    };
    assert_eq!(header(&path)["version"], 2, "readers that know no factors refuse it");
    // What is int8 already is copied.
    let again = folder.path().join("again.safetensors");
    balanced(&file, &again);
    assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap());
    plain(&file, &again);
    assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap());
    plain(&source, &again);
    assert_eq!(header(&again)["version"], 1);
    // And becomes floats that compute what the file's weights stand for.
    let floats = folder.path().join("floats.safetensors");
    file.write_native(&floats, Storage::Float(FloatType::F32)).unwrap();
    let (floats, backend) = (Checkpoint::open(&floats).unwrap(), Backend::cpu().unwrap());
    assert_identical(
        &call(&floats, &backend, false),
        &call(&file, &backend, false),
        "floats of an int8 file",
    );
}

#[test]
fn a_file_computes_what_loading_its_floats_does() {
    let folder = TempDir::new().unwrap();
    let source = planted(&small(), &folder);
    let file = balanced(&source, &folder.path().join("int8.safetensors"));
    let int8 = Backend::cpu_int8().unwrap();
    let reference = call(&source, &Backend::cpu().unwrap(), false);
    let loss =
        |checkpoint: &Checkpoint, equalized| distance(&call(checkpoint, &int8, equalized), &reference).snr();
    let (loaded, read) = (loss(&source, true), loss(&file, true));
    assert!((loaded - read).abs() < 1.0, "{loaded} dB while loading, {read} dB from a file");
    // Without its factors a file still stands for the same weights.
    assert!(read > loss(&file, false) + 3.0);
}

/// A LoRA is made for the weights as they were: it must not matter whether it meets floats or an equalized file.
#[test]
fn loras_fit_equalized_files() {
    let folder = TempDir::new().unwrap();
    // Adapters are not planted: among larger factors theirs would be all that counts.
    let mild = Spread::LogNormal { sigma: 0.5 };
    let source = plant(&small(), Place::All, mild, 1, &folder.path().join("planted.safetensors"));
    let file = balanced(&source, &folder.path().join("int8.safetensors"));
    let adapted = |checkpoint: &Checkpoint| {
        let adapter = Adapter::open(&data("reference/lora_peft.safetensors")).unwrap();
        let mut merge = Merge::default();
        merge.add(Arc::new(adapter), 0.5, checkpoint.tensors()).unwrap();
        checkpoint.tensors().merged(merge)
    };
    let (float, int8) = (Backend::cpu().unwrap(), Backend::cpu_int8().unwrap());
    let reference = call_with(&source, &adapted(&source), &float, false);
    let loss = |output: Tensor| distance(&output, &reference).snr();
    let without = loss(call(&source, &float, false));
    let loaded = loss(call_with(&source, &adapted(&source), &int8, true));
    let read = loss(call_with(&file, &adapted(&file), &int8, true));
    let as_floats = loss(call_with(&file, &adapted(&file), &float, false));
    println!(
        "lora: not applied {without:.1} dB, on floats {loaded:.1} dB, on a file {read:.1}, {as_floats:.1} dB"
    );
    assert!(loaded > without + 10.0);
    // Weights that had been rounded before they met the adapter lose a little more.
    assert!(read > loaded - 3.0, "{loaded} dB on floats, {read} dB on a file");
    assert!(as_floats > loaded, "{loaded} dB on floats, {as_floats} dB on a file's floats");
}

#[test]
fn a_text_encoder_from_elsewhere_fits_a_file() {
    let folder = TempDir::new().unwrap();
    let source = planted(&small(), &folder);
    let mut file = balanced(&source, &folder.path().join("int8.safetensors"));
    let before = call(&file, &Backend::cpu_int8().unwrap(), true);
    let text_encoder = folder.path().join("planted.safetensors");
    file.replace(Replaceable::TextEncoder, &text_encoder).unwrap();
    assert_identical(&call(&file, &Backend::cpu_int8().unwrap(), true), &before, "another text encoder");
}

/// No factors undo what a rotation has spread over neighbors: the layers on both sides of it stay float, loaded or in a
/// file, which costs no other model anything.
#[test]
fn rotated_outliers_stay_float() {
    let folder = TempDir::new().unwrap();
    let source = plant(&small(), Place::Rotated, OUTLIERS, 1, &folder.path().join("planted.safetensors"));
    let (float, int8) = (Backend::cpu().unwrap(), Backend::cpu_int8().unwrap());
    let reference = call(&source, &float, false);
    assert!(distance(&reference, &call(&small(), &float, false)).snr() > 90.0, "planting changes no float");
    let balance = source.tensors().balance(&Policy::default()).unwrap();
    assert!(balance.kept().count() > 0);
    for name in balance.kept() {
        assert!(name.ends_with(".to_v.weight") || name.ends_with(".to_out.0.weight"), "{name}");
    }
    assert_eq!(small().tensors().balance(&Policy::default()).unwrap().kept().count(), 0);

    let file = balanced(&source, &folder.path().join("int8.safetensors"));
    let rounded = plain(&source, &folder.path().join("plain.safetensors"));
    let loss = |checkpoint: &Checkpoint| distance(&call(checkpoint, &int8, true), &reference).snr();
    let unplanted = distance(&call(&small(), &int8, true), &reference).snr();
    let (loaded, read, without) = (loss(&source), loss(&file), loss(&rounded));
    println!(
        "rotated: int8 {without:.1} dB, loaded {loaded:.1}, a file {read:.1}, unplanted {unplanted:.1} dB"
    );
    assert!(loaded > unplanted - 1.0 && read > unplanted - 1.0);
    assert!(without < unplanted - 6.0);
    for name in balance.kept() {
        assert_eq!(file.tensors().view(name).unwrap().dtype, Dtype::F16, "{name}");
    }
}

#[test]
fn damaged_factors_are_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("int8.safetensors");
    balanced(&small(), &path);
    let whole = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&whole[8..8 + length]).unwrap();
    let name = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight_columns";
    let start = 8 + length + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let damaged = Checkpoint::open(&path).unwrap();
        let error = damaged.tensors().balance(&Policy::default()).unwrap_err();
        assert!(format!("{error:#}").contains(name), "{error:#}");
        let weight = name.trim_end_matches("_columns");
        let shape = damaged.tensors().view(weight).unwrap().shape;
        let error = damaged.tensors().f32(weight, shape).unwrap_err();
        assert!(format!("{error:#}").contains(name), "{error:#}");
    };
    for value in [f32::NAN, f32::INFINITY, 0.0, -1.0, 1e-30] {
        let mut bytes = whole.clone();
        bytes[start + 8..start + 12].copy_from_slice(&value.to_le_bytes());
        refused(&bytes);
    }
    let shape = header[name]["shape"].to_string();
    let other = format!("[1,{}]", shape.trim_matches(['[', ']']));
    let text = String::from_utf8(whole[8..8 + length].to_vec()).unwrap();
    let entry = |shape: &str| format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape}");
    assert!(text.contains(&entry(&shape)), "{text}");
    let text = text.replace(&entry(&shape), &entry(&other));
    let text = text.trim_end();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes.extend_from_slice(&whole[8 + length..]);
    refused(&bytes);
}
