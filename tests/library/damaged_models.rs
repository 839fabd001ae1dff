//! Model files cut, altered or of another purpose: one line names what is wrong, and nothing large is allocated.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use pochade::checkpoint::{FloatType, Storage, check_header};
use serde_json::json;

use crate::support::model_files as files;
use crate::support::models::{load_tensors, small};
use crate::support::sandbox::Sandbox;

/// Asserts that a run with `model` ends with one line that says each of `parts`, and code 3.
#[track_caller]
fn refused(sandbox: &Sandbox, model: &str, parts: &[&str]) {
    let args = ["-m", model, "x", "-s", "1", "--steps", "1", "--size", "64x64", "-o", "out.png", "-q"];
    let left = sandbox.run(&args);
    left.refused(3, parts);
    let lines: Vec<&str> = left.stderr.trim_end().lines().filter(|line| !line.contains("hint: ")).collect();
    assert_eq!(lines.len(), 1, "{}", left.stderr);
    assert!(!left.stderr.contains("panicked"));
    assert!(!sandbox.join("out.png").exists());
}

/// A safetensors file with the header changed by `edit`; the data stays.
fn edit_header(file: &[u8], edit: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&file[8..8 + length]).unwrap();
    edit(&mut header);
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &file[8 + length..]].concat()
}

const LDM_CONV: &str = "model.diffusion_model.middle_block.0.in_layers.2.weight";
const CONV: &str = "mid_block.resnets.0.conv1.weight";

/// One defect of each sort in the safetensors file at `path`, whose tensor `stored` a message calls `named`.
#[track_caller]
fn try_safetensors(sandbox: &Sandbox, model: &str, path: &Path, stored: &str, named: &str) {
    let whole = fs::read(path).unwrap();
    let file = path.file_name().unwrap().to_str().unwrap();
    fs::write(path, &whole[..whole.len() - 1]).unwrap();
    refused(sandbox, model, &[file, "cut short"]);
    // The same values in another shape.
    let reshaped = edit_header(&whole, |header| header[stored]["shape"] = json!([64 * 9, 64, 1, 1]));
    fs::write(path, reshaped).unwrap();
    refused(sandbox, model, &[named, "shape"]);
    let renamed = edit_header(&whole, |header| {
        let info = header[stored].take();
        header.as_object_mut().unwrap().remove(stored);
        header["something.else"] = info;
    });
    fs::write(path, renamed).unwrap();
    refused(sandbox, model, &[named, "missing"]);
    for (dtype, said) in [("I16", "I16"), ("X16", "header")] {
        let retyped = edit_header(&whole, |header| header[stored]["dtype"] = json!(dtype));
        fs::write(path, retyped).unwrap();
        refused(sandbox, model, &[said]);
    }
    fs::write(path, whole).unwrap();
}

#[test]
fn a_damaged_ldm_file_is_refused() {
    let sandbox = Sandbox::new();
    let path = sandbox.join("ldm.safetensors");
    files::save(&files::ldm(), &path);
    try_safetensors(&sandbox, "ldm.safetensors", &path, LDM_CONV, &format!("unet.{CONV}"));
}

#[test]
fn a_damaged_native_file_is_refused() {
    let sandbox = Sandbox::new();
    let path = sandbox.join("native.safetensors");
    small().write_native(&path, Storage::Float(FloatType::F16)).unwrap();
    let name = format!("unet.{CONV}");
    try_safetensors(&sandbox, "native.safetensors", &path, &name, &name);
}

#[test]
fn a_damaged_folder_is_refused() {
    let sandbox = Sandbox::new();
    files::copy_small(sandbox.path());
    let path = sandbox.join("unet/diffusion_pytorch_model.safetensors");
    try_safetensors(&sandbox, ".", &path, CONV, &format!("unet.{CONV}"));
    fs::write(sandbox.join("model_index.json"), r#"{"_class_name": "StableDiffusionXLPipeline"}"#).unwrap();
    refused(&sandbox, ".", &["Stable Diffusion XL"]);
}

/// Asserts how the small model is refused when the first bias of a network is made of `value`.
#[track_caller]
fn try_biases(value: f32, code: i32, parts: &[&str]) {
    for (part, name) in [("unet", "conv_in.bias"), ("vae", "decoder.conv_in.bias")] {
        let sandbox = Sandbox::new();
        files::copy_small(sandbox.path());
        let path = sandbox.join(part).join("diffusion_pytorch_model.safetensors");
        let mut tensors = load_tensors(&path);
        let values = vec![value; tensors[name].elem_count()];
        tensors.insert(name.to_owned(), Tensor::new(values, &Device::Cpu).unwrap());
        candle_core::safetensors::save(&tensors, &path).unwrap();
        for precision in ["f32", "int8"] {
            let args =
                ["-m", ".", "x", "-s", "1", "--steps", "1", "--size", "64x64", "--precision", precision];
            sandbox.run(&[&args[..], &["-q", "-o", "out.png"]].concat()).refused(code, parts);
            assert!(!sandbox.join("out.png").exists(), "{part} in {precision}");
        }
    }
}

/// Float weights, which no layer's rounding looks at.
#[test]
fn a_model_that_holds_nan_draws_nothing() {
    try_biases(f32::NAN, 3, &["conv_in.bias", "infinite or NaN"]);
}

#[test]
fn a_model_that_computes_nan_draws_nothing() {
    try_biases(f32::MAX, 1, &["NaN or infinity in"]);
}

#[test]
fn a_damaged_gguf_file_is_refused() {
    let sandbox = Sandbox::new();
    let stored = || files::stored(&files::ldm(), GgmlDType::Q8_0);
    let write = |tensors: &[files::Stored]| {
        let bytes = files::gguf(tensors, &[]);
        fs::write(sandbox.join("model.gguf"), &bytes).unwrap();
        bytes
    };
    let at = |tensors: &[files::Stored]| tensors.iter().position(|tensor| tensor.name == LDM_CONV).unwrap();
    let named = format!("unet.{CONV}");

    let whole = write(&stored());
    let last = stored().last().unwrap().bytes.len();
    let padding = last.next_multiple_of(32) - last;
    fs::write(sandbox.join("model.gguf"), &whole[..whole.len() - padding - 1]).unwrap();
    refused(&sandbox, "model.gguf", &["model.gguf", "cut short"]);
    let mut tensors = stored();
    let index = at(&tensors);
    tensors[index].shape = vec![64 * 9, 64, 1, 1];
    write(&tensors);
    refused(&sandbox, "model.gguf", &[&named, "shape"]);
    tensors.remove(index);
    write(&tensors);
    refused(&sandbox, "model.gguf", &[&named, "missing"]);
    for (code, said) in [(99, "unknown type 99"), (20, "IQ type")] {
        let mut tensors = stored();
        tensors[index].code = code;
        write(&tensors);
        refused(&sandbox, "model.gguf", &[LDM_CONV, said]);
    }
}

#[test]
fn files_of_other_purposes_are_named() {
    let sandbox = Sandbox::new();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F16, &Device::Cpu).unwrap();
    let attention = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
    let tables: [(&str, &[usize], &str); 15] = [
        ("lora_unet_down_blocks_0.lora_up.weight", &[4, 4], "--lora"),
        ("emb_params", &[1, 768], "textual inversion"),
        ("conditioner.embedders.0.transformer.x", &[1], "Stable Diffusion XL"),
        (attention, &[320, 1024], "Stable Diffusion 2"),
        (attention, &[640, 2048], "Stable Diffusion XL"),
        ("cond_stage_model.model.ln_final.weight", &[1024], "Stable Diffusion 2"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", &[4, 4], "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", &[4, 4], "Flux"),
        ("model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight", &[4], "Video"),
        ("controlnet_cond_embedding.conv_in.weight", &[16, 3, 3, 3], "ControlNet"),
        ("decoder.conv_in.weight", &[512, 4, 3, 3], "--vae"),
        ("decoder.conv_in.weight", &[512, 16, 3, 3], "16 latent channels"),
        ("decoder.layers.0.weight", &[64, 4, 3, 3], "--taesd"),
        ("text_model.embeddings.token_embedding.weight", &[49408, 8], "--text-encoder"),
        ("some.weight", &[1], "no model pochade knows"),
    ];
    for (name, shape, said) in tables {
        let tensors = BTreeMap::from([(name.to_owned(), zeros(shape))]);
        files::save(&tensors, &sandbox.join("file.safetensors"));
        refused(&sandbox, "file.safetensors", &["file.safetensors", said]);
    }
    for (bytes, said) in [
        (&b""[..], "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 4\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"PK\x03\x04archive/data.pkl", "pickle"),
        (b"\x80\x02}q\x00.", "safetensors.torch"),
        (b"hello\n", "text file"),
        (b"\x01\x02\x03", "damaged"),
    ] {
        sandbox.write("file.safetensors", bytes);
        refused(&sandbox, "file.safetensors", &["file.safetensors", said]);
    }
}

/// A safetensors file of no data with one tensor.
fn claim(shape: &str, offsets: &str) -> Vec<u8> {
    let header = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 64]].concat()
}

/// A GGUF file with one tensor that its header describes wrongly.
fn lie(dimensions: &[u64], code: u32, offset: u64) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend(1u64.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend(files::gguf_text("a"));
    file.extend((dimensions.len() as u32).to_le_bytes());
    file.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
    file.extend(code.to_le_bytes());
    file.extend(offset.to_le_bytes());
    file.resize(1024, 0);
    file
}

fn counts(tensors: u64, entries: u64, rest: &[u8]) -> Vec<u8> {
    [b"GGUF\x03\0\0\0", &tensors.to_le_bytes()[..], &entries.to_le_bytes(), rest].concat()
}

#[test]
fn headers_that_lie_are_refused_without_an_allocation() {
    let nested = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let nested = [&(nested.len() as u64).to_le_bytes(), nested.as_slice()].concat();
    let deep: Vec<u8> = [
        files::gguf_text("k"),
        [9u32.to_le_bytes(), 9u32.to_le_bytes()].concat(),
        vec![1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0],
    ]
    .concat();
    let deep = [deep, [1u64.to_le_bytes().as_slice(), &9u32.to_le_bytes()].concat().repeat(50)].concat();
    let overlapping = {
        let mut tensors = files::gguf(
            &["a", "b"].map(|name| files::Stored {
                name: name.to_owned(),
                shape: vec![16],
                code: 0,
                bytes: vec![0; 64],
            }),
            &[],
        );
        // The offset of the second is the last eight bytes of the header: 24 for the start, 33 for each tensor.
        let at = 24 + 2 * 33 - 8;
        tensors[at..at + 8].fill(0);
        tensors
    };
    for (file, said) in [
        (claim("[1152921504606846976]", "[0,64]"), "header"),
        (claim("[4294967296,4294967296,4294967296]", "[0,64]"), "header"),
        (claim("[16]", "[64,0]"), "header"),
        (claim("[16]", "[0,18446744073709551615]"), "header"),
        (claim("[8]", "[32,64]"), "header"),
        (vec![0xff; 64], "header"),
        ([&[64, 0, 0, 0, 0, 0, 0, 0][..], b"{}"].concat(), "header"),
        (nested, "header"),
        (lie(&[1 << 60], 0, 0), "'a'"),
        (lie(&[1 << 32, 1 << 32, 1 << 32], 0, 0), "'a'"),
        (lie(&[1 << 30, 1 << 33], 2, 0), "'a'"),
        (lie(&[16], 0, 1 << 63), "'a'"),
        (lie(&[16], 0, u64::MAX - 31), "'a'"),
        (lie(&[16], 0, 960), "'a'"),
        (lie(&[16], 0, 4), "'a'"),
        (lie(&[16], 2, 0), "blocks of 32"),
        (lie(&[1, 1, 1, 1, 1], 0, 0), "5 dimensions"),
        (counts(u64::MAX, 0, &[]), "tensors"),
        (counts(1 << 60, 0, &[0; 1000]), "tensors"),
        (counts(0, 1 << 60, &[0; 1000]), "metadata"),
        (counts(0, 1, &[0xff; 1000]), "text"),
        (counts(0, 1, &deep), "'k'"),
        (b"GGUF\x01\0\0\0".to_vec(), "version 1"),
        (b"GGUF\0\0\0\x03".to_vec(), "big-endian"),
        (b"GGUF\x03\0\0\0\x01".to_vec(), "cut short"),
        (overlapping, "overlap"),
    ] {
        let error = format!("{:#}", check_header(&file).unwrap_err());
        assert!(error.contains(said), "no '{said}' in '{error}'");
    }
}

#[test]
fn every_cut_and_every_changed_byte_of_a_header_is_survived() {
    let tensors: BTreeMap<String, Tensor> = ["a", "b"]
        .iter()
        .map(|name| ((*name).to_owned(), Tensor::ones(32, DType::F16, &Device::Cpu).unwrap()))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    files::save(&tensors, &folder.path().join("file"));
    let safetensors = fs::read(folder.path().join("file")).unwrap();
    let gguf = files::gguf(&files::stored(&tensors, GgmlDType::Q8_0), &[files::original_shape("a", &[4, 8])]);
    for file in [safetensors, gguf] {
        assert_eq!(check_header(&file).unwrap(), 2);
        for length in 0..file.len() - 32 {
            // What is left out may be padding only.
            let _ = check_header(&file[..length]);
        }
        for at in 0..file.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = file.clone();
                changed[at] = value;
                let _ = check_header(&changed);
            }
        }
    }
}
