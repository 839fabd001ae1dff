//! The command line with the built-in model: what lands on stdout, stderr and disk, and how a run ends early.

use std::fs;

use serde_json::Value;

use crate::support::sandbox::Sandbox;

/// Few steps: these tests look at files and streams, not at pictures.
const QUICK: [&str; 2] = ["--steps", "2"];

fn quick<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&QUICK[..], args].concat()
}

#[test]
fn stdout_holds_the_path_and_nothing_else() {
    let sandbox = Sandbox::new();
    let left = sandbox.run(&quick(&["A", "red apple", "-s", "42"]));
    assert_eq!(left.done(), "a-red-apple-42.png\n");
    assert!(left.stderr.contains("built-in model") && left.stderr.contains("-m PATH"), "{}", left.stderr);
    assert!(left.stderr.contains("seed 42"));
    assert!(!left.stderr.contains('\x1b'));
    assert_eq!(sandbox.files(), ["a-red-apple-42.png"]);
    image::load_from_memory(&fs::read(sandbox.join("a-red-apple-42.png")).unwrap()).unwrap();
}

#[test]
fn quiet_is_quiet() {
    let left = Sandbox::new().run(&quick(&["-q", "x", "-s", "1"]));
    assert_eq!((left.done(), left.stderr.as_str()), ("x-1.png\n", ""));
}

#[test]
fn a_drawn_seed_is_told_and_embedded() {
    let sandbox = Sandbox::new();
    let left = sandbox.run(&quick(&["x", "--json"]));
    let json: Value = serde_json::from_str(left.done()).unwrap();
    let seed = json["seed"].as_u64().unwrap();
    assert!(left.stderr.contains(&format!("seed {seed}")));
    let name = json["path"].as_str().unwrap();
    assert_eq!(name, format!("x-{seed}.png"));
    let info: Value = serde_json::from_str(sandbox.run(&["info", "--json", name]).done()).unwrap();
    assert_eq!(info["request"]["seed"], seed);
}

#[test]
fn json_holds_every_parameter() {
    let left = Sandbox::new().run(&quick(&["x", "--json", "-s", "5", "-c", "2", "-n", "y", "--cfg", "2.5"]));
    let lines: Vec<Value> = left.done().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["seed"], &lines[1]["seed"]), (&5.into(), &6.into()));
    for (key, value) in [
        ("prompt", Value::from("x")),
        ("negative_prompt", "y".into()),
        ("steps", 2.into()),
        ("guidance_scale", 2.5.into()),
        ("rng", "torch".into()),
        ("model", "pocket".into()),
        ("device", "cpu".into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
    ] {
        assert_eq!(lines[0][key], value, "{key}");
    }
    for key in ["width", "height", "sampler", "schedule", "eta", "precision", "kernel"] {
        assert!(!lines[0][key].is_null(), "{key}");
    }
    for phase in ["load", "encode", "denoise", "decode", "total"] {
        assert!(lines[0]["seconds"][phase].is_f64(), "{phase}");
    }
    assert_eq!(lines[1]["seconds"]["load"], 0.0);
    assert_eq!(lines[0]["peak_rss_bytes"].is_u64(), cfg!(target_os = "linux"));
}

#[test]
fn from_repeats_a_picture_to_the_last_byte() {
    let sandbox = Sandbox::new();
    let flags =
        ["猫, (cat:1.2)", "-n", "dog", "-s", "7", "--sampler", "ddim", "--eta", "0.3", "--rng", "philox"];
    sandbox.run(&quick(&[&flags[..], &["--size", "64x72", "-o", "a.png"]].concat())).done();
    sandbox.run(&["--from", "a.png", "-o", "b.png"]).done();
    assert!(fs::read(sandbox.join("a.png")).unwrap() == fs::read(sandbox.join("b.png")).unwrap());

    let left = sandbox.run(&["--from", "a.png", "-o", "c.png", "-s", "8", "--json", "a dog"]);
    let json: Value = serde_json::from_str(left.done()).unwrap();
    assert_eq!((&json["seed"], &json["prompt"]), (&8.into(), &"a dog".into()));
    assert_eq!((&json["sampler"], &json["eta"], &json["height"]), (&"ddim".into(), &0.3.into(), &72.into()));
}

#[test]
fn from_repeats_a_picture_of_less_work() {
    let sandbox = Sandbox::new();
    let plain = ["a fox", "-s", "4", "--size", "64x64", "--steps", "6"];
    let draw = |name: &str, flags: &[&str]| {
        sandbox.run(&[&plain[..], flags, &["-o", name]].concat()).done();
        fs::read(sandbox.join(name)).unwrap()
    };
    let exact = draw("exact.png", &[]);
    for (at, flags) in [
        &["--cache", "3", "--cfg-range", "0.2..0.7"][..],
        &["--cache", "auto=0.3", "--cache-branch", "1", "--sampler", "heun"],
        &["--cfg-auto=0.9", "--sampler", "tcd", "--eta", "0.5"],
        &["--cache", "2", "--hires", "1.5", "--hires-steps", "4"],
    ]
    .into_iter()
    .enumerate()
    {
        let (name, again) = (format!("{at}.png"), format!("{at}-again.png"));
        let drawn = draw(&name, flags);
        sandbox.run(&["--from", &name, "-o", &again]).done();
        assert!(drawn == fs::read(sandbox.join(&again)).unwrap(), "{flags:?}");
        // The settings are what it repeats: pixels are others than the exact picture's.
        let pixels = |png: &[u8]| image::load_from_memory(png).unwrap().into_rgb8();
        assert!(pixels(&drawn) != pixels(&exact), "{flags:?}");
        // A flag may take one back.
        sandbox.run(&["--from", &name, "--cache", "1", "-o", &again, "--force"]).done();
        let json = sandbox.run(&["info", "--json", &again]);
        let json: Value = serde_json::from_str(json.done()).unwrap();
        assert!(json["request"].get("cache").is_none(), "{json}");
    }
}

#[test]
fn threads_change_nothing_in_the_picture() {
    let sandbox = Sandbox::new();
    for threads in ["1", "2"] {
        let name = format!("{threads}.png");
        sandbox.run(&quick(&["a cat", "-s", "3", "-t", threads, "-o", &name])).done();
    }
    assert!(fs::read(sandbox.join("1.png")).unwrap() == fs::read(sandbox.join("2.png")).unwrap());
}

#[test]
fn the_prompt_may_come_from_stdin() {
    let sandbox = Sandbox::new();
    for args in [&["-s", "1"][..], &["-", "-s", "2"], &["generate", "-s", "3"]] {
        let left = sandbox.run_with_stdin(&[args, &QUICK].concat(), "a caf\u{e9}\n".as_bytes());
        assert_eq!(left.done(), format!("a-cafe-{}.png\n", args[args.len() - 1]));
    }
}

#[test]
fn an_empty_prompt_is_a_prompt() {
    assert_eq!(Sandbox::new().run(&quick(&["", "-s", "1"])).done(), "picture-1.png\n");
}

#[test]
fn files_are_overwritten_only_by_force() {
    let sandbox = Sandbox::new();
    sandbox.write("x.png", b"precious");
    assert_eq!(sandbox.run(&quick(&["x", "-o", "x.png"])).done(), "x-1.png\n");
    assert_eq!(sandbox.run(&quick(&["x", "-o", "x.png"])).done(), "x-2.png\n");
    assert_eq!(fs::read(sandbox.join("x.png")).unwrap(), b"precious");
    assert_eq!(sandbox.run(&quick(&["x", "-o", "x.png", "--force"])).done(), "x.png\n");
    assert!(fs::read(sandbox.join("x.png")).unwrap().starts_with(b"\x89PNG"));
    assert_eq!(sandbox.files(), ["x-1.png", "x-2.png", "x.png"]);
}

#[test]
fn several_pictures_never_share_a_name() {
    let sandbox = Sandbox::new();
    let left = sandbox.run(&quick(&["x", "-c", "2", "-o", "x.png"]));
    assert_eq!(left.done(), "x-1.png\nx-2.png\n");
    let left =
        sandbox.run(&quick(&["a b", "-c", "2", "-s", "9", "-o", "{model}_{slug}_{index:02}_{seed}.png"]));
    assert_eq!(left.done(), "pocket_a-b_01_9.png\npocket_a-b_02_10.png\n");
    let left = sandbox.run(&quick(&["same", "-c", "2", "--force", "-o", "{slug}.png"]));
    assert_eq!(left.done(), "same.png\nsame-1.png\n");
}

#[test]
fn a_folder_takes_the_default_name() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.join("out")).unwrap();
    let left = sandbox.run(&quick(&["x", "-s", "1", "-o", "out"]));
    assert_eq!(left.done(), format!("{}\n", std::path::Path::new("out").join("x-1.png").display()));
}

#[test]
fn stdout_can_be_the_picture() {
    let left = Sandbox::new().run(&quick(&["x", "-o", "-"]));
    assert_eq!(left.code, Some(0), "{}", left.stderr);
    image::load_from_memory(&left.stdout).unwrap();
}

#[test]
fn sizes_and_limits_name_what_is_possible() {
    let sandbox = Sandbox::new();
    for (args, parts) in [
        (&["-W", "513", "x"][..], &["width 513", "512 and 520"][..]),
        (&["--size", "64x7", "x"], &["height 7", "nearest size is 8"]),
        (&["-H", "4096", "x"], &["height 4096", "nearest size is 2048"]),
        (&["--steps", "0", "x"], &["steps 0", "1 to 1000"]),
        (&["--cfg", "-1", "x"], &["guidance scale -1", "0 to 100"]),
        (&["--eta", "2", "x"], &["eta 2", "0 to 1"]),
        (&["--eta", "0.5", "--sampler", "euler", "x"], &["eta 0.5", "euler", "ddim"]),
        (&["-s", "18446744073709551615", "-c", "2", "x"], &["no room for 2 pictures"]),
    ] {
        sandbox.run(args).refused(2, parts);
    }
    assert!(sandbox.files().is_empty());
}

#[test]
fn folders_are_checked_before_the_model_is_loaded() {
    let sandbox = Sandbox::new();
    sandbox.run(&["x", "-o", "no/x.png"]).refused(2, &["'no' does not exist", "hint: ", "mkdir -p no"]);
    sandbox.write("file", b"");
    sandbox.run(&["x", "-o", "file/x.png"]).refused(2, &["'file' does not exist"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_takes_no_files_is_bad_input() {
    // Not even root may create files in /proc.
    Sandbox::new().run(&["x", "-o", "/proc/x.png"]).refused(2, &["'/proc' can't be written to", "hint: "]);
    Sandbox::new()
        .run(&["x", "-o", "/dev/null", "--force"])
        .refused(2, &["'/dev/null' is not a regular file"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_picture_that_can_not_be_written_is_exit_1() {
    let sandbox = Sandbox::new();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let left = sandbox.command(&quick(&["x", "-o", "-"])).stdout(full).output().unwrap();
    assert_eq!(left.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&left.stderr).contains("error: picture 1 of 1"));

    // A name no file can have is told before anything is drawn.
    let long = format!("{}{{index:01}}.png", "x".repeat(300));
    sandbox.run(&quick(&["x", "-o", &long])).refused(2, &["305 bytes: the most is 255"]);
    assert!(sandbox.files().is_empty());
}

#[cfg(unix)]
#[test]
fn a_signal_stops_within_a_step_and_leaves_nothing() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let sandbox = Sandbox::new();
        let mut child = sandbox
            .command(&["x", "-v", "--steps", "1000"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let denoising = stderr.find(|line| line.as_ref().is_ok_and(|line| line == "denoising"));
        assert!(denoising.is_some());
        let sent =
            Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let said: Vec<String> = stderr.map(Result::unwrap).collect();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{said:?}");
        assert!(said.iter().any(|line| line == "interrupted: 0 of 1 pictures written"), "{said:?}");
        assert!(sandbox.files().is_empty());
    }
}

#[test]
fn a_prompt_that_is_cut_is_told() {
    let words = vec!["apple"; 200].join(" ");
    let left = Sandbox::new().run(&quick(&[&words, "-s", "1", "--prompt-syntax", "plain"]));
    left.done();
    assert!(left.stderr.contains("the prompt is too long: its last "), "{}", left.stderr);
}

#[test]
fn a_negative_prompt_without_guidance_is_told_to_be_useless() {
    let left = Sandbox::new().run(&quick(&["x", "-n", "y", "--cfg", "1", "-s", "1"]));
    left.done();
    assert!(left.stderr.contains("the negative prompt has no effect"), "{}", left.stderr);
}

/// Each network is loaded at another moment; a missing tensor is the model's fault in all of them.
#[test]
fn a_missing_tensor_is_exit_3_and_named() {
    let whole = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/models/pocket/pocket.safetensors")).unwrap();
    let sandbox = Sandbox::new();
    for tensor in [
        "text_encoder.encoder.layers.1.mlp.fc1.bias",
        "unet.mid_block.resnets.0.norm1.weight",
        "vae.decoder.layers.0.bias",
    ] {
        let mut damaged = whole.clone();
        let quoted = format!("\"{tensor}\"");
        let at = damaged.windows(quoted.len()).position(|bytes| bytes == quoted.as_bytes()).unwrap();
        damaged[at + quoted.len() - 2] = b'_';
        fs::write(sandbox.join("damaged.safetensors"), damaged).unwrap();
        let left = sandbox.run(&quick(&["x", "-m", "damaged.safetensors"]));
        assert_eq!(left.code, Some(3), "{tensor}: {}", left.stderr);
        assert!(left.stderr.contains(tensor), "{tensor}: {}", left.stderr);
        assert_eq!(sandbox.files(), ["damaged.safetensors"]);
    }
}
