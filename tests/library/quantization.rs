//! int8 weights: rounding, the native file that holds them, the way back to floats, and what each layer loses.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use pochade::checkpoint::{Checkpoint, FloatType, Storage, TensorFile, TensorSet};
use pochade::layers::Backend;
use pochade::prompt::Tokenizer;
use pochade::quantize::{Bits, Policy, QuantizedWeight, Treatment, Weight, sqnr};
use pochade::request::{Draft, Precision};
use pochade::sensitivity::{self, Recording, Settings};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use crate::support::comparison::{assert_identical, distance, largest};
use crate::support::model_files::copy_small;
use crate::support::models::{data, draw, load_tensors, small, text_encoder, unet, unet_config};

/// The built-in model, whose weights are integers, as a float file in `folder`.
fn float_pocket(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("pocket.safetensors");
    Checkpoint::built_in().unwrap().write_native(&path, Storage::Float(FloatType::F16)).unwrap();
    path
}

fn pocket(folder: &TempDir) -> Checkpoint {
    Checkpoint::open(&float_pocket(folder)).unwrap()
}

/// A float model as an int8 file in `folder`.
fn quantized(source: &Checkpoint, folder: &TempDir, keep: &[&str]) -> PathBuf {
    let keep: Vec<String> = keep.iter().map(|&pattern| pattern.to_owned()).collect();
    let path = folder.path().join("int8.safetensors");
    source.write_native(&path, Storage::Int8(&Policy::keeping(&keep))).unwrap();
    path
}

/// Numbers from -1 to 1 that look random.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// The definition, one weight at a time.
fn nearest_multiple(weight: f32, scale: f32) -> i8 {
    let candidates = -127i8..=127;
    let distance = |value: &i8| (f64::from(weight) - f64::from(scale) * f64::from(*value)).abs();
    candidates.min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap()
}

#[test]
fn rounding_is_to_the_nearest_multiple() {
    for (outputs, filter) in [(1, 1), (3, 7), (5, 64), (2, 1000)] {
        let weight = noise(outputs * filter);
        let quantized = QuantizedWeight::round(&weight, outputs).unwrap();
        assert_eq!((quantized.values.len(), quantized.scales.len()), (weight.len(), outputs));
        for (output, filter) in weight.chunks(filter).enumerate() {
            let scale = quantized.scales[output];
            assert_eq!(scale, largest(filter) as f32 / 127.0);
            for (w, value) in filter.iter().zip(&quantized.values[output * filter.len()..]) {
                assert_eq!(*value, nearest_multiple(*w, scale), "{w} in steps of {scale}");
            }
        }
        assert!(distance(&quantized.dequantize(), &weight).largest <= 0.5001 / 127.0);
    }
}

#[test]
fn rounding_of_extremes() {
    let round = |weight: &[f32], outputs| QuantizedWeight::round(weight, outputs).unwrap();
    let one = round(&[-3.0], 1);
    assert_eq!((one.values, one.scales), (vec![-127], vec![3.0 / 127.0]));
    let mixed = round(&[0.0, 0.0, 5.0, -5.0, 1e38, -1e38], 3);
    assert_eq!(mixed.values, [0, 0, 127, -127, 127, -127]);
    assert_eq!(mixed.scales[0], 0.0);
    assert_eq!(mixed.dequantize()[..2], [0.0, 0.0]);
    assert!(mixed.dequantize().iter().all(|value| value.is_finite()));
    // The smallest number there is has no 127th part.
    let tiny = round(&[f32::from_bits(1), -f32::from_bits(100), f32::from_bits(300), 0.0], 2);
    assert!(tiny.dequantize().iter().all(|value| value.is_finite()));
    assert!(round(&[], 2).dequantize().is_empty());
}

#[test]
fn rounding_refuses_what_is_no_number() {
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in 0..6 {
            let mut weight = vec![0.5; 6];
            weight[at] = wrong;
            let message = QuantizedWeight::round(&weight, 3).unwrap_err().to_string();
            assert!(message.contains(&format!("output {}", at / 2)), "{message}");
        }
    }
    assert!(QuantizedWeight::round(&[1.0; 5], 2).is_err());
    assert!(QuantizedWeight::round(&[1.0; 5], 0).is_err());
}

#[test]
fn sqnr_is_in_decibels() {
    assert_eq!(sqnr(&[1.0, -1.0], &[1.0, -1.0]), f64::INFINITY);
    assert!((sqnr(&[1.0, -1.0], &[0.9, -0.9]) - 20.0).abs() < 1e-4);
    assert_eq!(sqnr(&[3.0, 4.0], &[0.0, 0.0]), 0.0);
    let weight = noise(64 * 576);
    let quantized = QuantizedWeight::round(&weight, 64).unwrap();
    // Uniform weights: 6.02 dB for each of log2(254 / 2) bits, and signal and error are of one shape.
    assert!((sqnr(&weight, &quantized.dequantize()) - 48.1).abs() < 0.2);
}

#[test]
fn int8_files_hold_the_weights_within_half_a_step() {
    let folder = TempDir::new().unwrap();
    let source = small();
    let path = quantized(&source, &folder, &[]);
    let quantized = Checkpoint::open(&path).unwrap();
    assert!(quantized.tensors().is_quantized() && !source.tensors().is_quantized());
    assert_eq!(quantized.name(), source.name());
    assert_eq!(quantized.defaults(), source.defaults());
    assert_eq!(quantized.vocabulary(), source.vocabulary());
    let names: Vec<_> = source.tensors().names().collect();
    assert_eq!(quantized.tensors().parameters().collect::<Vec<_>>(), names);

    let (mut int8, mut size) = (0, 0);
    for name in names {
        let shape = source.tensors().view(name).unwrap().shape;
        let expected = source.tensors().f32(name, shape).unwrap();
        let view = quantized.tensors().view(name).unwrap();
        assert_eq!(view.shape, shape, "{name}");
        let found = quantized.tensors().f32(name, shape).unwrap();
        if Policy::default().stored_bits(name, shape) == Bits::Sixteen {
            assert_eq!(view.dtype, Dtype::F16, "{name}");
            assert_eq!(found, expected, "{name}");
            assert!(!quantized.tensors().contains(&format!("{name}_scale")), "{name}");
            size += 2 * expected.len();
            continue;
        }
        int8 += 1;
        size += expected.len() + 4 * shape[0];
        assert_eq!(view.dtype, Dtype::I8, "{name}");
        let scale = quantized.tensors().view(&format!("{name}_scale")).unwrap();
        assert_eq!((scale.dtype, scale.shape), (Dtype::F32, &shape[..1]), "{name}");
        let Weight::Int8(weight) = quantized.tensors().weight(name, shape).unwrap() else {
            panic!("{name} is stored as int8")
        };
        assert_eq!(weight, QuantizedWeight::round(&expected, shape[0]).unwrap(), "{name}");
        for (output, (a, b)) in
            expected.chunks(expected.len() / shape[0]).zip(found.chunks(found.len() / shape[0])).enumerate()
        {
            let most = distance(b, a).largest;
            let step = f64::from(weight.scales[output]);
            assert!(most <= 0.50001 * step, "{name}, output {output}: {most}");
        }
        assert!(distance(&found, &expected).snr() > 38.0, "{name}");
    }
    assert!(int8 > 130, "{int8} int8 tensors");

    let bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert_eq!(bytes.len() - 8 - header, size);

    let file = TensorFile::open(&path).unwrap();
    let header: serde_json::Value = serde_json::from_str(&file.metadata()["pochade"]).unwrap();
    assert_eq!(header["precision"], "int8");
    assert_eq!(header["quantization"]["num_bits"], 8);
    assert_eq!(header["quantization"]["strategy"], "channel");
}

#[test]
fn quantizing_twice_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let path = quantized(&small(), &folder, &[]);
    let again = folder.path().join("again.safetensors");
    Checkpoint::open(&path).unwrap().write_native(&again, Storage::Int8(&Policy::default())).unwrap();
    let (first, second) = (Checkpoint::open(&path).unwrap(), Checkpoint::open(&again).unwrap());
    for name in first.tensors().parameters() {
        let (a, b) = (first.tensors().view(name).unwrap(), second.tensors().view(name).unwrap());
        assert_eq!((a.dtype, a.bytes().unwrap() == b.bytes().unwrap()), (b.dtype, true), "{name}");
    }
}

#[test]
fn kept_layers_stay_f16() {
    let folder = TempDir::new().unwrap();
    let kept = "unet.mid_block.resnets.0.conv1.weight";
    let source = small();
    let path = quantized(&source, &folder, &["unet.mid_block.*", "*.ff.net.2"]);
    let quantized = Checkpoint::open(&path).unwrap();
    let dtype = |name: &str| quantized.tensors().view(name).unwrap().dtype;
    assert_eq!(dtype(kept), Dtype::F16);
    assert!(!quantized.tensors().contains(&format!("{kept}_scale")));
    assert_eq!(dtype("unet.up_blocks.0.resnets.0.conv1.weight"), Dtype::I8);
    let feed_out = |name: &&str| name.ends_with("ff.net.2.weight");
    assert!(quantized.tensors().parameters().filter(feed_out).all(|name| dtype(name) == Dtype::F16));

    let path = folder.path().join("none.safetensors");
    let policy = Policy::keeping(&["unet.middle_block.*".to_owned()]);
    let error = source.write_native(&path, Storage::Int8(&policy)).unwrap_err();
    assert!(error.to_string().contains("unet.middle_block.*"), "{error}");
    assert!(!path.exists());
}

/// A set with the tensor `a.weight`, `[2, 3]`, of these int8 bytes, and whatever else.
fn int8_set(values: &[u8], scale: Option<(Dtype, Vec<usize>, Vec<u8>)>) -> TensorSet {
    let weight = TensorView::new(Dtype::I8, vec![2, 3], values).unwrap();
    let scale = scale.as_ref();
    let scale = scale.map(|(dtype, shape, data)| TensorView::new(*dtype, shape.clone(), data).unwrap());
    let tensors = std::iter::once(("a.weight", weight)).chain(scale.map(|scale| ("a.weight_scale", scale)));
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tensors.safetensors");
    safetensors::serialize_to_file(tensors, None::<HashMap<_, _>>, &path).unwrap();
    let mut set = TensorSet::default();
    set.add(TensorFile::open(&path).unwrap(), |name| Some(name.to_owned())).unwrap();
    set
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn int8_tensors_are_dequantized() {
    let values = [1, 0, 127, 0x81, 0xff, 2];
    let set = int8_set(&values, Some((Dtype::F32, vec![2], f32_bytes(&[0.5, 2.0]))));
    assert_eq!(set.f32("a.weight", &[2, 3, 1, 1]).unwrap(), [0.5, 0.0, 63.5, -254.0, -2.0, 4.0]);
    assert_eq!(set.parameters().collect::<Vec<_>>(), ["a.weight"]);
    // Scales as compressed-tensors shapes them, in another float type.
    let halves = vec![0x00, 0x38, 0x00, 0x40];
    let set = int8_set(&values, Some((Dtype::F16, vec![2, 1], halves)));
    assert_eq!(set.f32("a.weight", &[2, 3]).unwrap(), [0.5, 0.0, 63.5, -254.0, -2.0, 4.0]);
}

#[test]
fn damaged_int8_tensors_are_refused_by_name() {
    let scale = |values: &[f32]| Some((Dtype::F32, vec![values.len()], f32_bytes(values)));
    for (values, scale, expected) in [
        ([1; 6], None, "tensor 'a.weight' holds int8 values: tensor 'a.weight_scale' is missing"),
        ([1; 6], scale(&[1.0; 3]), "tensor 'a.weight_scale' has shape [3] where [2] is expected"),
        ([1; 6], scale(&[1.0]), "tensor 'a.weight_scale' has shape [1] where [2] is expected"),
        ([1; 6], Some((Dtype::I32, vec![2], vec![0; 8])), "tensor 'a.weight_scale'"),
        ([1; 6], scale(&[1.0, f32::NAN]), "tensor 'a.weight_scale' holds scales that are"),
        ([1; 6], scale(&[f32::INFINITY, 1.0]), "tensor 'a.weight_scale' holds scales that are"),
        ([1; 6], scale(&[1.0, -1.0]), "tensor 'a.weight_scale' holds scales that are"),
        ([0x80; 6], scale(&[1.0; 2]), "tensor 'a.weight': holds -128"),
    ] {
        let error = format!("{:#}", int8_set(&values, scale).f32("a.weight", &[2, 3]).unwrap_err());
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_not_written() {
    let folder = TempDir::new().unwrap();
    let name = "unet.up_blocks.0.resnets.0.conv2.weight";
    let mut bytes = fs::read(float_pocket(&TempDir::new().unwrap())).unwrap();
    let header_length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_length]).unwrap();
    let start = 8 + header_length + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[start + 20..start + 22].copy_from_slice(&[0x00, 0x7e]);
    let damaged = folder.path().join("damaged.safetensors");
    fs::write(&damaged, bytes).unwrap();

    let checkpoint = Checkpoint::open(&damaged).unwrap();
    let path = folder.path().join("out.safetensors");
    let policy = Policy::default();
    for storage in [Storage::Int8(&policy), Storage::Float(FloatType::F16), Storage::Float(FloatType::F32)] {
        let error = format!("{:#}", checkpoint.write_native(&path, storage).unwrap_err());
        assert!(error.contains(name), "{error}");
        assert!(!path.exists());
    }
    let export = folder.path().join("export");
    let error = format!("{:#}", checkpoint.write_diffusers(&export, FloatType::F16).unwrap_err());
    assert!(error.contains(name), "{error}");
    // No half-written folder either.
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["damaged.safetensors"]);
}

/// One picture in f32.
fn picture(checkpoint: &Checkpoint) -> Vec<u8> {
    let draft = Draft {
        prompt: Some("a blue fish on a white background".to_owned()),
        width: Some(64),
        height: Some(64),
        steps: Some(4),
        guidance_scale: Some(3.0),
        seed: Some(7),
        ..Draft::default()
    };
    draw(checkpoint, Precision::F32, draft).rgb.into_raw()
}

#[test]
fn exported_folders_draw_the_same_picture() {
    let folder = TempDir::new().unwrap();
    let quantized = Checkpoint::open(&quantized(&pocket(&folder), &folder, &[])).unwrap();
    let export = folder.path().join("export");
    quantized.write_diffusers(&export, FloatType::F32).unwrap();
    let exported = Checkpoint::open(&export).unwrap();
    assert!(!exported.tensors().is_quantized());
    assert_eq!(exported.vocabulary(), quantized.vocabulary());
    assert_eq!(
        exported.tensors().names().collect::<Vec<_>>(),
        quantized.tensors().parameters().collect::<Vec<_>>()
    );
    assert_eq!(picture(&exported), picture(&quantized));
    let error = quantized.write_diffusers(&export, FloatType::F32).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");

    // An int8 file turned into a float one is the same again.
    let native = folder.path().join("f32.safetensors");
    quantized.write_native(&native, Storage::Float(FloatType::F32)).unwrap();
    assert_eq!(picture(&Checkpoint::open(&native).unwrap()), picture(&quantized));
}

#[test]
fn exports_are_laid_out_as_diffusers_expects() {
    let folder = TempDir::new().unwrap();
    let export = folder.path().join("export");
    fs::create_dir(&export).unwrap();
    small().write_diffusers(&export, FloatType::F16).unwrap();
    let json = |path: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(export.join(path)).unwrap()).unwrap()
    };
    let index = json("model_index.json");
    assert_eq!(index["_class_name"], "StableDiffusionPipeline");
    assert_eq!(index["vae"], serde_json::json!(["diffusers", "AutoencoderKL"]));
    assert_eq!(json("unet/config.json")["_class_name"], "UNet2DConditionModel");
    assert_eq!(json("tokenizer/tokenizer_config.json")["model_max_length"], 77);
    for path in ["tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"] {
        assert!(export.join(path).exists(), "{path}");
    }
    let original = data("small");
    for (path, prefix) in [
        ("text_encoder/model.safetensors", "text_model."),
        ("unet/diffusion_pytorch_model.safetensors", ""),
        ("vae/diffusion_pytorch_model.safetensors", ""),
    ] {
        let file = TensorFile::open(&export.join(path)).unwrap();
        assert_eq!(file.metadata()["format"], "pt");
        let bare = |name: &str| name.trim_start_matches("text_model.").to_owned();
        let expected = TensorFile::open(&original.join(path)).unwrap();
        let expected: Vec<_> =
            expected.names().filter(|name| !name.ends_with("position_ids")).map(bare).collect();
        assert!(file.names().all(|name| name.starts_with(prefix)));
        assert_eq!(file.names().map(bare).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn text_embeddings_survive_int8_weights() {
    let folder = TempDir::new().unwrap();
    let source = small();
    let quantized = Checkpoint::open(&quantized(&source, &folder, &[])).unwrap();
    let embedding = |checkpoint: &Checkpoint| {
        let encoder = text_encoder(checkpoint, &Backend::cpu().unwrap());
        let tokenizer = Tokenizer::new(checkpoint.vocabulary()).unwrap();
        let (ids, _) = tokenizer.chunk("a red apple", encoder.positions()).unwrap();
        encoder.forward(&ids).unwrap()
    };
    let loss = distance(&embedding(&quantized), &embedding(&source)).snr();
    assert!(loss > 35.0, "text embeddings from int8 weights: {loss} dB");
}

/// One call of the UNet.
fn noise_prediction(checkpoint: &Checkpoint, backend: &Backend) -> Tensor {
    let config = unet_config(checkpoint);
    let shape = (1, 32, config.context_channels);
    let embeddings = Tensor::from_vec(noise(32 * config.context_channels), shape, &Device::Cpu);
    let channels = config.in_channels;
    let latents = Tensor::from_vec(noise(channels * 16 * 16), (1, channels, 16, 16), &Device::Cpu).unwrap();
    let unet = unet(checkpoint, backend);
    let context = unet.context(&embeddings.unwrap()).unwrap();
    unet.forward(&latents, 400.0, &context).unwrap()
}

#[test]
fn layers_run_as_their_file_says() {
    let (float, int8) = (Backend::cpu().unwrap(), Backend::cpu_int8().unwrap());
    let folder = TempDir::new().unwrap();
    let source = pocket(&folder);
    let quantized = Checkpoint::open(&quantized(&source, &folder, &[])).unwrap();
    let reference = noise_prediction(&source, &float);
    let loss = |checkpoint, backend| distance(&noise_prediction(checkpoint, backend), &reference).snr();
    let before = loss(&quantized, &int8);
    assert!(before > 25.0, "{before} dB");
    // Rounded when loaded or before is the same: these are the file's values as floats.
    let path = folder.path().join("floats.safetensors");
    quantized.write_native(&path, Storage::Float(FloatType::F32)).unwrap();
    let floats = Checkpoint::open(&path).unwrap();
    let again = distance(&noise_prediction(&floats, &int8), &noise_prediction(&quantized, &int8)).snr();
    assert!(again > 80.0, "{again} dB");
    assert!(loss(&quantized, &float) > before + 3.0);
    // Floats in an int8 file were kept to run as floats.
    let kept = folder.path().join("kept.safetensors");
    let policy = Policy::keeping(&["unet.*".to_owned()]);
    source.write_native(&kept, Storage::Int8(&policy)).unwrap();
    let kept = noise_prediction(&Checkpoint::open(&kept).unwrap(), &int8);
    assert_identical(&kept, &reference, "a unet kept in f16");
}

#[test]
fn nothing_is_reported_of_a_model_that_overflows() {
    let folder = TempDir::new().unwrap();
    copy_small(folder.path());
    let path = folder.path().join("unet/diffusion_pytorch_model.safetensors");
    let mut tensors = load_tensors(&path);
    let weight = Tensor::full(3e38f32, tensors["conv_out.weight"].shape(), &Device::Cpu).unwrap();
    tensors.insert("conv_out.weight".to_owned(), weight);
    candle_core::safetensors::save(&tensors, path).unwrap();
    let settings = Settings { prompts: vec!["a dog".to_owned()], steps: 1, width: 64, height: 64, seed: 3 };
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = Recording::new(&checkpoint, settings, &mut |_, _| {}).err().unwrap();
    assert!(error.to_string().contains("NaN"), "{error}");
}

#[test]
fn the_report_lists_every_int8_layer_worst_first() {
    let policy = Policy::keeping(&["unet.mid_block.*".to_owned()]);
    let settings = Settings {
        prompts: vec!["a red apple".to_owned(), "a dog".to_owned()],
        steps: 3,
        width: 64,
        height: 64,
        seed: 3,
    };
    let mut calls = Vec::new();
    let mut on_layer = |done, total| calls.push((done, total));
    let folder = TempDir::new().unwrap();
    let checkpoint = pocket(&folder);
    let recording = Recording::new(&checkpoint, settings, &mut |_, _| {}).unwrap();
    let report = sensitivity::study(&checkpoint, &policy, &recording, &mut on_layer).unwrap();

    let mut found: Vec<&str> =
        report.layers.iter().flat_map(|layer| &layer.tensors).map(String::as_str).collect();
    found.sort_unstable();
    let computed = |name: &&str| policy.treatment(name) == Treatment::Computed;
    let expected: Vec<_> = checkpoint.tensors().names().filter(computed).collect();
    assert_eq!(found, expected);
    assert_eq!(calls.last(), Some(&(report.layers.len(), report.layers.len())));

    let outputs: Vec<f64> = report.layers.iter().filter_map(|layer| layer.output_sqnr).collect();
    assert_eq!(outputs.len(), report.layers.len());
    assert!(outputs.is_sorted());
    for layer in &report.layers {
        assert!(layer.weight_sqnr.unwrap() > 38.0, "{layer:?}");
        assert!(layer.activation_sqnr.unwrap() > 25.0, "{layer:?}");
        assert!(layer.output_sqnr.unwrap() > 35.0, "{layer:?}");
    }
    // Together they can't lose less than the worst alone, nor more than a picture can bear.
    let all = report.output_sqnr.unwrap();
    assert!(all < outputs[0] && all > 30.0, "{all} dB");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["layers"][0]["layer"], report.layers[0].layer);
    assert_eq!(json["steps"], 3);
    assert_eq!((report.timesteps.len(), report.timesteps[0], report.timesteps[2]), (3, 999.0, 0.0));

    let quantized = Checkpoint::open(&quantized(&checkpoint, &folder, &[])).unwrap();
    let error = sensitivity::study(&quantized, &policy, &recording, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("quantized already"), "{error}");
    let error = Recording::new(&quantized, report.settings, &mut |_, _| {}).err().unwrap();
    assert!(error.to_string().contains("quantized already"), "{error}");
}
