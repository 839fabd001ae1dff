//! What a prompt does beyond its words: weights, chunks, clip skip, textual inversions, and `pochade tokens`.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use pochade::layers::{Backend, Params};
use pochade::networks::clip::TextEncoder;
use pochade::prompt::{Prompts, Room, Text, Tokenizer};
use pochade::request::{Draft, Precision, PromptSyntax};
use serde_json::{Value, json};

use crate::support::comparison::{assert_close, assert_identical, distance};
use crate::support::models::{clip_config, data, draw, reference, reference_draft, small};
use crate::support::sandbox::Sandbox;

const PROMPT: &str = "a photo of an astronaut riding a horse on mars";

fn text(prompt: &str) -> Text {
    Text {
        prompt: prompt.to_owned(),
        negative_prompt: None,
        syntax: PromptSyntax::Weighted,
        clip_skip: 1,
        embedding: Vec::new(),
        embedding_dir: None,
        lora: Vec::new(),
        lora_dir: None,
    }
}

/// What the small text encoder, short of `skipped` layers, makes of a text.
fn embed(text: &Text, skipped: usize) -> Tensor {
    let checkpoint = small();
    let tokenizer = Tokenizer::new(checkpoint.vocabulary()).unwrap();
    let mut config = clip_config(&checkpoint);
    config.num_hidden_layers -= skipped;
    let backend = Backend::cpu().unwrap();
    let encoder = TextEncoder::load(&Params::new(checkpoint.tensors(), &backend, "text_encoder"), config);
    let prompts = Prompts::read(text, &tokenizer, Room { width: 64, positions: 77 }).unwrap();
    prompts.encode(&encoder.unwrap(), &tokenizer).unwrap()
}

#[test]
fn a_layer_can_be_skipped() {
    let expected = reference("text.safetensors");
    assert_close(&embed(&text(PROMPT), 0), &expected["prompt_embeds"], 1e-4, "all layers");
    let skipped = &expected["prompt_embeds_last_layer_skipped"];
    assert_close(&embed(&text(PROMPT), 1), skipped, 1e-4, "without the last layer");
}

#[test]
fn text_without_syntax_is_the_same_either_way() {
    let plain = Text { syntax: PromptSyntax::Plain, ..text(PROMPT) };
    let plain = embed(&plain, 0);
    assert_identical(&embed(&text(PROMPT), 0), &plain, PROMPT);
    let neutral = format!("({PROMPT}:1)");
    assert_identical(&embed(&text(&neutral), 0), &plain, neutral);
}

#[test]
fn weights_scale_their_tokens_and_keep_the_mean() {
    let (plain, weighed) =
        (embed(&text(PROMPT), 0), embed(&text("a photo of an (astronaut:1.5) riding a horse on mars"), 0));
    let (plain, weighed) = (plain.to_vec3::<f32>().unwrap(), weighed.to_vec3::<f32>().unwrap());
    let mut expected = plain[0].clone();
    // Start, four words, then the astronaut.
    expected[5].iter_mut().for_each(|value| *value *= 1.5);
    let sum = |rows: &[Vec<f32>]| rows.iter().flatten().map(|value| f64::from(*value)).sum::<f64>();
    let restore = sum(&plain[0]) / sum(&expected);
    let expected: Vec<f64> = expected.iter().flatten().map(|value| f64::from(*value) * restore).collect();
    assert!(distance(&weighed[0].concat(), &expected).largest < 1e-4);
}

#[test]
fn chunks_lie_side_by_side_and_both_prompts_have_as_many() {
    let both = embed(&text("a photo BREAK of mars"), 0);
    assert_eq!(both.dims(), [1, 154, 64]);
    for (at, part) in ["a photo", "of mars"].iter().enumerate() {
        let chunk = both.narrow(1, 77 * at, 77).unwrap();
        assert_identical(&chunk, &embed(&text(part), 0), part);
    }
    let negative = Text { negative_prompt: Some("mars".to_owned()), ..text("a photo BREAK of mars") };
    let pair = embed(&negative, 0);
    assert_eq!(pair.dims(), [2, 154, 64]);
    let padding = pair.narrow(0, 0, 1).unwrap().narrow(1, 77, 77).unwrap();
    assert_identical(&padding, &embed(&text(""), 0), "the negative prompt's second chunk");
}

#[test]
fn textual_inversion_is_diffusers() {
    let thing = data("reference/thing.safetensors");
    let inverted = |prompt: &str| Text { embedding: vec![thing.clone()], ..text(prompt) };
    let expected = reference("textual_inversion.safetensors");
    let found = embed(&inverted("a photo of thing on mars"), 0);
    assert_close(&found, &expected["prompt_embeds"], 1e-4, "embeddings");
    // In any case, between brackets, and from a folder.
    assert_identical(&embed(&inverted("a photo of (THING:1.0) on mars"), 0), &found, "between brackets");
    let folder = Text { embedding_dir: Some(data("reference")), ..text("a photo of Thing on mars") };
    assert_identical(&embed(&folder, 0), &found, "from a folder");

    let prompt = Some("a photo of thing on mars".to_owned());
    let draft = Draft { prompt, embedding: Some(vec![thing]), ..reference_draft() };
    let picture = draw(&small(), Precision::F32, draft);
    assert_close(&picture.latents, &expected["final"], 2e-3, "final latents");
    assert_eq!(picture.files[0].name, "thing");
}

fn tensor(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu).unwrap()
}

fn embedding(sandbox: &Sandbox, name: &str, key: &str, tensor: Tensor) {
    let tensors = HashMap::from([(key.to_owned(), tensor)]);
    candle_core::safetensors::save(&tensors, sandbox.join(name)).unwrap();
}

#[test]
fn tokens_are_shown() {
    let sandbox = Sandbox::new();
    let model = data("small").display().to_string();
    embedding(&sandbox, "bad-hands.safetensors", "<hands>", tensor(&[2, 64]));
    let prompt = "a (cat:1.5), BREAK bad-hands and <hands> <lora:x:0.5>";
    let args = ["tokens", "-m", &model, "--embedding", "bad-hands.safetensors", prompt];
    let left = sandbox.run(&args);
    let expected = "chunk 1: 3 of 75 tokens\n    320   1.000  a</w>\n   2368   1.500  cat</w>\n    267   1.000  ,</w>\n\
                    chunk 2: 5 of 75 tokens\n      -   1.000  bad-hands#1\n      -   1.000  bad-hands#2\n    537   1.000  and</w>\n      \
                    -   1.000  bad-hands#1\n      -   1.000  bad-hands#2\nlora x at 0.5\n";
    assert_eq!(left.done(), expected);
    let json: Value = serde_json::from_str(sandbox.run(&[&args[..], &["--json"]].concat()).done()).unwrap();
    assert_eq!(json["chunks"][0][1], json!({ "token": "cat</w>", "id": 2368, "weight": 1.5 }));
    assert_eq!(json["chunks"][1][0]["id"], Value::Null);
    let plain = sandbox.run(&["tokens", "--prompt-syntax", "plain", "(a)"]);
    assert_eq!(plain.done().lines().count(), 4);
}

#[test]
fn what_is_wrong_with_an_embedding_is_named() {
    let sandbox = Sandbox::new();
    let model = data("small").display().to_string();
    embedding(&sandbox, "wide.safetensors", "emb_params", tensor(&[1, 768]));
    embedding(&sandbox, "cube.safetensors", "emb_params", tensor(&[1, 1, 64]));
    embedding(&sandbox, "long.safetensors", "emb_params", tensor(&[76, 64]));
    embedding(
        &sandbox,
        "nan.safetensors",
        "emb_params",
        Tensor::full(f32::NAN, (1, 64), &Device::Cpu).unwrap(),
    );
    sandbox.write("pickle.pt", b"PK\x03\x04");
    sandbox.write("old.bin", b"\x80\x02}q");
    for (file, parts) in [
        ("wide.safetensors", &["768", "64"][..]),
        ("cube.safetensors", &["[1, 1, 64]"]),
        ("long.safetensors", &["76 vectors", "1 to 75"]),
        ("nan.safetensors", &["NaN"]),
        ("pickle.pt", &["PyTorch pickle", "save_file"]),
        ("old.bin", &["PyTorch pickle"]),
        ("none.safetensors", &["can't open"]),
    ] {
        let left = sandbox.run(&["tokens", "-m", &model, "--embedding", file, "a"]);
        left.refused(2, &[&[file], parts].concat());
    }
    // In a folder, only those that a prompt mentions matter.
    sandbox.run(&["tokens", "-m", &model, "--embedding-dir", ".", "a"]).done();
    sandbox.run(&["tokens", "-m", &model, "--embedding-dir", ".", "a pickle"]).refused(2, &["pickle.pt"]);
}

#[test]
fn pictures_carry_the_prompts_settings() {
    let sandbox = Sandbox::new();
    let model = data("small").display().to_string();
    std::fs::copy(data("reference/thing.safetensors"), sandbox.join("thing.safetensors")).unwrap();
    let quick = ["-m", &model, "--steps", "1", "--size", "64x64", "-s", "1"];
    let flags = ["a thing", "--clip-skip", "2", "--embedding", "thing.safetensors", "-o", "a.png"];
    sandbox.run(&[&flags[..], &quick].concat()).done();
    let bytes = std::fs::read(sandbox.join("a.png")).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("Clip skip: 2, TI hashes: \"thing: "));
    sandbox.run(&["-m", &model, "--from", "a.png", "--embedding-dir", ".", "-o", "b.png"]).done();
    assert!(std::fs::read(sandbox.join("b.png")).unwrap() == bytes);
    let skipping = |layers: &str| sandbox.run(&[&["a", "--clip-skip", layers][..], &quick].concat());
    skipping("5").refused(2, &["clip skip 5", "4 layers"]);
    skipping("0").refused(2, &["clip skip 0"]);
    let long = "(".repeat(70_000);
    sandbox.run(&[&quick[..], &[&long]].concat()).refused(2, &["70000 bytes"]);
}
