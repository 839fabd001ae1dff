//! LoRAs, LoHas and LoKrs: diffusers' pictures, each kind's formula computed plainly, int8 models, and what is refused.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use pochade::checkpoint::lora::{Adapter, Merge, Summary};
use pochade::checkpoint::{Checkpoint, Storage, TensorSet};
use pochade::quantize::{Policy, QuantizedWeight, Weight, sqnr};
use pochade::request::{Draft, Precision, Request};
use tempfile::TempDir;

use crate::support::comparison::{Numbers, assert_close, assert_identical, distance};
use crate::support::models::{
    Listener, data, generate, load_tensors, open, pipeline, reference, reference_draft, resolve, small,
};
use crate::support::sandbox::Sandbox;

/// The request of the references.
fn request(lora: &[&str]) -> Request {
    let lora = lora.iter().map(|lora| format!("{}/{lora}", data("reference").display()).parse().unwrap());
    resolve(Draft { lora: Some(lora.collect()), ..reference_draft() }, &small())
}

#[test]
fn both_spellings_draw_what_diffusers_draws() {
    let checkpoint = small();
    let model = open(&checkpoint, Precision::F32);
    let mut pipeline = pipeline(&model);
    let plain = generate(&mut pipeline, &request(&[]));
    let expected = &reference("lora.safetensors")["final"];
    // One pipeline, so that each change of adapters reloads the networks; two halves add up to one whole.
    for (loras, layers) in [
        (&["lora_peft.safetensors:0.8"][..], 144),
        (&["lora_kohya.safetensors:0.8"], 144),
        (&["lora_kohya.safetensors:0.5", "lora_peft.safetensors:0.3"], 144),
    ] {
        let mut listener = Listener::default();
        let picture = pipeline.generate(&request(loras), &mut listener).unwrap();
        assert_close(&picture.latents, expected, 2e-3, format_args!("final latents of {loras:?}"));
        assert_eq!(listener.0.len(), loras.len(), "{:?}", listener.0);
        let said = format!("merged into {layers} layers");
        assert!(listener.0.iter().all(|message| message.ends_with(&said)), "{:?}", listener.0);
        assert_eq!(picture.files.len(), loras.len());
    }
    let again = generate(&mut pipeline, &request(&[]));
    assert_identical(&again.latents, &plain.latents, "the latents without an adapter");
}

/// A matrix or core of made-up numbers, of any rank.
struct Factor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Factor {
    fn new(seed: usize, shape: &[usize]) -> Self {
        let count = shape.iter().product();
        let value = |at: usize| ((at * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5;
        Self { shape: shape.to_vec(), values: (0..count).map(value).collect() }
    }

    fn tensor(&self) -> Tensor {
        Tensor::from_vec(self.values.clone(), self.shape.as_slice(), &Device::Cpu).unwrap()
    }

    /// The value at a row and a column, all dimensions after the first as one.
    fn at(&self, row: usize, column: usize) -> f32 {
        self.values[row * (self.values.len() / self.shape[0]) + column]
    }
}

/// `sum over r of a[o, r] b[r, c]`.
fn product(a: &Factor, b: &Factor, o: usize, c: usize) -> f32 {
    (0..b.shape[0]).map(|r| a.at(o, r) * b.at(r, c)).sum()
}

/// `sum over n, m of core[n, m, k] a[n, o] b[m, i]`.
fn tucker(core: &Factor, a: &Factor, b: &Factor, o: usize, i: usize, k: usize) -> f32 {
    let (n, m, taps) = (core.shape[0], core.shape[1], core.shape[2] * core.shape[3]);
    let terms = (0..n).flat_map(|n| (0..m).map(move |m| (n, m)));
    terms.map(|(n, m)| core.at(n, m * taps + k) * a.at(n, o) * b.at(m, i)).sum()
}

fn save(folder: &TempDir, tensors: Vec<(String, Tensor)>) -> PathBuf {
    let path = folder.path().join("adapter.safetensors");
    candle_core::safetensors::save(&tensors.into_iter().collect(), &path).unwrap();
    path
}

fn merged(tensors: &TensorSet, path: &Path, weight: f64) -> (TensorSet, Summary) {
    let mut merge = Merge::default();
    let summary = merge.add(Arc::new(Adapter::open(path).unwrap()), weight, tensors).unwrap();
    (tensors.merged(merge), summary)
}

fn alpha(value: f32) -> Tensor {
    Tensor::new(value, &Device::Cpu).unwrap()
}

/// Compares what the factors under `stem` add to the layer `name` with a plain formula of output and column.
#[track_caller]
fn adds(stem: &str, name: &str, factors: Vec<(&str, Tensor)>, delta: impl Fn(usize, usize) -> f32) {
    let checkpoint = small();
    let tensors = checkpoint.tensors();
    let shape = tensors.view(name).unwrap().shape.to_vec();
    let before = tensors.f32(name, &shape).unwrap();
    let folder = TempDir::new().unwrap();
    let factors = factors.into_iter().map(|(role, tensor)| (format!("{stem}{role}"), tensor));
    let (merged, summary) = merged(tensors, &save(&folder, factors.collect()), 0.7);
    assert_eq!(summary, Summary { matched: 1, unmatched: vec![] });
    let columns = before.len() / shape[0];
    let expected: Vec<f32> = before
        .iter()
        .enumerate()
        .map(|(at, before)| before + 0.7 * delta(at / columns, at % columns))
        .collect();
    assert_close(&merged.f32(name, &shape).unwrap(), &expected, 1e-5, name);
    assert!(distance(&before, &expected).relative() > 1e-3, "{name} was not changed");
}

const LINEAR: &str = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.weight";
const CONV: &str = "unet.up_blocks.1.resnets.0.conv1.weight";

#[test]
fn lora_of_linear_layers_in_every_spelling() {
    let (up, down) = (Factor::new(1, &[64, 4]), Factor::new(2, &[4, 64]));
    let block = "mid_block.attentions.0.transformer_blocks.0.attn1";
    for (stem, a, b) in [
        (
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0",
            ".lora_up.weight",
            ".lora_down.weight",
        ),
        (
            "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_out_0",
            ".lora_up.weight",
            ".lora_down.weight",
        ),
        (&format!("unet.{block}.to_out.0"), ".lora_B.weight", ".lora_A.weight"),
        (&format!("base_model.model.{block}.to_out.0"), ".lora_B.weight", ".lora_A.weight"),
        (&format!("unet.{block}.to_out.0"), ".lora_B.default.weight", ".lora_A.default.weight"),
        (&format!("unet.{block}.processor.to_out"), "_lora.up.weight", "_lora.down.weight"),
        (&format!("{block}.processor.to_out"), "_lora.up.weight", "_lora.down.weight"),
        (&format!("unet.{block}.to_out.0"), ".lora.up.weight", ".lora.down.weight"),
    ] {
        let factors = vec![(a, up.tensor()), (b, down.tensor()), (".alpha", alpha(2.0))];
        adds(stem, LINEAR, factors, |o, c| 0.5 * product(&up, &down, o, c));
        // Without alpha the scale is 1.
        adds(stem, LINEAR, vec![(a, up.tensor()), (b, down.tensor())], |o, c| product(&up, &down, o, c));
    }
    let text = "text_encoder.encoder.layers.1.self_attn.v_proj.weight";
    for stem in [
        "text_encoder.text_model.encoder.layers.1.self_attn.to_v",
        "lora_te_text_model_encoder_layers_1_self_attn_v_proj",
    ] {
        let factors = vec![
            (".lora_linear_layer.up.weight", up.tensor()),
            (".lora_linear_layer.down.weight", down.tensor()),
        ];
        adds(stem, text, factors, |o, c| product(&up, &down, o, c));
    }
}

#[test]
fn convolutions_and_tucker_cores() {
    let checkpoint = small();
    let shape = checkpoint.tensors().view(CONV).unwrap().shape.to_vec();
    let (out, inputs) = (shape[0], shape[1]);
    for stem in ["lora_unet_up_blocks_1_resnets_0_conv1", "lora_unet_output_blocks_3_0_in_layers_2"] {
        let (up, down) = (Factor::new(3, &[out, 4, 1, 1]), Factor::new(4, &[4, inputs, 3, 3]));
        let factors = vec![
            (".lora_up.weight", up.tensor()),
            (".lora_down.weight", down.tensor()),
            (".alpha", alpha(1.0)),
        ];
        adds(stem, CONV, factors, |o, c| 0.25 * product(&up, &down, o, c));

        let (up, down, mid) = (
            Factor::new(3, &[out, 3, 1, 1]),
            Factor::new(4, &[5, inputs, 1, 1]),
            Factor::new(5, &[3, 5, 3, 3]),
        );
        let factors = vec![
            (".lora_up.weight", up.tensor()),
            (".lora_down.weight", down.tensor()),
            (".lora_mid.weight", mid.tensor()),
        ];
        let transposed = transpose(&up);
        adds(stem, CONV, factors, |o, c| tucker(&mid, &transposed, &down, o, c / 9, c % 9));
    }
}

fn transpose(factor: &Factor) -> Factor {
    let (rows, columns) = (factor.shape[0], factor.shape[1]);
    let values = (0..rows * columns).map(|at| factor.at(at % rows, at / rows)).collect();
    Factor { shape: vec![columns, rows], values }
}

#[test]
fn loha() {
    let [a1, a2] = [6, 7].map(|seed| Factor::new(seed, &[64, 4]));
    let [b1, b2] = [8, 9].map(|seed| Factor::new(seed, &[4, 64]));
    let factors = vec![
        (".hada_w1_a", a1.tensor()),
        (".hada_w1_b", b1.tensor()),
        (".hada_w2_a", a2.tensor()),
        (".hada_w2_b", b2.tensor()),
        (".alpha", alpha(2.0)),
    ];
    let stem = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_out_0";
    adds(stem, LINEAR, factors, |o, c| 0.5 * product(&a1, &b1, o, c) * product(&a2, &b2, o, c));

    let shape = small().tensors().view(CONV).unwrap().shape.to_vec();
    let [a1, a2] = [6, 7].map(|seed| Factor::new(seed, &[4, shape[0]]));
    let [b1, b2] = [8, 9].map(|seed| Factor::new(seed, &[4, shape[1]]));
    let [t1, t2] = [10, 11].map(|seed| Factor::new(seed, &[4, 4, 3, 3]));
    let factors = vec![
        (".hada_t1", t1.tensor()),
        (".hada_w1_a", a1.tensor()),
        (".hada_w1_b", b1.tensor()),
        (".hada_t2", t2.tensor()),
        (".hada_w2_a", a2.tensor()),
        (".hada_w2_b", b2.tensor()),
    ];
    adds("lora_unet_up_blocks_1_resnets_0_conv1", CONV, factors, |o, c| {
        tucker(&t1, &a1, &b1, o, c / 9, c % 9) * tucker(&t2, &a2, &b2, o, c / 9, c % 9)
    });
}

#[test]
fn lokr() {
    // Rows 4 * 16, columns 8 * 8.
    let (w1, w2) = (Factor::new(12, &[4, 8]), Factor::new(13, &[16, 8]));
    let kron =
        |o: usize, c: usize, first: &dyn Fn(usize, usize) -> f32, second: &dyn Fn(usize, usize) -> f32| {
            first(o / 16, c / 8) * second(o % 16, c % 8)
        };
    let stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0";
    // Of two whole matrices, alpha says nothing.
    let factors =
        vec![(".lokr_w1", w1.tensor()), (".lokr_w2", w2.tensor()), (".alpha", alpha(1e10_f32.min(6e4)))];
    adds(stem, LINEAR, factors, |o, c| kron(o, c, &|r, c| w1.at(r, c), &|r, c| w2.at(r, c)));

    let (a1, b1) = (Factor::new(14, &[4, 2]), Factor::new(15, &[2, 8]));
    let (a2, b2) = (Factor::new(16, &[16, 2]), Factor::new(17, &[2, 8]));
    let factors = vec![
        (".lokr_w1_a", a1.tensor()),
        (".lokr_w1_b", b1.tensor()),
        (".lokr_w2_a", a2.tensor()),
        (".lokr_w2_b", b2.tensor()),
        (".alpha", alpha(1.0)),
    ];
    adds(stem, LINEAR, factors, |o, c| {
        0.5 * kron(o, c, &|r, c| product(&a1, &b1, r, c), &|r, c| product(&a2, &b2, r, c))
    });

    let shape = small().tensors().view(CONV).unwrap().shape.to_vec();
    let (out, inputs) = (shape[0] / 4, shape[1] / 8);
    let (a2, b2, t2) =
        (Factor::new(18, &[3, out]), Factor::new(19, &[5, inputs]), Factor::new(20, &[3, 5, 3, 3]));
    let factors = vec![
        (".lokr_w1", w1.tensor()),
        (".lokr_w2_a", a2.tensor()),
        (".lokr_w2_b", b2.tensor()),
        (".lokr_t2", t2.tensor()),
    ];
    adds("lora_unet_up_blocks_1_resnets_0_conv1", CONV, factors, |o, c| {
        let (i, k) = (c / 9, c % 9);
        w1.at(o / out, i / inputs) * tucker(&t2, &a2, &b2, o % out, i % inputs, k)
    });
    let w2 = Factor::new(21, &[out, inputs, 3, 3]);
    let factors = vec![(".lokr_w1", w1.tensor()), (".lokr_w2", w2.tensor())];
    adds("lora_unet_up_blocks_1_resnets_0_conv1", CONV, factors, |o, c| {
        let (i, k) = (c / 9, c % 9);
        w1.at(o / out, i / inputs) * w2.at(o % out, (i % inputs) * 9 + k)
    });
}

#[test]
fn lycoris_makes_the_same_of_the_same_factors() {
    let path = data("reference/lycoris.safetensors");
    let adapter = Adapter::open(&path).unwrap();
    let tensors = load_tensors(&path);
    assert_eq!(adapter.stems().count(), 11);
    for stem in adapter.stems() {
        let expected = &tensors[&format!("{stem}.expected")];
        let delta = adapter.delta(stem, expected.dims()).unwrap();
        assert_close(&delta, &expected.values(), 1e-5, stem);
    }
}

#[test]
fn the_header_may_hold_alpha() {
    let scale = |settings: &str| {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("adapter.safetensors");
        let tensors = [("unet.x.lora_A.weight", [4, 1]), ("unet.x.lora_B.weight", [1, 4])];
        let tensors =
            tensors.map(|(key, shape)| (key, Tensor::ones(&shape, DType::F32, &Device::Cpu).unwrap()));
        let metadata = HashMap::from([("lora_adapter_metadata".to_owned(), settings.to_owned())]);
        safetensors::serialize_to_file(tensors, Some(metadata), &path).unwrap();
        // Four ones are summed, then scaled.
        Adapter::open(&path).and_then(|adapter| adapter.delta("unet.x", &[1, 1])).map(|delta| delta[0] / 4.0)
    };
    assert_eq!(scale(r#"{"unet.lora_alpha": 8, "unet.r": 4}"#).unwrap(), 2.0);
    assert_eq!(scale(r#"{"unet.lora_alpha": 8, "unet.use_rslora": true}"#).unwrap(), 4.0);
    assert_eq!(scale(r#"{"text_encoder.lora_alpha": 8}"#).unwrap(), 1.0);
    for wrong in
        ["{", r#"{"unet.lora_alpha": 1e30}"#, r#"{"unet.lora_alpha": 1, "unet.alpha_pattern": {"x": 2}}"#]
    {
        let message = format!("{:#}", scale(wrong).unwrap_err());
        assert!(message.contains("adapter.safetensors"), "{message}");
    }
}

#[test]
fn int8_layers_are_rounded_again_after_merging() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("int8.safetensors");
    let float = small();
    float.write_native(&path, Storage::Int8(&Policy::default())).unwrap();
    let int8 = Checkpoint::open(&path).unwrap();
    let lora = data("reference/lora_kohya.safetensors");
    let (float, _) = merged(float.tensors(), &lora, 0.8);
    let (onto_int8, summary) = merged(int8.tensors(), &lora, 0.8);
    assert_eq!(summary.matched, 144);
    let shape = int8.tensors().view(LINEAR).unwrap().shape.to_vec();
    let Weight::Int8(found) = onto_int8.weight(LINEAR, &shape).unwrap() else { panic!("it stays int8") };
    let exact = float.f32(LINEAR, &shape).unwrap();
    let once = QuantizedWeight::round(&exact, shape[0]).unwrap().dequantize();
    // Rounding twice costs little more than rounding once.
    let (once, twice) = (sqnr(&exact, &once), sqnr(&exact, &found.dequantize()));
    assert!(twice > 30.0 && twice > once - 4.0, "{once} dB once, {twice} dB twice");
    // What the adapter does not touch is the file's to the last bit.
    let untouched = "unet.mid_block.resnets.0.conv1.weight";
    let shape = int8.tensors().view(untouched).unwrap().shape.to_vec();
    assert_eq!(
        onto_int8.weight(untouched, &shape).unwrap(),
        int8.tensors().weight(untouched, &shape).unwrap()
    );
}

/// What opening and merging a file of these tensors says.
fn refusal(tensors: Vec<(&str, Tensor)>) -> String {
    let folder = TempDir::new().unwrap();
    let path = save(&folder, tensors.into_iter().map(|(key, tensor)| (key.to_owned(), tensor)).collect());
    let checkpoint = small();
    let merged = Adapter::open(&path)
        .and_then(|adapter| Merge::default().add(Arc::new(adapter), 1.0, checkpoint.tensors()));
    let message = format!("{:#}", merged.expect_err("a hostile file was merged"));
    assert!(message.contains("adapter.safetensors") && !message.contains('\n'), "{message}");
    message
}

#[test]
fn hostile_files_are_refused_by_file_and_key() {
    const UP: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight";
    const DOWN: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight";
    const ALPHA: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.alpha";
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let full = |value: f32, shape: &[usize]| Tensor::full(value, shape, &Device::Cpu).unwrap();
    for (tensors, parts) in [
        (vec![(UP, zeros(&[64, 4]))], &[UP, "lacks its other factor"][..]),
        (vec![(UP, zeros(&[64, 4])), (DOWN, zeros(&[5, 64]))], &[DOWN, "ranks differ"]),
        (vec![(UP, zeros(&[32, 4])), (DOWN, zeros(&[4, 64]))], &["32 x 64", "64 x 64"]),
        (vec![(UP, zeros(&[64, 0])), (DOWN, zeros(&[0, 64]))], &["is empty"]),
        (vec![(UP, zeros(&[64])), (DOWN, zeros(&[4, 64]))], &[UP, "a matrix is expected"]),
        (vec![(UP, zeros(&[64, 4])), (DOWN, full(f32::NAN, &[4, 64]))], &[DOWN, "NaN"]),
        (vec![(UP, full(1e9, &[64, 4])), (DOWN, zeros(&[4, 64]))], &[UP, "no trained adapter"]),
        (
            vec![(UP, zeros(&[64, 4])), (DOWN, zeros(&[4, 64])), (ALPHA, full(6e4, &[]))],
            &[ALPHA, "far too much for rank 4"],
        ),
        (vec![(UP, zeros(&[64, 4])), (DOWN, zeros(&[4, 64])), (ALPHA, zeros(&[2]))], &[ALPHA, "2 values"]),
        (
            vec![("lora_unet_nowhere.lora_up.weight", zeros(&[4, 4]))],
            &["none of its 1 keys", "lora_unet_nowhere"],
        ),
        (vec![("x.dora_scale", zeros(&[4]))], &["x.dora_scale", "DoRA"]),
        (
            vec![("unet.a.lora_B.weight", zeros(&[4, 4])), ("unet.a.lora.up.weight", zeros(&[4, 4]))],
            &["mean the same"],
        ),
    ] {
        let message = refusal(tensors);
        for part in parts {
            assert!(message.contains(part), "no '{part}' in {message}");
        }
    }
}

const QUICK: [&str; 8] = ["--steps", "1", "--size", "64x64", "-s", "1", "-o", "a.png"];

#[test]
fn pictures_name_their_loras_and_are_made_again() {
    let sandbox = Sandbox::new();
    std::fs::copy(data("reference/lora_kohya.safetensors"), sandbox.join("Style.safetensors")).unwrap();
    let model = data("small").display().to_string();
    let flags =
        ["-m", &model, "mars <lora:style:0.5>", "--lora-dir", ".", "--lora", "Style.safetensors:0.25"];
    let left = sandbox.run(&[&flags[..], &QUICK].concat());
    left.done();
    assert!(left.stderr.contains("Style.safetensors at 0.25: merged into 144 layers"), "{}", left.stderr);
    assert!(left.stderr.contains("Style.safetensors at 0.5: merged into 144 layers"), "{}", left.stderr);
    let bytes = std::fs::read(sandbox.join("a.png")).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("mars <lora:style:0.5> <lora:Style:0.25>\n"));
    // Of the data after the header, as sd-scripts computes `sshs_model_hash`.
    assert!(text.contains("Lora hashes: \"Style: "), "no hashes");

    sandbox.run(&["-m", &model, "--from", "a.png", "--lora-dir", ".", "-o", "b.png"]).done();
    assert!(std::fs::read(sandbox.join("b.png")).unwrap() == bytes);

    std::fs::copy(data("reference/lora_peft.safetensors"), sandbox.join("Style.safetensors")).unwrap();
    let left = sandbox.run(&["-m", &model, "--from", "a.png", "--lora-dir", ".", "-o", "c.png"]);
    left.done();
    assert!(left.stderr.contains("is not the file the picture was made with"), "{}", left.stderr);
    std::fs::remove_file(sandbox.join("Style.safetensors")).unwrap();
    let left = sandbox.run(&["-m", &model, "--from", "a.png", "--lora-dir", ".", "-o", "d.png"]);
    left.refused(2, &["Style.safetensors", "--lora-dir"]);
}

#[test]
fn what_can_not_be_merged_ends_the_run_at_once() {
    let sandbox = Sandbox::new();
    sandbox.write("p.safetensors", b"PK\x03\x04rest");
    sandbox.write("junk.safetensors", b"junk");
    for (flags, parts) in [
        (&["--lora", "no.safetensors"][..], &["no.safetensors"][..]),
        (&["--lora", "p.safetensors"], &["p.safetensors is a PyTorch pickle", "save_file"]),
        (&["--lora", "junk.safetensors"], &["junk.safetensors is not usable"]),
        (&["--lora", "x:1e9"], &["out of range"]),
        (&["<lora:x:1>"], &["--lora-dir"]),
        (&["<lora:x:1>", "--lora-dir", "."], &["x.safetensors"]),
        (&["<lora:x:y>", "--lora-dir", "."], &["<lora:x:y>"]),
    ] {
        sandbox.run(&[flags, &["a"]].concat()).refused(2, parts);
    }
    assert_eq!(sandbox.files(), ["junk.safetensors", "p.safetensors"]);
}
