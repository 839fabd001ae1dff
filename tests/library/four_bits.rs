//! Weights of four bits: the file that holds them, what computes with them, the way back to floats, and bad files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pochade::calibration::{self, Kept, Lesson, Runs};
use pochade::checkpoint::{Checkpoint, FloatType, Storage};
use pochade::layers::Backend;
use pochade::pipeline::footprint::Series;
use pochade::pipeline::{Pipeline, Residency};
use pochade::quantize::grid::GROUP;
use pochade::quantize::{Bits, GroupedWeight, Learning, Policy, Weight};
use pochade::request::{Defaults, Draft, Precision, Request};
use pochade::sensitivity::{self, Recording, Settings};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::comparison::{assert_identical, distance};
use crate::support::model_files::disturbed_floats;
use crate::support::models::{draw, generate, noise, open, resolve, small, text_encoder, unet, unet_config};

fn policy(rules: &[&str]) -> Policy {
    Policy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
}

/// A float model as a file in `folder`, equalized as the program does.
fn quantized(source: &Checkpoint, folder: &TempDir, rules: &[&str]) -> PathBuf {
    let (path, policy) = (folder.path().join("rounded.safetensors"), policy(rules));
    let balance = source.tensors().balance(&policy).unwrap();
    source.write_native(&path, Storage::Balanced(&policy, &balance)).unwrap();
    path
}

/// The built-in model, whose weights are integers, as a float file in `folder`.
fn float_pocket(folder: &TempDir) -> Checkpoint {
    let path = folder.path().join("floats.safetensors");
    Checkpoint::built_in().unwrap().write_native(&path, Storage::Float(FloatType::F32)).unwrap();
    Checkpoint::open(&path).unwrap()
}

fn weight(checkpoint: &Checkpoint, name: &str) -> Weight {
    let shape = checkpoint.tensors().view(name).unwrap().shape;
    checkpoint.tensors().weight(name, shape).unwrap()
}

#[test]
fn files_hold_what_rounding_gives() {
    let folder = TempDir::new().unwrap();
    let (source, policy) = (small(), policy(&["*=4", "*.conv2=8"]));
    let path = folder.path().join("rounded.safetensors");
    source.write_native(&path, Storage::Int8(&policy)).unwrap();
    let rounded = Checkpoint::open(&path).unwrap();
    assert!(rounded.tensors().is_quantized());
    let names: Vec<_> = source.tensors().names().collect();
    assert_eq!(rounded.tensors().parameters().collect::<Vec<_>>(), names);
    let (mut four, mut size) = (0, 0);
    for name in names {
        let shape = source.tensors().view(name).unwrap().shape;
        let expected = source.tensors().f32(name, shape).unwrap();
        let view = rounded.tensors().view(name).unwrap();
        assert_eq!(view.shape, shape, "{name}");
        if policy.stored_bits(name, shape) != Bits::Four {
            let eight = policy.stored_bits(name, shape) == Bits::Eight;
            assert_eq!(view.dtype, if eight { Dtype::I8 } else { Dtype::F16 }, "{name}");
            size += if eight { expected.len() + 4 * shape[0] } else { 2 * expected.len() };
            continue;
        }
        four += 1;
        let (inputs, taps) = (shape[1], shape.iter().skip(2).product::<usize>());
        let groups = shape[0] * inputs.div_ceil(GROUP) * taps;
        size += shape[0] * (inputs * taps).div_ceil(2) + 2 * groups;
        assert_eq!(view.type_name(), "I4", "{name}");
        let scales = rounded.tensors().view(&format!("{name}_scale")).unwrap();
        assert_eq!((scales.dtype, scales.len(), scales.shape[0]), (Dtype::F16, groups, shape[0]), "{name}");
        let Weight::Int4(found) = weight(&rounded, name) else { panic!("{name} has four bits") };
        assert_eq!(found, GroupedWeight::round(&expected, inputs, taps, None).unwrap(), "{name}");
        let loss = distance(&found.dequantize(), &expected).snr();
        assert!(loss > 18.0, "{name}: {loss}");
    }
    assert!(four > 100, "{four} tensors of four bits");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert_eq!(bytes.len() - 8 - length, size);
    let types: BTreeSet<_> = rounded.summary().components.into_iter().flat_map(|part| part.types).collect();
    assert_eq!(types.into_iter().collect::<Vec<_>>(), ["F16", "I4", "I8"]);

    // Once more nothing is lost, whatever is asked for, and bytes of an int8 file can lose four bits.
    let (again, int8) = (folder.path().join("again.safetensors"), folder.path().join("int8.safetensors"));
    rounded.write_native(&again, Storage::Int8(&Policy::default())).unwrap();
    assert_eq!(fs::read(&again).unwrap(), bytes);
    source.write_native(&int8, Storage::Int8(&Policy::default())).unwrap();
    Checkpoint::open(&int8).unwrap().write_native(&again, Storage::Int8(&policy)).unwrap();
    assert_eq!(fs::metadata(&again).unwrap().len(), bytes.len() as u64);
}

/// A picture of odd sizes.
fn picture(checkpoint: &Checkpoint, precision: Precision, residency: Residency) -> Vec<u8> {
    let draft = Draft {
        prompt: Some("a blue fish on a white background".to_owned()),
        width: Some(72),
        height: Some(88),
        steps: Some(3),
        guidance_scale: Some(3.0),
        seed: Some(7),
        ..Draft::default()
    };
    let model = open(checkpoint, precision);
    generate(&mut Pipeline::new(&model, residency), &resolve(draft, checkpoint)).rgb.into_raw()
}

#[test]
fn floats_and_folders_stand_for_the_same_weights() {
    let folder = TempDir::new().unwrap();
    let rounded = Checkpoint::open(&quantized(&float_pocket(&folder), &folder, &["*=4"])).unwrap();
    let expected = picture(&rounded, Precision::F32, Residency::OneByOne);
    let export = folder.path().join("export");
    rounded.write_diffusers(&export, FloatType::F32).unwrap();
    let exported = Checkpoint::open(&export).unwrap();
    assert!(!exported.tensors().is_quantized());
    assert!(picture(&exported, Precision::F32, Residency::OneByOne) == expected);
    let native = folder.path().join("f32.safetensors");
    rounded.write_native(&native, Storage::Float(FloatType::F32)).unwrap();
    assert!(picture(&Checkpoint::open(&native).unwrap(), Precision::F32, Residency::OneByOne) == expected);
}

#[test]
fn layers_are_read_from_the_file_to_the_same_picture() {
    let folder = TempDir::new().unwrap();
    let rounded =
        Checkpoint::open(&quantized(&float_pocket(&folder), &folder, &["*=4", "*.to_k=8"])).unwrap();
    let [kept, streamed] =
        [Residency::Kept, Residency::Streamed].map(|residency| picture(&rounded, Precision::Int8, residency));
    assert!(kept == streamed);
}

#[test]
fn the_memory_estimate_knows_four_bits() {
    let folder = TempDir::new().unwrap();
    let source = float_pocket(&folder);
    let request = Request::new("x", 1, &source.defaults());
    let peak = |rules: &[&str]| {
        let rounded = Checkpoint::open(&quantized(&source, &folder, rules)).unwrap();
        let bytes = fs::metadata(folder.path().join("rounded.safetensors")).unwrap().len();
        // While the decoder runs, so that it can't be what the peak is of.
        (open(&rounded, Precision::Int8).footprint().unwrap().peak(&request, Series::SamePrompt), bytes)
    };
    let ((eight, eight_file), (four, four_file)) =
        (peak(&["unet.*=8"]), peak(&["unet.*=4", "*.time_emb_proj=8"]));
    // What the file saves, and the estimate's slack.
    let ratio = (eight - four) as f64 / (eight_file - four_file) as f64;
    assert!((1.0..1.2).contains(&ratio), "{eight} {four}: {ratio}");
}

/// One call of the UNet over a map of odd sizes.
fn noise_prediction(checkpoint: &Checkpoint, backend: &Backend) -> candle_core::Tensor {
    let config = unet_config(checkpoint);
    let unet = unet(checkpoint, backend);
    let context = unet.context(&noise(1, &[1, 32, config.context_channels])).unwrap();
    unet.forward(&noise(2, &[1, config.in_channels, 24, 16]), 400.0, &context).unwrap()
}

/// The float path is the oracle: what the kernels make of four-bit weights is as near to it as of their floats, rounded
/// to int8.
#[test]
fn kernels_compute_with_four_bits_as_with_eight() {
    let folder = TempDir::new().unwrap();
    let (float, int8) = (Backend::cpu().unwrap(), Backend::cpu_int8().unwrap());
    let source = float_pocket(&folder);
    for (rules, least) in [(&["conv3x3=4"][..], 14.0), (&["*=4"], 12.0)] {
        let path = folder.path().join("rounded.safetensors");
        source.write_native(&path, Storage::Int8(&policy(rules))).unwrap();
        let rounded = Checkpoint::open(&path).unwrap();
        let floats_path = folder.path().join("f32.safetensors");
        rounded.write_native(&floats_path, Storage::Float(FloatType::F32)).unwrap();
        let floats = Checkpoint::open(&floats_path).unwrap();
        let reference = noise_prediction(&rounded, &float);
        assert_identical(&noise_prediction(&floats, &float), &reference, "the same floats");
        let loss = |checkpoint| distance(&noise_prediction(checkpoint, &int8), &reference).snr();
        let (nibbles, bytes) = (loss(&rounded), loss(&floats));
        assert!(nibbles > 25.0 && nibbles > bytes - 1.5, "{rules:?}: {nibbles} dB, as bytes {bytes} dB");
        let whole = distance(&noise_prediction(&rounded, &int8), &noise_prediction(&source, &float)).snr();
        assert!(whole > least, "{rules:?}: {whole} dB");
    }
}

/// Inputs and products of sensitive layers are floats: bytes in the file cost them next to nothing.
#[test]
fn sensitive_layers_are_bytes_in_the_file_where_a_rule_names_them() {
    let folder = TempDir::new().unwrap();
    let source = float_pocket(&folder);
    let int8 = Backend::cpu_int8().unwrap();
    let names = ["unet.time_embedding.linear_1.weight", "unet.mid_block.attentions.0.proj_in.weight"];
    let mut answers = Vec::new();
    for rules in [&[][..], &["*.time_embedding.*=8", "*.proj_in=4"]] {
        let rounded = Checkpoint::open(&quantized(&source, &folder, rules)).unwrap();
        for name in names {
            let expected = if rules.is_empty() { Dtype::F16 } else { Dtype::I8 };
            assert_eq!(rounded.tensors().view(name).unwrap().dtype, expected, "{name}");
        }
        answers.push(noise_prediction(&rounded, &int8));
    }
    let loss = distance(&answers[1], &answers[0]).snr();
    assert!(loss > 40.0 && loss.is_finite(), "{loss} dB");
}

#[test]
fn text_encoders_take_four_bits() {
    let folder = TempDir::new().unwrap();
    let source = small();
    let rounded = Checkpoint::open(&quantized(&source, &folder, &["text_encoder.*=4"])).unwrap();
    let embedding = |checkpoint: &Checkpoint| {
        text_encoder(checkpoint, &Backend::cpu().unwrap()).forward(&[0, 5, 1, 1]).unwrap()
    };
    let loss = distance(&embedding(&rounded), &embedding(&source)).snr();
    assert!(loss > 12.0 && loss < 40.0, "{loss} dB");
    // Single rows are those of the whole.
    let name = "text_encoder.embeddings.token_embedding.weight";
    let shape = rounded.tensors().view(name).unwrap().shape;
    let whole = rounded.tensors().f32(name, shape).unwrap();
    let rows = rounded.tensors().rows(name, [shape[0], shape[1]], &[2, 0]).unwrap();
    assert_eq!(rows, [&whole[2 * shape[1]..][..shape[1]], &whole[..shape[1]]].concat());
}

#[test]
fn learned_rounding_of_four_bits_is_nearer() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    disturbed_floats(&path("floats"), 0.15);
    let model = Checkpoint::open(&path("floats")).unwrap();
    let policy = policy(&["conv3x3=4"]);
    let balance = model.tensors().balance(&policy).unwrap();
    let storage = Storage::Balanced(&policy, &balance);
    model.write_native(&path("nearest"), storage).unwrap();
    let defaults = Defaults { width: 128, height: 128, ..model.defaults() };
    let requests: Vec<_> =
        (0..4).map(|n| Request::new(calibration::PROMPTS[n], 70 + n as u64, &defaults)).collect();
    let runs = Runs::draw(&model, &requests, 8, &Kept::nothing(), &mut |_, _| {}).unwrap();
    let lesson = Lesson { learning: Learning::Gptq, runs: &runs, memory: 1 << 30, kept: &Kept::nothing() };
    let learned = calibration::learn(&model, &policy, &balance, &lesson, &mut |_, _| {}).unwrap();
    model.merged(learned).write_native(&path("learned"), storage).unwrap();
    let size = |name: &str| fs::metadata(path(name)).unwrap().len();
    assert_eq!(size("learned"), size("nearest"));
    let prompts = vec!["a tulip".to_owned(), "a rabbit, green background".to_owned()];
    let settings = Settings { prompts, steps: 2, width: 128, height: 128, seed: 5 };
    let recording = Recording::new(&model, settings, &mut |_, _| {}).unwrap();
    let [nearest, learned] = ["nearest", "learned"]
        .map(|name| recording.compare(&Checkpoint::open(&path(name)).unwrap(), &mut |_, _| {}));
    let (nearest, learned) = (nearest.unwrap(), learned.unwrap());
    println!("{nearest}\n{learned}");
    let gain = learned.output_mean_sqnr.unwrap() - nearest.output_mean_sqnr.unwrap();
    assert!(gain > 1.0, "{gain} dB");

    // What a report says of a layer is about the bits it gets.
    let report = sensitivity::study(&model, &policy, &recording, &mut |_, _| {}).unwrap();
    for layer in &report.layers {
        let four = layer.tensors.iter().all(|name| policy.bits(name) == Bits::Four);
        assert_eq!(layer.weight_sqnr.is_some_and(|sqnr| sqnr < 30.0), four, "{layer:?}");
    }
}

/// A safetensors file with the header, and what this program keeps in it, changed by `edit`; the data stays.
fn edited(file: &[u8], edit: impl Fn(&mut Value, &mut Value)) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let mut ours: Value = serde_json::from_str(header["__metadata__"]["pochade"].as_str().unwrap()).unwrap();
    edit(&mut header, &mut ours);
    header["__metadata__"]["pochade"] = json!(ours.to_string());
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &file[8 + length..]].concat()
}

/// What opening the file, or reading all of its tensors, fails with.
fn refusal(path: &Path) -> String {
    let read = Checkpoint::open(path).and_then(|checkpoint| {
        let tensors = checkpoint.tensors();
        tensors.parameters().try_for_each(|name| tensors.weight(name, tensors.view(name)?.shape).map(drop))
    });
    format!("{:#}", read.expect_err("the file is damaged"))
}

#[test]
fn damaged_files_are_refused_by_the_tensors_name() {
    let folder = TempDir::new().unwrap();
    let path = quantized(&small(), &folder, &["*=4"]);
    let whole = fs::read(&path).unwrap();
    let name = "unet.mid_block.resnets.0.conv1.weight";
    let scale = format!("{name}_scale");
    let shape = Checkpoint::open(&path).unwrap().tensors().view(name).unwrap().shape.to_vec();
    let [out, inputs] = [shape[0], shape[1]];
    let groups = inputs.div_ceil(GROUP);
    let shapes = |shape: Value| {
        move |_: &mut Value, ours: &mut Value| ours["four_bits"]["shapes"][name] = shape.clone()
    };
    type Edit<'a> = Box<dyn Fn(&mut Value, &mut Value) + 'a>;
    let edits: Vec<(Edit<'_>, &str)> = vec![
        // Groups that are not those of the shape.
        (Box::new(|header, _| header[&scale]["shape"] = json!([out, groups * 9])), &scale),
        (Box::new(|header, _| header[&scale]["shape"] = json!([out * groups, 1, 3, 3])), &scale),
        (Box::new(|header, _| drop(header.as_object_mut().unwrap().remove(&scale))), ""),
        // Other scales.
        (Box::new(|header, _| header[&scale]["dtype"] = json!("I16")), &scale),
        // Rows of another length.
        (Box::new(|header, _| header[name]["shape"] = json!([1, out * inputs * 9 / 2])), name),
        (Box::new(|header, _| header[name]["dtype"] = json!("I8")), name),
        (Box::new(shapes(json!([out, inputs + 1, 3, 3]))), name),
        (Box::new(shapes(json!([out + 1, inputs, 3, 3]))), name),
        (Box::new(shapes(json!([out, u64::MAX, u64::MAX]))), name),
        (Box::new(shapes(json!([out, 0, 3, 3]))), name),
        (Box::new(shapes(json!([out]))), name),
        (Box::new(shapes(json!([]))), name),
        (Box::new(shapes(json!("odd"))), "damaged"),
        (Box::new(|_, ours| ours["four_bits"]["shapes"]["unet.none"] = json!([2, 2])), "unet.none"),
        (Box::new(|_, ours| ours["four_bits"]["group_size"] = json!(64)), "four bits"),
        (Box::new(|_, ours| ours["four_bits"]["num_bits"] = json!(3)), "four bits"),
        // Bytes that nothing says are two values each.
        (Box::new(|_, ours| drop(ours["four_bits"]["shapes"].as_object_mut().unwrap().remove(name))), name),
        (Box::new(|_, ours| ours["version"] = json!(4)), "version 4"),
    ];
    for (number, (edit, named)) in edits.into_iter().enumerate() {
        fs::write(&path, edited(&whole, edit)).unwrap();
        let said = refusal(&path);
        assert!(said.contains(named) && !said.contains('\n'), "{number}: {said}");
    }

    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&whole[8..8 + length]).unwrap();
    let start = 8 + length + header[&scale]["data_offsets"][0].as_u64().unwrap() as usize;
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 65504.0] {
        let mut damaged = whole.clone();
        damaged[start + 20..start + 22].copy_from_slice(&half::f16::from_f32(odd).to_le_bytes());
        fs::write(&path, damaged).unwrap();
        let said = refusal(&path);
        assert!(said.contains(&scale) && said.contains("scales that are zero, NaN"), "{odd}: {said}");
    }
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(refusal(&path).contains("cut short"));
    fs::write(&path, whole).unwrap();
    draw(
        &Checkpoint::open(&path).unwrap(),
        Precision::Int8,
        Draft {
            prompt: Some("x".to_owned()),
            width: Some(64),
            height: Some(64),
            steps: Some(1),
            seed: Some(1),
            ..Draft::default()
        },
    );
}

#[test]
fn weights_that_four_bits_cannot_hold_are_not_written() {
    let folder = TempDir::new().unwrap();
    let name = "unet.mid_block.resnets.0.conv1.weight";
    let mut tensors = crate::support::models::load_tensors(&crate::support::models::data(
        "small/unet/diffusion_pytorch_model.safetensors",
    ));
    crate::support::model_files::copy_small(folder.path());
    for odd in [f32::NAN, f32::INFINITY, 1e6] {
        let shape = tensors["mid_block.resnets.0.conv1.weight"].shape().clone();
        let values = candle_core::Tensor::full(odd, shape, &candle_core::Device::Cpu).unwrap();
        tensors.insert("mid_block.resnets.0.conv1.weight".to_owned(), values);
        let path = folder.path().join("unet/diffusion_pytorch_model.safetensors");
        candle_core::safetensors::save(&tensors, path).unwrap();
        let path = folder.path().join("rounded.safetensors");
        let source = Checkpoint::open(folder.path()).unwrap();
        let error = source.write_native(&path, Storage::Int8(&policy(&["conv3x3=4"]))).unwrap_err();
        assert!(format!("{error:#}").contains(name), "{error:#}");
        assert!(!path.exists());
    }
}
