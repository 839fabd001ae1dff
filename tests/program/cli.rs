//! The command line on the binary: help, exit codes and every kind of input that is refused.

use image::RgbImage;
use pochade::png;
use pochade::request::{Defaults, PARAMETERS_KEYWORD, Precision, Record, Request, Rng, Sampler, Schedule};
use serde_json::Value;

use crate::support::sandbox::{Left, Sandbox};

#[test]
fn help_names_every_exit_code() {
    let help = Sandbox::new();
    for args in [&["--help"][..], &["generate", "--help"]] {
        let left = help.run(args);
        let help = left.done();
        for line in [
            "0    done",
            "1    a picture failed",
            "2    wrong usage or bad input",
            "3    the model is missing or unusable",
            "4    the network failed",
            "130  interrupted",
            "143  terminated",
        ] {
            assert!(help.contains(line), "{line}");
        }
    }
}

#[test]
fn short_help_is_short_and_on_stdout() {
    let left = Sandbox::new().run(&["-h"]);
    assert!(left.done().lines().count() < 100);
    assert!(left.stderr.is_empty());
}

#[test]
fn bench_prints_tables_or_one_json_object() {
    let sandbox = Sandbox::new();
    let args = ["bench", "-m", "pocket", "--size", "64x64", "--steps", "1", "--repeats", "1", "-t", "1"];
    let left = sandbox.run(&args);
    for word in ["f32 product", "peak memory", "1 thread,", "UNet step", "conv 3x3", "rest"] {
        assert!(left.done().contains(word), "no '{word}' in {}", left.done());
    }
    let left = sandbox.run(&[&args[..], &["--json", "--precision", "f32"]].concat());
    let json: Value = serde_json::from_str(left.done()).unwrap();
    assert_eq!(json["model"], "pocket");
    assert_eq!(json["precision"], "f32");
    assert!(json["unet_step_seconds"].as_f64().unwrap() > 0.0);
    sandbox.run(&["bench", "--synthetic", "sd15", "-m", "pocket"]).refused(2, &["cannot be used with"]);
    sandbox.run(&["bench", "-m", "pocket", "--size", "60x64"]).refused(2, &["width 60"]);
}

#[test]
fn completions_and_the_manual_page_are_printed() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let left = sandbox.run(&["completions", shell]);
        assert!(left.done().contains("--sampler") || left.done().contains("sampler"), "{shell}");
    }
    let page = sandbox.run(&["man"]);
    for section in [".TH pochade 1", ".SH ENVIRONMENT", ".SH EXIT STATUS", "\\fB130\\fR"] {
        assert!(page.done().contains(section), "{section}");
    }
}

#[test]
fn doctor_tells_without_a_model() {
    let sandbox = Sandbox::new();
    let text = sandbox.run(&["doctor"]);
    for row in ["cpu", "kernel", "threads", "memory", "cache folder", "default model  pocket"] {
        assert!(text.done().contains(row), "{row}");
    }
    let json: Value = serde_json::from_str(sandbox.run(&["doctor", "--json"]).done()).unwrap();
    assert_eq!(json["default_model_found"], true);
    assert!(json["threads"].as_u64().unwrap() > 0);

    let missing = sandbox.command(&["doctor"]).env("POCHADE_MODEL", "gone").output().unwrap();
    assert!(String::from_utf8_lossy(&missing.stdout).contains("gone, from $POCHADE_MODEL, not found"));
}

#[test]
fn values_are_checked_before_anything_runs() {
    let sandbox = Sandbox::new();
    for (args, parts) in [
        (&["--sampler", "eulr", "x"][..], &["'eulr'", "euler_a", "similar value"][..]),
        (&["--schedule", "cosine", "x"], &["'cosine'", "karras"]),
        (&["--rng", "numpy", "x"], &["'numpy'"]),
        (&["--size", "512", "x"], &["'512'", "WIDTHxHEIGHT"]),
        (&["--size", "64x64", "-W", "64", "x"], &["--size", "--width"]),
        (&["-W", "wide", "x"], &["'wide'"]),
        (&["-s", "-1", "x"], &["'-1'", "0 to 18446744073709551615"]),
        (&["-s", "18446744073709551616", "x"], &["0 to 18446744073709551615"]),
        (&["-c", "0", "x"], &["--count"]),
        (&["-t", "0", "x"], &["--threads"]),
        (&["--cfg", "much", "x"], &["'much'"]),
        (&["-q", "-v", "x"], &["--quiet", "--verbose"]),
        (&["--no-such-flag", "x"], &["--no-such-flag"]),
        (&["completions", "tcsh"], &["'tcsh'", "bash"]),
        (&["--show", "x"], &["--show", "terminal"]),
        (&["man", "on", "a", "horse"], &["hint: ", "pochade -- man"]),
    ] {
        sandbox.run(args).refused(2, parts);
    }
    assert!(sandbox.files().is_empty());
}

/// f16 is for processors that multiply 16-bit integers faster than floats.
#[test]
fn f16_draws_where_it_is_fast_and_is_refused_elsewhere() {
    let sandbox = Sandbox::new();
    let args =
        ["an apple", "--steps", "1", "-s", "1", "--device", "cpu", "--precision", "f16", "-o", "apple.png"];
    let slow: Left = sandbox.command(&args).env("POCHADE_KERNEL", "scalar").output().unwrap().into();
    slow.refused(2, &["f16", "kernel 'scalar'", "hint: ", "int8"]);
    assert!(sandbox.files().is_empty());
    if pochade::kernels::Isa::chosen().unwrap().multiplies_words_fast() {
        sandbox.run(&args).done();
        assert_eq!(sandbox.files(), ["apple.png"]);
    }
}

#[cfg(not(any(feature = "cuda", feature = "metal")))]
#[test]
fn a_device_that_is_not_built_says_how_to_build_it() {
    for device in ["cuda", "metal"] {
        let left = Sandbox::new().run(&["--device", device, "x"]);
        left.refused(2, &[device, "hint: ", &format!("--features {device}")]);
    }
}

/// Without a driver or with its GPUs hidden: the program starts, says so once, and draws on the CPU.
#[cfg(feature = "cuda")]
#[test]
fn without_a_gpu_cuda_is_refused_and_auto_draws() {
    let sandbox = Sandbox::new();
    let run = |device: &str| -> Left {
        let args = ["a fox", "--steps", "1", "-s", "1", "-o", "fox.png", "--device", device];
        sandbox.command(&args).env("CUDA_VISIBLE_DEVICES", "").output().unwrap().into()
    };
    run("cuda").refused(2, &["--device cuda: "]);
    assert_eq!(sandbox.files(), [""; 0]);
    for device in ["cpu", "auto"] {
        run(device).done();
        std::fs::remove_file(sandbox.join("fox.png")).unwrap();
    }
}

#[test]
fn a_prompt_is_needed_and_must_be_text() {
    let sandbox = Sandbox::new();
    for args in [&[][..], &["-"], &["generate"], &["generate", "-"]] {
        sandbox.run_with_stdin(args, b"").refused(2, &["stdin is empty"]);
        sandbox.run_with_stdin(args, b" \n\t\n").refused(2, &["stdin is empty"]);
        sandbox.run_with_stdin(args, b"caf\xe9").refused(2, &["not UTF-8 (byte 4)", "hint: "]);
    }
}

#[test]
fn outputs_are_checked_before_anything_runs() {
    let sandbox = Sandbox::new();
    for (args, parts) in [
        (&["-o", "{prompt}.png", "x"][..], &["unknown placeholder '{prompt}'", "{slug}"][..]),
        (&["-o", "{seed.png", "x"], &["not closed"]),
        (&["-o", "x.jpg", "x"], &["x.jpg", "only PNG"]),
        (&["-o", "", "x"], &["--output"]),
        (&["-o", "-", "--json", "x"], &["--json"]),
        (&["-o", "-", "-c", "2", "x"], &["one picture"]),
    ] {
        sandbox.run(args).refused(2, parts);
    }
}

#[test]
fn a_model_that_is_missing_or_corrupt_is_exit_3() {
    let sandbox = Sandbox::new();
    sandbox.run(&["-m", "gone", "x"]).refused(3, &["'gone'", "--model", "hint: "]);
    sandbox.run(&["-m", "org/name", "x"]).refused(3, &["'org/name'", "`pochade models pull org/name`"]);
    let left = sandbox.command(&["x"]).env("POCHADE_MODEL", "gone").output().unwrap();
    Left::from(left).refused(3, &["'gone'", "$POCHADE_MODEL"]);

    sandbox.write("garbage.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7fnot a model");
    sandbox.write("empty.safetensors", b"");
    std::fs::create_dir(sandbox.join("folder")).unwrap();
    for model in ["garbage.safetensors", "empty.safetensors", "folder"] {
        sandbox.run(&["-m", model, "x"]).refused(3, &[model]);
    }
}

#[test]
fn a_picture_to_repeat_must_carry_parameters() {
    let sandbox = Sandbox::new();
    let bare = png::encode(&RgbImage::new(8, 8), &[]).unwrap();
    sandbox.write("bare.png", &bare);
    sandbox.write("cut.png", &bare[..bare.len() / 2]);
    sandbox.write("text.png", b"no picture");
    let newer = r#"{"version":"9.0.0","model":"pocket","precision":"f32","kernel":"k","device":"cpu","request":{"sharpness":2}}"#;
    let newer = png::encode(&RgbImage::new(8, 8), &[("pochade", newer.to_owned())]).unwrap();
    sandbox.write("newer.png", &newer);
    for command in [&["--from"][..], &["info"]] {
        for (image, part) in [
            ("gone.png", "cannot read gone.png"),
            ("bare.png", "bare.png carries no generation parameters"),
            ("cut.png", "cut.png is not a PNG file that can be read"),
            ("text.png", "text.png is not a PNG file that can be read"),
            ("newer.png", "newer.png: the embedded request can't be read"),
        ] {
            sandbox.run(&[command, &[image]].concat()).refused(2, &[part]);
        }
    }
}

#[test]
fn info_reads_our_own_pictures() {
    let sandbox = Sandbox::new();
    let record = Record {
        version: "0.1.0".into(),
        model: "pocket".into(),
        components: Default::default(),
        precision: Precision::F32,
        kernel: "k".into(),
        device: "cpu".into(),
        files: Vec::new(),
        tiled: false,
        unet: None,
        request: Request {
            negative_prompt: "猫".into(),
            rng: Rng::Philox,
            clip_skip: 2,
            lora: vec!["a.safetensors:0.5".parse().unwrap()],
            ..Request::new(
                "a red apple\non a table",
                u64::MAX,
                &Defaults {
                    width: 64,
                    height: 72,
                    steps: 12,
                    guidance_scale: 3.5,
                    sampler: Sampler::Heun,
                    schedule: Schedule::Trailing,
                },
            )
        },
    };
    let bytes = png::encode(&RgbImage::new(64, 72), &record.text_chunks().unwrap()).unwrap();
    sandbox.write("own.png", &bytes);

    let text = sandbox.run(&["info", "own.png"]);
    assert!(text.done().contains("prompt     a red apple\n           on a table\n"));
    assert!(text.done().contains("seed       18446744073709551615\n"));
    let json: Value = serde_json::from_str(sandbox.run(&["info", "own.png", "--json"]).done()).unwrap();
    assert_eq!(json["source"], "pochade");
    assert_eq!(json["request"], serde_json::to_value(&record.request).unwrap());
    assert_eq!(json["model"], "pocket");
}

#[test]
fn info_reads_pictures_of_automatic1111() {
    let sandbox = Sandbox::new();
    let parameters = "a fox\nSteps: 25, Sampler: Euler a, CFG scale: 7.5, Seed: 9, Size: 512x640, Clip skip: 2, Face restoration: GFPGAN";
    let text = [(PARAMETERS_KEYWORD, parameters.to_owned())];
    sandbox.write("other.png", &png::encode(&RgbImage::new(8, 8), &text).unwrap());
    let json: Value = serde_json::from_str(sandbox.run(&["info", "--json", "other.png"]).done()).unwrap();
    assert_eq!(json["source"], "parameters");
    assert_eq!(json["request"]["sampler"], "euler_a");
    assert_eq!(json["request"]["clip_skip"], 2);
    assert_eq!(json["unknown"][0], "Face restoration: GFPGAN");
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_error() {
    use std::process::Stdio;
    for args in [&["--help"][..], &["man"], &["completions", "zsh"], &["doctor"]] {
        let mut command = Sandbox::new().command(args);
        let mut child =
            command.current_dir("/").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let left = child.wait_with_output().unwrap();
        assert_eq!((left.status.code(), left.stderr.len()), (Some(0), 0), "{args:?}");
    }
}
