//! Model files as people have them: types, shards, missing configs, and what is refused by name.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::DType;
use pochade::checkpoint::{Checkpoint, FloatType, Storage};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::comparison::{assert_identical, distance};
use crate::support::model_files::copy_small;
use crate::support::models::{data, load_tensors, small};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// A copy of the small checkpoint that may be changed.
fn copy() -> TempDir {
    let folder = TempDir::new().unwrap();
    copy_small(folder.path());
    folder
}

fn edit_config(folder: &TempDir, path: &str, key: &str, value: Value) {
    let path = folder.path().join(path);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

/// The whole chain of causes, as the command line prints it.
fn refusal(path: &Path) -> String {
    match Checkpoint::open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn every_float_type_reads_alike() {
    let expected = small();
    let name = "unet.mid_block.resnets.0.conv1.weight";
    let shape = expected.tensors().view(name).unwrap().shape.to_vec();
    let expected = expected.tensors().f32(name, &shape).unwrap();
    for (dtype, tolerance) in [(DType::F32, 0.0), (DType::F64, 0.0), (DType::BF16, 1.0 / 256.0)] {
        let folder = copy();
        let path = folder.path().join(UNET);
        let converted: HashMap<_, _> = load_tensors(&path)
            .into_iter()
            .map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap()))
            .collect();
        candle_core::safetensors::save(&converted, &path).unwrap();
        let found = Checkpoint::open(folder.path()).unwrap().tensors().f32(name, &shape).unwrap();
        distance(&found, &expected);
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() <= tolerance * b.abs(), "{dtype:?}: {a} {b}");
        }
    }
}

#[test]
fn shards_are_found_through_their_index() {
    let folder = copy();
    let whole = folder.path().join(UNET);
    let mut names: Vec<_> = load_tensors(&whole).into_iter().collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let rest = names.split_off(names.len() / 3);
    let mut weight_map = serde_json::Map::new();
    for (shard, part) in [("part-1.safetensors", names), ("part-2.safetensors", rest)] {
        weight_map.extend(part.iter().map(|(name, _)| (name.clone(), json!(shard))));
        candle_core::safetensors::save(&part.into_iter().collect(), folder.path().join("unet").join(shard))
            .unwrap();
    }
    let index = folder.path().join("unet/diffusion_pytorch_model.safetensors.index.json");
    fs::write(&index, json!({ "weight_map": weight_map }).to_string()).unwrap();
    let expected: Vec<_> = small().tensors().names().map(str::to_owned).collect();
    fs::remove_file(&whole).unwrap();
    let found = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(found.tensors().names().collect::<Vec<_>>(), expected);

    fs::remove_file(folder.path().join("unet/part-2.safetensors")).unwrap();
    assert!(refusal(folder.path()).contains("part-2.safetensors"));
    fs::write(&index, json!({ "weight_map": { "conv_in.weight": "../../elsewhere" } }).to_string()).unwrap();
    assert!(refusal(folder.path()).contains("not a plain file name"));
}

#[test]
fn a_missing_config_is_sd15s() {
    let folder = copy();
    fs::remove_file(folder.path().join("unet/config.json")).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.configs().unet["cross_attention_dim"], 768);
    assert_eq!(checkpoint.defaults().width, 512);
}

#[test]
fn the_native_file_holds_the_same_model() {
    let folder = TempDir::new().unwrap();
    let source = small();
    for floats in [FloatType::F16, FloatType::F32] {
        let path = folder.path().join("native.safetensors");
        source.write_native(&path, Storage::Float(floats)).unwrap();
        let native = Checkpoint::open(&path).unwrap();
        assert_eq!(native.defaults(), source.defaults());
        assert_eq!(native.vocabulary(), source.vocabulary());
        for name in source.tensors().names() {
            let shape = source.tensors().view(name).unwrap().shape;
            let [found, expected] = [&native, &source].map(|model| model.tensors().f32(name, shape).unwrap());
            assert_identical(&found, &expected, name);
        }
    }
}

#[test]
fn what_is_no_model_is_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    assert!(refusal(&folder.path().join("absent")).contains("absent"));
    assert!(refusal(folder.path()).contains("no diffusers folder"));
    assert!(refusal(&file("model.gguf", b"GGUF\x03\0\0\0")).contains("cut short"));
    assert!(refusal(&file("empty.safetensors", b"")).contains("empty.safetensors"));
    assert!(refusal(&file("noise.safetensors", &[0xff; 64])).contains("damaged"));

    let whole = fs::read(data("small").join(UNET)).unwrap();
    let cut = copy();
    fs::write(cut.path().join(UNET), &whole[..whole.len() - 1]).unwrap();
    let said = refusal(cut.path());
    assert!(said.contains("diffusion_pytorch_model.safetensors") && said.contains("cut short"), "{said}");
}

#[test]
fn configs_that_can_not_be_followed_are_refused() {
    use pochade::networks::config::{ClipConfig, UnetConfig, VaeConfig};

    let refused = |path: &str, key: &str, value: Value| {
        let folder = copy();
        edit_config(&folder, path, key, value);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let configs = checkpoint.configs();
        let error = match path.split('/').next().unwrap() {
            "unet" => UnetConfig::parse(&configs.unet).map(|_| ()),
            "vae" => VaeConfig::parse(&configs.vae).map(|_| ()),
            _ => ClipConfig::parse(&configs.text_encoder).map(|_| ()),
        };
        format!("{:#}", error.unwrap_err())
    };
    for (path, key, value, expected) in [
        ("unet/config.json", "class_embed_type", json!("timestep"), "class_embed_type"),
        ("unet/config.json", "down_block_types", json!(["DownBlock2D"]), "1 down"),
        ("unet/config.json", "block_out_channels", json!([32, 64, 64, 65]), "65 channels"),
        ("unet/config.json", "block_out_channels", json!([]), "0 levels"),
        ("unet/config.json", "attention_head_dim", json!([8, 8]), "attention_head_dim"),
        ("unet/config.json", "attention_head_dim", json!(0), "0 heads"),
        ("unet/config.json", "layers_per_block", json!(1u64 << 60), "layers_per_block"),
        ("unet/config.json", "cross_attention_dim", json!(1u64 << 60), "channels"),
        ("unet/config.json", "act_fn", json!("mish"), "mish"),
        ("vae/config.json", "_class_name", json!("VQModel"), "VQModel"),
        ("vae/config.json", "scaling_factor", json!(0.0), "scaling_factor"),
        ("vae/config.json", "norm_num_groups", json!(0), "0 groups"),
        (
            "vae/config.json",
            "down_block_types",
            json!(vec!["AttnDownEncoderBlock2D"; 4]),
            "'AttnDownEncoderBlock2D'",
        ),
        ("vae/config.json", "up_block_types", json!(["UpDecoderBlock2D"]), "1 blocks"),
        ("text_encoder/config.json", "hidden_act", json!("gelu_new"), "gelu_new"),
        ("text_encoder/config.json", "layer_norm_eps", json!(0.0), "layer_norm_eps"),
        ("text_encoder/config.json", "num_attention_heads", json!(7), "7 heads"),
        ("text_encoder/config.json", "vocab_size", json!("many"), "text encoder config"),
    ] {
        let said = refused(path, key, value);
        assert!(said.contains(expected), "{path} {key}: {said}");
    }
}
