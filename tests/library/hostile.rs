//! Malformed requests and configs: every one is an error or harmless, never a panic or a large allocation.

use std::path::PathBuf;

use pochade::checkpoint::{Checkpoint, check_header};
use pochade::networks::config::{ClipConfig, UnetConfig, VaeConfig};
use pochade::picture_in::size_of;
use pochade::png::read_header;
use pochade::request::list::{Format, List};
use pochade::request::{
    Draft, Embedded, Init, Lora, Precision, PromptSyntax, Record, Request, Resize, Rng, Sampler, Schedule,
    parse_parameters, print_parameters,
};
use pochade::schedule::{NoiseSchedule, SchedulerConfig};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use crate::support::models::data;
use crate::support::sandbox::Sandbox;

/// CRC-32 as PNG has it.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1)))
    })
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [kind, data].concat();
    [&(data.len() as u32).to_be_bytes()[..], &body, &crc(&body).to_be_bytes()].concat()
}

/// A PNG of one pixel with `chunks` before its data.
fn png(chunks: &[u8]) -> Vec<u8> {
    let picture = image::RgbImage::from_pixel(1, 1, image::Rgb([1, 2, 3]));
    let plain = pochade::png::encode(&picture, &[]).unwrap();
    // Signature and IHDR are 33 bytes.
    [&plain[..33], chunks, &plain[33..]].concat()
}

fn text(keyword: &str, text: &str) -> Vec<u8> {
    chunk(b"tEXt", &[keyword.as_bytes(), b"\0", text.as_bytes()].concat())
}

#[test]
fn a_picture_with_hostile_metadata_repeats_nothing() {
    let record = |request: &str| {
        format!(
            r#"{{"version":"1","model":"pocket","precision":"int8","kernel":"k","device":"cpu","request":{request}}}"#
        )
    };
    let deep = "[".repeat(100_000);
    let long = [&u32::MAX.to_be_bytes()[..], b"tEXt", b"pochade\0{"].concat();
    let table: Vec<(Vec<u8>, &str)> = vec![
        (long, "not a PNG file that can be read"),
        (chunk(b"iTXt", b"pochade\0\0\0\0\0\xff\xfe"), "no generation parameters"),
        (chunk(b"zTXt", b"pochade\0\0not zlib"), "not a PNG file that can be read"),
        (chunk(b"tEXt", b"pochade"), "no generation parameters"),
        (chunk(b"tEXt", &[0; 64]), "no generation parameters"),
        (text("pochade", ""), "can't be read"),
        (text("pochade", "{"), "can't be read"),
        (text("pochade", &deep), "can't be read"),
        (text("pochade", &record(&deep)), "can't be read"),
        (text("pochade", &record(r#"{"steps":18446744073709551616}"#)), "invalid type"),
        (text("pochade", &record(r#"{"steps":1e999}"#)), "out of range"),
        (text("pochade", &record(r#"{"width":-64}"#)), "invalid value"),
        (text("pochade", &record(r#"{"prompt":"x","steps":4294967296}"#)), "steps 4294967296"),
        (text("pochade", &record(r#"{"prompt":"x","width":1152921504606846976}"#)), "width"),
        (text("pochade", &record(r#"{"prompt":"\u0000"}"#)), "NUL"),
        (text("pochade", &record(r#"{"lora":["a:1e9"]}"#)), "lora weight"),
        (text("parameters", "x\nSteps: 99999999999, Seed: 1, Size: 64x64"), "steps 99999999999"),
        (text("parameters", "x\nSteps: 1, Seed: 1, Size: 1152921504606846976x64"), "width"),
        (text("parameters", "x\nSteps: 1, Seed: 1, CFG scale: NaN"), "guidance scale NaN"),
        (text("parameters", "x\nSteps: 1, Seed: 1, Eta DDIM: inf, Sampler: DDIM"), "eta inf"),
    ];
    let sandbox = Sandbox::new();
    for (chunks, said) in table {
        sandbox.write("in.png", &png(&chunks));
        let left = sandbox.run(&["--from", "in.png", "-m", "pocket", "-o", "out.png"]);
        left.refused(2, &[said]);
        assert!(!left.stderr.contains("panicked"), "{}", left.stderr);
        assert_eq!(sandbox.files(), ["in.png"]);
    }
}

#[test]
fn a_list_with_hostile_lines_draws_nothing() {
    let deep = |open: &str| format!("{{\"prompt\":{}", open.repeat(100_000));
    let lines = [
        deep("["),
        deep("{\"a\":"),
        format!("{{\"prompt\":\"{}\"}}", "x".repeat(1 << 21)),
        r#"{"prompt":"x","seed":1e30}"#.to_owned(),
        r#"{"prompt":"x","seed":-1}"#.to_owned(),
        r#"{"prompt":"x","width":1152921504606846976}"#.to_owned(),
        r#"{"prompt":"x","cfg":-0.5}"#.to_owned(),
        r#"{"prompt":"\ud800"}"#.to_owned(),
        r#"{"prompt":"a\u0000b"}"#.to_owned(),
        r#"{"prompt":"x","output":"../../x.png"}"#.to_owned(),
        r#"{"prompt":"x","output":"a\u0000b.png"}"#.to_owned(),
    ];
    let sandbox = Sandbox::new();
    sandbox.write("list.jsonl", lines.join("\n").as_bytes());
    let left = sandbox.run(&["batch", "list.jsonl", "--out-dir", "out", "-m", "pocket", "--seed", "1"]);
    left.refused(2, &[&format!("{} lines can't be drawn", lines.len())]);
    for line in 1..=lines.len() {
        assert!(left.stderr.contains(&format!("line {line}: ")), "line {line}: {}", left.stderr);
    }
    assert!(left.stderr.len() < 10_000 && !left.stderr.contains("panicked"));
    assert_eq!(sandbox.files(), ["list.jsonl"]);
}

/// Whether a config with `key` set to `value` is refused; it never panics.
fn is_refused(part: &str, key: &str, value: Value) -> bool {
    let sd15 = Checkpoint::synthetic_sd15();
    let configs = sd15.configs();
    let with = |config: &Value| {
        let mut config = config.clone();
        config[key] = value.clone();
        config
    };
    match part {
        "unet" => UnetConfig::parse(&with(&configs.unet)).is_err(),
        "vae" => VaeConfig::parse(&with(&configs.vae)).is_err(),
        "text_encoder" => ClipConfig::parse(&with(&configs.text_encoder)).is_err(),
        _ => serde_json::from_value::<SchedulerConfig>(with(&configs.scheduler))
            .map_err(anyhow::Error::from)
            .and_then(|config| NoiseSchedule::new(&config))
            .is_err(),
    }
}

#[test]
fn counts_that_no_model_has_are_refused() {
    let counts = [
        ("unet", "layers_per_block"),
        ("unet", "in_channels"),
        ("unet", "out_channels"),
        ("unet", "cross_attention_dim"),
        ("unet", "norm_num_groups"),
        ("unet", "attention_head_dim"),
        ("vae", "layers_per_block"),
        ("vae", "latent_channels"),
        ("vae", "norm_num_groups"),
        ("text_encoder", "vocab_size"),
        ("text_encoder", "hidden_size"),
        ("text_encoder", "intermediate_size"),
        ("text_encoder", "num_hidden_layers"),
        ("text_encoder", "num_attention_heads"),
        ("text_encoder", "max_position_embeddings"),
        ("scheduler", "num_train_timesteps"),
    ];
    let wrong = [
        json!(1u64 << 60),
        json!(u64::MAX),
        json!(-1),
        json!(0),
        json!(0.5),
        json!("8"),
        json!({}),
        json!([[[]]]),
    ];
    for (part, key) in counts {
        for value in &wrong {
            assert!(is_refused(part, key, value.clone()), "{part} {key} {value}");
        }
    }
    for part in ["unet", "vae"] {
        let wide = json!([1u64 << 60, 1u64 << 60, 1u64 << 60, 1u64 << 60]);
        for value in [wide, json!([]), json!(vec![320; 100_000]), json!([0, 0, 0, 0]), json!([-320, 1, 1, 1])]
        {
            assert!(is_refused(part, "block_out_channels", value), "{part}");
        }
    }
    for value in [json!(0), json!(-1.0), json!(null), json!("NaN")] {
        assert!(is_refused("vae", "scaling_factor", value.clone()), "{value}");
    }
}

#[test]
fn a_config_file_that_is_no_config_is_refused() {
    let sandbox = Sandbox::new();
    let small = data("small");
    for part in ["unet", "vae", "text_encoder", "scheduler"] {
        std::fs::create_dir(sandbox.join(part)).unwrap();
        for file in std::fs::read_dir(small.join(part)).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), sandbox.join(part).join(file.file_name())).unwrap();
        }
    }
    std::fs::copy(small.join("model_index.json"), sandbox.join("model_index.json")).unwrap();
    let path = "unet/config.json";
    let deep = "[".repeat(100_000);
    for bytes in [&b""[..], b"\xff\xfe", b"[]", b"7", b"{\"sample_size\":1e999}", deep.as_bytes()] {
        sandbox.write(path, bytes);
        let left = sandbox.run(&["x", "-m", ".", "-s", "1", "--steps", "1", "-o", "out.png", "-q"]);
        left.refused(3, &["unet"]);
        assert!(!left.stderr.contains("panicked") && !sandbox.join("out.png").exists());
    }
}

/// Text of one line as prompts have it, without outer spaces.
fn line() -> impl Strategy<Value = String> {
    r"[^\p{C}]{0,30}".prop_map(|line| line.trim().to_owned())
}

/// Lines that the parameters text can carry as a prompt.
fn lines() -> impl Strategy<Value = String> {
    let kept = line().prop_filter("opens the negative prompt", |line| !line.starts_with("Negative prompt:"));
    vec(kept, 1..4).prop_map(|lines| lines.join("\n").trim().to_owned())
}

fn side() -> impl Strategy<Value = usize> {
    (1..=256usize).prop_map(|steps| 8 * steps)
}

prop_compose! {
    /// What the parameters text carries of a request.
    fn carried()(
        (prompt, negative_prompt) in (lines(), lines()),
        (width, height, steps, clip_skip) in (side(), side(), 1..=1000usize, 1..=12usize),
        (guidance_scale, share, seed) in (0.0..=100.0f64, 0.0..=1.0f64, any::<u64>()),
        (sampler, schedule) in (select(Sampler::ALL), select(Schedule::ALL)),
        (rng, prompt_syntax) in (select(Rng::ALL), select(PromptSyntax::ALL)),
    ) -> Request {
        let draft = Draft {
            prompt: Some(prompt),
            negative_prompt: Some(negative_prompt),
            width: Some(width),
            height: Some(height),
            steps: Some(steps),
            guidance_scale: Some(guidance_scale),
            sampler: Some(sampler),
            schedule: Some(schedule),
            eta: Some(if sampler == Sampler::Ddim { share } else { 0.0 }),
            seed: Some(seed),
            rng: Some(rng),
            prompt_syntax: Some(prompt_syntax),
            clip_skip: Some(clip_skip),
            ..Draft::default()
        };
        draft.resolve(&Checkpoint::synthetic_sd15().defaults(), size_of).unwrap()
    }
}

prop_compose! {
    /// Any request at all.
    fn request()(
        carried in carried(),
        (prompt, negative_prompt) in ("[^\0]{0,40}", "[^\0]{0,40}"),
        lora in vec(("[^\0]{1,20}", -100.0..=100.0f64), 0..3),
        embedding in vec("[^\0]{1,20}", 0..3),
        folders in (option::of("[^\0]{1,20}"), option::of("[^\0]{1,20}")),
        init in option::of(("[^\0]{1,20}", 0.01..=1.0f64, select(Resize::ALL))),
    ) -> Request {
        Request {
            prompt,
            negative_prompt,
            lora: lora.into_iter().map(|(path, weight)| Lora { path: path.into(), weight }).collect(),
            lora_dir: folders.0.map(PathBuf::from),
            embedding: embedding.into_iter().map(PathBuf::from).collect(),
            embedding_dir: folders.1.map(PathBuf::from),
            init: init.map(|(path, strength, resize)| Init {
                picture: path.into(),
                mask: None,
                strength,
                resize,
            }),
            ..carried
        }
    }
}

proptest! {
    #[test]
    fn a_record_says_exactly_its_request(request in request()) {
        let text = serde_json::to_string(&request).unwrap();
        prop_assert_eq!(serde_json::from_str::<Draft>(&text).unwrap(), Draft::from(request.clone()));
        let record = Record {
            tiled: false,
            unet: None,
            version: "1".into(),
            model: "m".into(),
            components: [].into(),
            precision: Precision::Int8,
            kernel: "k".into(),
            device: "cpu".into(),
            files: Vec::new(),
            request: request.clone(),
        };
        let chunks = record.text_chunks().unwrap();
        let found = Embedded::find(chunks.iter().map(|(keyword, text)| (*keyword, text.as_str())));
        let found = found.unwrap().unwrap();
        prop_assert_eq!(found.draft(), &Draft::from(request));
    }

    #[test]
    fn a_parameters_text_says_what_it_can_carry(request in carried()) {
        let parsed = parse_parameters(&print_parameters(&request, "pocket", &[]));
        prop_assert_eq!(parsed.draft, request.into());
        prop_assert_eq!(parsed.unknown, Vec::<String>::new());
    }

    #[test]
    fn any_text_is_read_as_parameters(text in any::<String>()) {
        prop_assert!(parse_parameters(&text).draft.prompt.is_some());
    }

    #[test]
    fn a_list_of_any_bytes_ends(bytes in vec(any::<u8>(), 0..300), text in r#"[{}\[\]":,a-z0-9\\\n -]{0,200}"#) {
        for bytes in [&bytes[..], text.as_bytes()] {
            for format in [Format::Jsonl, Format::Text] {
                let lines = bytes.split(|&byte| byte == b'\n').count();
                prop_assert!(List::new(bytes, format).count() <= lines);
            }
        }
    }

    #[test]
    fn a_header_of_any_bytes_is_survived(bytes in vec(any::<u8>(), 0..300), length in any::<u64>()) {
        let header = br#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
        let safetensors = [&length.to_le_bytes()[..], header, &bytes].concat();
        let exact = [&(bytes.len() as u64).to_le_bytes()[..], &bytes, &[0; 16]].concat();
        let gguf = [b"GGUF\x03\0\0\0", &bytes[..]].concat();
        for file in [&bytes, &safetensors, &exact, &gguf] {
            let _ = check_header(file);
        }
    }

    #[test]
    fn metadata_of_any_bytes_is_survived(bytes in vec(any::<u8>(), 0..100), keyword in "pochade|parameters|x") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let data = [keyword.as_bytes(), b"\0", &bytes].concat();
        for kind in [b"tEXt", b"zTXt", b"iTXt"] {
            std::fs::write(&path, png(&chunk(kind, &data))).unwrap();
            if let Ok(header) = read_header(&path) {
                let _ = Embedded::find(header.chunks());
            }
        }
    }
}
