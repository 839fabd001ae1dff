//! One model in every form it comes in: LDM and GGUF files give the tensors, configs and pictures of the folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use pochade::checkpoint::{Checkpoint, Layout, Origin};
use pochade::networks::config::{ClipConfig, UnetConfig};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::comparison::distance;
use crate::support::model_files as files;
use crate::support::models::{data, kl_config, small};
use crate::support::sandbox::Sandbox;

/// Asserts that `found` has the tensors of `expected`, whose values differ by at most `tolerance` of the
/// tensor's root mean square, in the root mean square.
#[track_caller]
fn assert_tensors(found: &Checkpoint, expected: &Checkpoint, tolerance: f64) {
    let names = |checkpoint: &Checkpoint| {
        checkpoint.tensors().names().map(str::to_owned).collect::<BTreeSet<String>>()
    };
    assert_eq!(names(found), names(expected));
    for name in expected.tensors().names() {
        let shape = expected.tensors().view(name).unwrap().shape;
        let a = found.tensors().f32(name, shape).unwrap();
        let b = expected.tensors().f32(name, shape).unwrap();
        let error = distance(&a, &b).relative_rms();
        assert!(error <= tolerance, "{name}: {error} of the root mean square");
    }
}

/// What the networks make of a model's configs.
fn networks(checkpoint: &Checkpoint) -> (String, String, String) {
    let configs = checkpoint.configs();
    let vae = kl_config(checkpoint);
    (
        format!("{:?}", UnetConfig::parse(&configs.unet).unwrap()),
        format!("{vae:?}"),
        format!("{:?}", ClipConfig::parse(&configs.text_encoder).unwrap()),
    )
}

#[test]
fn the_inventory_of_sd15_maps_completely() {
    let rows = files::inventory();
    assert_eq!(rows.len(), 1130);
    let of_all = |names: &[String]| -> Vec<String> {
        let layout = Layout::of(names.iter().map(String::as_str));
        names
            .iter()
            .map(|name| layout.canonical(name).unwrap_or_else(|| panic!("{name} is left over")))
            .collect()
    };
    let ldm = of_all(&rows.iter().map(|row| row.ldm.clone()).collect::<Vec<_>>());
    let prefix = |row: &files::Row| {
        if row.component == "text_encoder" { "te".to_owned() } else { row.component.clone() }
    };
    let diffusers =
        of_all(&rows.iter().map(|row| format!("{}.{}", prefix(row), row.diffusers)).collect::<Vec<_>>());
    for ((ldm, diffusers), row) in ldm.iter().zip(&diffusers).zip(&rows) {
        assert_eq!(ldm, diffusers, "{}", row.ldm);
        let bare = row.diffusers.strip_prefix("text_model.").unwrap_or(&row.diffusers);
        assert_eq!(*ldm, format!("{}.{bare}", row.component));
    }
    assert_eq!(ldm.iter().collect::<BTreeSet<_>>().len(), 1130);
}

#[test]
fn the_shapes_of_sd15_give_its_published_configs() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("v1-5-pruned-emaonly.safetensors");
    // A file of the real size, of which only the header is there.
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for row in files::inventory() {
        let start = end;
        end += 2 * row.ldm_shape.iter().product::<usize>();
        header.insert(row.ldm, json!({"dtype": "F16", "shape": row.ldm_shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();

    let found = Checkpoint::open(&path).unwrap();
    assert_eq!((found.origin(), found.name()), (Origin::Ldm, "v1-5-pruned-emaonly"));
    assert_eq!(networks(&found), networks(&Checkpoint::synthetic_sd15()));
    let summary = found.summary();
    let count = |count: fn(&pochade::checkpoint::ComponentSummary) -> usize| {
        summary.components.iter().map(count).sum::<usize>()
    };
    assert_eq!((count(|part| part.tensors), count(|part| part.bytes)), (1130, end));
    assert_eq!(summary.components[1].parameters, 859_520_964);
}

#[test]
fn ldm_files_of_every_float_type_are_the_folder() {
    let folder = TempDir::new().unwrap();
    let expected = small();
    for (dtype, tolerance) in
        [(DType::F16, 0.0), (DType::F32, 0.0), (DType::F64, 0.0), (DType::BF16, 1.0 / 256.0)]
    {
        let path = folder.path().join("model.ckpt");
        let converted = |tensor: &Tensor| tensor.to_dtype(dtype).unwrap();
        let mut tensors: BTreeMap<_, _> =
            files::ldm().into_iter().map(|(name, tensor)| (name, converted(&tensor))).collect();
        // What training leaves in a file.
        let ones = Tensor::ones((1, 77), DType::I64, &Device::Cpu).unwrap();
        let position_ids = "cond_stage_model.transformer.text_model.embeddings.position_ids";
        tensors.insert(position_ids.to_owned(), ones.clone());
        tensors.insert("model_ema.diffusion_modelinput_blocks00weight".to_owned(), ones.clone());
        tensors.insert("model_ema.num_updates".to_owned(), ones.clone());
        tensors.insert("alphas_cumprod".to_owned(), ones.clone());
        tensors.insert("first_stage_model.loss.logvar".to_owned(), ones);
        files::save(&tensors, &path);
        let found = Checkpoint::open(&path).unwrap();
        assert_eq!(found.origin(), Origin::Ldm);
        assert_tensors(&found, &expected, tolerance);
        assert_eq!(networks(&found), networks(&expected));
    }
}

#[test]
fn every_spelling_of_the_text_encoder_and_the_vaes_attention_is_read() {
    let folder = TempDir::new().unwrap();
    let expected = small();
    let spellings = [
        ["q", "k", "v", "proj_out"],
        ["to_q", "to_k", "to_v", "to_out.0"],
        ["query", "key", "value", "proj_attn"],
    ];
    for (spelling, flat) in spellings.iter().zip([false, true, true]) {
        let path = folder.path().join("model.safetensors");
        let renamed = |(name, tensor): (String, Tensor)| {
            let name = name.replace(
                "transformer.text_model.",
                if flat { "transformer." } else { "transformer.text_model." },
            );
            let Some((block, layer)) = name.split_once("attn_1.") else { return (name, tensor) };
            let (layer, kind) = layer.rsplit_once('.').unwrap();
            let at = spellings[0].iter().position(|old| *old == layer);
            let layer = at.map_or(layer, |at| spelling[at]);
            let shape: Vec<usize> = tensor.dims().iter().copied().filter(|size| !flat || *size > 1).collect();
            (format!("{block}attn_1.{layer}.{kind}"), tensor.reshape(shape).unwrap())
        };
        files::save(&files::ldm().into_iter().map(renamed).collect(), &path);
        assert_tensors(&Checkpoint::open(&path).unwrap(), &expected, 0.0);
    }
}

#[test]
fn gguf_files_of_every_type_are_the_folder_within_their_rounding() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let expected = small();
    let ldm = files::ldm();
    for (dtype, tolerance) in [
        (GgmlDType::F32, 0.0),
        (GgmlDType::F16, 0.0),
        (GgmlDType::BF16, 1.0 / 256.0),
        (GgmlDType::Q8_0, 0.01),
        (GgmlDType::Q5_1, 0.06),
        (GgmlDType::Q5_0, 0.06),
        (GgmlDType::Q4_1, 0.12),
        (GgmlDType::Q4_0, 0.12),
        (GgmlDType::Q6K, 0.03),
        (GgmlDType::Q5K, 0.06),
        (GgmlDType::Q4K, 0.12),
        (GgmlDType::Q3K, 0.25),
        (GgmlDType::Q2K, 0.5),
    ] {
        let stored = files::stored(&ldm, dtype);
        let of_type = stored.iter().filter(|tensor| tensor.code != 1).count();
        assert!(dtype == GgmlDType::F16 || of_type > 0, "{dtype:?} is not tried");
        files::write(&path, &files::gguf(&stored, &[]));
        let found = Checkpoint::open(&path).unwrap();
        assert_eq!(found.origin(), Origin::Gguf);
        assert_tensors(&found, &expected, tolerance);
        assert_eq!(networks(&found), networks(&expected));
        let types: Vec<_> = found.summary().components.into_iter().flat_map(|part| part.types).collect();
        let name = format!("{dtype:?}").replace('K', "_K");
        assert!(types.contains(&name), "{name} is not among {types:?}");
    }
}

#[test]
fn gguf_files_with_diffusers_names_and_metadata_are_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let expected = small();
    let architecture =
        [files::gguf_text("general.architecture"), 8u32.to_le_bytes().to_vec(), files::gguf_text("sd1")]
            .concat();
    let nested = [
        files::gguf_text("some.list"),
        9u32.to_le_bytes().to_vec(),
        8u32.to_le_bytes().to_vec(),
        2u64.to_le_bytes().to_vec(),
        files::gguf_text("a"),
        files::gguf_text("b"),
    ]
    .concat();
    let stored = files::stored(&files::prefixed(), GgmlDType::Q8_0);
    files::write(&path, &files::gguf(&stored, &[architecture, nested]));
    assert_tensors(&Checkpoint::open(&path).unwrap(), &expected, 0.01);
}

/// The UNet as ComfyUI's converter writes it: no prefix, convolutions flat, their shapes in the metadata.
fn comfy(dtype: GgmlDType) -> Vec<u8> {
    let mut metadata = Vec::new();
    let mut stored = Vec::new();
    for (name, tensor) in files::ldm() {
        let Some(name) = name.strip_prefix("model.diffusion_model.") else { continue };
        let shape = tensor.dims();
        let flat = match shape {
            [outputs, inputs, height, width] => {
                metadata.push(files::original_shape(name, shape));
                vec![*outputs, inputs * height * width]
            }
            shape => shape.to_vec(),
        };
        stored.push(files::store(name, &tensor, &flat, dtype));
    }
    files::gguf(&stored, &metadata)
}

#[test]
fn a_gguf_of_comfy_ui_is_a_unet_with_its_old_shapes() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("unet.gguf");
    files::write(&path, &comfy(GgmlDType::Q8_0));
    let mut found = Checkpoint::open(&path).unwrap();
    let missing = format!("{:#}", found.check_complete().unwrap_err());
    assert!(missing.contains("--vae") && missing.contains("--text-encoder"), "{missing}");
    found.replace(pochade::checkpoint::Replaceable::Vae, &data("small").join("vae")).unwrap();
    found.replace(pochade::checkpoint::Replaceable::TextEncoder, &data("small")).unwrap();
    found.check_complete().unwrap();
    assert_tensors(&found, &small(), 0.01);
}

/// The picture's pixels, from the command line.
#[track_caller]
fn pixels(sandbox: &Sandbox, args: &[&str]) -> Vec<u8> {
    let settings =
        ["-q", "a red apple", "-s", "1", "--steps", "2", "--size", "64x64", "-o", "out.png", "--force"];
    sandbox.run(&[&settings[..], args].concat()).done();
    image::open(sandbox.join("out.png")).unwrap().into_rgb8().into_raw()
}

#[test]
fn every_form_draws_the_same_picture_and_converts() {
    let sandbox = Sandbox::new();
    let small = data("small").to_str().unwrap().to_owned();
    files::save(&files::ldm(), &sandbox.join("ldm.safetensors"));
    files::write(&sandbox.join("f16.gguf"), &files::gguf(&files::stored(&files::ldm(), GgmlDType::F16), &[]));
    files::write(&sandbox.join("unet.gguf"), &comfy(GgmlDType::F16));
    let expected = pixels(&sandbox, &["-m", &small]);
    assert_eq!(pixels(&sandbox, &["-m", "ldm.safetensors"]), expected);
    assert_eq!(pixels(&sandbox, &["-m", "f16.gguf"]), expected);
    let parts = ["--vae", &small, "--text-encoder", &small];
    assert_eq!(pixels(&sandbox, &[&["-m", "unet.gguf"][..], &parts].concat()), expected);
    for source in ["ldm.safetensors", "f16.gguf"] {
        sandbox.run(&["convert", source, "native.safetensors", "--force"]).done();
        assert_eq!(pixels(&sandbox, &["-m", "native.safetensors"]), expected);
    }
    sandbox.run(&["convert", "ldm.safetensors", "folder", "--format", "diffusers"]).done();
    assert_eq!(pixels(&sandbox, &["-m", "folder"]), expected);
    sandbox.run(&["quantize", "f16.gguf", "int8.safetensors"]).done();
    sandbox.run(&["quantize", &small, "of-folder.safetensors"]).done();
    assert_eq!(
        pixels(&sandbox, &["-m", "int8.safetensors"]),
        pixels(&sandbox, &["-m", "of-folder.safetensors"])
    );

    let info = sandbox.run(&["info", "f16.gguf", "--json"]);
    let info: Value = serde_json::from_str(info.done()).unwrap();
    assert_eq!((&info["kind"], &info["components"][1]["name"]), (&json!("GGUF file"), &json!("unet")));
    assert!(sandbox.run(&["info", "ldm.safetensors"]).done().contains("LDM file"));
    assert!(sandbox.run(&["info", Path::new("unet.gguf").to_str().unwrap()]).done().contains("none"));
}
