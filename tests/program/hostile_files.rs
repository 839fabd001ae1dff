//! Files made by others to hang the program, fill its memory, be replaced or steer the terminal.

use std::fs;
use std::path::Path;

use pochade::checkpoint::{Checkpoint, Storage};
use pochade::quantize::Policy;
use serde_json::Value;

use crate::support::model_files as files;
use crate::support::models::small;
use crate::support::sandbox::{Left, Sandbox};

const DRAW: [&str; 9] = ["x", "-s", "1", "--steps", "1", "--size", "64x64", "-o", "out.png"];

/// A model that may be changed, in the sandbox's folder `model`.
fn with_model() -> Sandbox {
    let sandbox = Sandbox::new();
    files::copy_small(&sandbox.join("model"));
    sandbox
}

/// Asserts one line of error and no picture.
#[track_caller]
fn refused(sandbox: &Sandbox, args: &[&str], code: i32, parts: &[&str]) -> Left {
    let left = sandbox.run_in_time(args);
    left.refused(code, parts);
    assert_eq!(left.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{}", left.stderr);
    assert!(!sandbox.join("out.png").exists());
    left
}

#[cfg(unix)]
#[test]
fn a_model_has_no_pipes_and_no_devices_in_it() {
    let sandbox = with_model();
    fs::create_dir(sandbox.join("model/tokenizer")).unwrap();
    let args = [&["-m", "model"], &DRAW[..]].concat();
    for file in [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ] {
        let (path, kept) = (sandbox.join("model").join(file), sandbox.join("kept"));
        let was_there = fs::rename(&path, &kept).is_ok();
        sandbox.pipe(&format!("model/{file}"));
        refused(&sandbox, &args, 3, &[file, "not a regular file"]);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        refused(&sandbox, &args, 3, &[file, "not a regular file"]);
        fs::remove_file(&path).unwrap();
        if was_there {
            fs::rename(&kept, &path).unwrap();
        }
    }
    sandbox.run(&args).done();
}

#[cfg(unix)]
#[test]
fn no_command_waits_for_a_pipe() {
    let sandbox = with_model();
    sandbox.pipe("pipe");
    std::os::unix::fs::symlink("/dev/zero", sandbox.join("zero")).unwrap();
    let model = ["-m", "model"];
    for odd in ["pipe", "zero"] {
        for (code, args) in [
            (3, &["-m", odd][..]),
            (3, &["-m", "model", "--vae", odd]),
            (3, &["-m", "model", "--taesd", odd]),
            (3, &["-m", "model", "--text-encoder", odd]),
            (2, &["-m", "model", "--lora", odd]),
            (2, &["-m", "model", "--embedding", odd]),
            (2, &["-m", "model", "--strength", "1", "--init", odd]),
            (2, &["-m", "model", "--from", odd]),
        ] {
            refused(&sandbox, &[args, &DRAW[..]].concat(), code, &[odd, "not a regular file"]);
        }
        for (code, args) in [
            (2, vec!["info", odd]),
            (3, vec!["models", "show", odd]),
            (3, vec!["convert", odd, "new.safetensors"]),
            (3, vec!["quantize", odd, "new.safetensors"]),
            (3, vec!["tokens", "x", "-m", odd]),
        ] {
            refused(&sandbox, &args, code, &[odd, "not a regular file"]);
        }
    }
    // An output folder is swept of what killed runs left; this is not that.
    fs::create_dir(sandbox.join("out")).unwrap();
    sandbox.pipe("out/.pochade-1.tmp");
    sandbox.write("list.txt", b"x\n");
    let batch =
        ["batch", "list.txt", "--seed", "1", "--steps", "1", "--size", "64x64", "--out-dir", "out", "-q"];
    let left = sandbox.run_in_time(&[&batch[..], &model].concat());
    left.done();
    assert!(sandbox.join("out/.pochade-1.tmp").exists());
    // A stored picture to compare with.
    fs::create_dir(sandbox.join("goldens")).unwrap();
    sandbox.pipe("goldens/a.png");
    sandbox.write("list.jsonl", b"{\"prompt\":\"x\",\"id\":\"a\",\"seed\":1,\"steps\":1}\n");
    let verify = ["verify", "list.jsonl", "--against", "goldens", "-o", "{id}.png", "--size", "64x64"];
    let left = sandbox.run_in_time(&[&verify[..], &model].concat());
    assert_eq!(left.code, Some(1), "{left:?}");
    assert!(String::from_utf8_lossy(&left.stdout).contains("not a regular file"), "{left:?}");
}

#[test]
fn texts_of_a_picture_share_one_budget_wherever_they_are_read() {
    let sandbox = Sandbox::new();
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    for _ in 0..64 {
        encoder.add_ztxt_chunk("parameters".into(), "x".repeat(1 << 20)).unwrap();
    }
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[0]).unwrap();
    writer.finish().unwrap();
    assert!(bytes.len() < 1 << 20);
    sandbox.write("swollen.png", &bytes);
    sandbox.write("list.txt", b"x\n");
    let batch = ["batch", "list.txt", "-m", "pocket", "--seed", "1", "--skip-existing", "-o", "swollen.png"];
    for args in [&["info", "swollen.png"][..], &["info", "swollen.png", "--json"], &batch] {
        refused(&sandbox, args, 2, &["swollen.png"]);
    }
    refused(&sandbox, &[&["--from", "swollen.png"], &DRAW[..]].concat(), 2, &["swollen.png"]);
    assert_eq!(fs::read(sandbox.join("swollen.png")).unwrap(), bytes);
}

#[test]
fn texts_of_a_model_are_read_within_bounds() {
    let sandbox = with_model();
    fs::create_dir(sandbox.join("model/tokenizer")).unwrap();
    let huge = vec![b' '; 33 << 20];
    let args = [&["-m", "model"], &DRAW[..]].concat();
    for file in ["unet/config.json", "model_index.json", "tokenizer/vocab.json"] {
        let path = sandbox.join("model").join(file);
        let kept = fs::read(&path).ok();
        fs::write(&path, &huge).unwrap();
        refused(&sandbox, &args, 3, &[file, "larger than the 32 MiB"]);
        match kept {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
    }
}

#[cfg(unix)]
#[test]
fn only_files_are_replaced() {
    let sandbox = with_model();
    sandbox.pipe("pipe");
    std::os::unix::fs::symlink("/dev/null", sandbox.join("null")).unwrap();
    fs::create_dir(sandbox.join("folder")).unwrap();
    let before = sandbox.files();
    for target in ["pipe", "null", "folder"] {
        for args in [
            &["convert", "model", target, "--force"][..],
            &["quantize", "model", target, "--force"],
            &["quantize", "model", "new.safetensors", "--report", target, "--force"],
        ] {
            refused(&sandbox, args, 2, &[target, "not a regular file"]);
        }
        let folder = ["convert", "model", target, "--format", "diffusers", "--force"];
        if target != "folder" {
            refused(&sandbox, &folder, 2, &[target, "exists already"]);
        }
        assert_eq!(sandbox.files(), before);
        assert!(sandbox.join(target).exists() && !sandbox.join(target).is_file());
    }
    // What a link leads to is another's.
    sandbox.write("victim", b"mine");
    std::os::unix::fs::symlink("victim", sandbox.join("link")).unwrap();
    refused(&sandbox, &["convert", "model", "link"], 2, &["link exists already"]);
    sandbox.run(&["convert", "model", "link", "--force"]).done();
    assert_eq!(fs::read(sandbox.join("victim")).unwrap(), b"mine");
}

#[test]
fn weights_that_are_no_numbers_are_refused_in_every_precision_and_component() {
    let sandbox = with_model();
    let (nan, infinite) = (0x7e00u16.to_le_bytes(), 0xfc00u16.to_le_bytes());
    image::RgbImage::new(64, 64).save(sandbox.join("init.png")).unwrap();
    for (file, tensor, named) in [
        ("unet/diffusion_pytorch_model", "conv_in.weight", "unet.conv_in.weight"),
        (
            "unet/diffusion_pytorch_model",
            "mid_block.resnets.0.conv1.weight",
            "unet.mid_block.resnets.0.conv1.weight",
        ),
        ("unet/diffusion_pytorch_model", "conv_norm_out.bias", "unet.conv_norm_out.bias"),
        ("vae/diffusion_pytorch_model", "decoder.conv_in.weight", "vae.decoder.conv_in.weight"),
        ("vae/diffusion_pytorch_model", "encoder.conv_in.weight", "vae.encoder.conv_in.weight"),
        (
            "text_encoder/model",
            "text_model.embeddings.token_embedding.weight",
            "text_encoder.embeddings.token_embedding.weight",
        ),
        (
            "text_encoder/model",
            "text_model.encoder.layers.0.layer_norm1.weight",
            "text_encoder.encoder.layers.0.layer_norm1.weight",
        ),
        (
            "text_encoder/model",
            "text_model.encoder.layers.0.mlp.fc1.weight",
            "text_encoder.encoder.layers.0.mlp.fc1.weight",
        ),
    ] {
        let path = sandbox.join("model").join(format!("{file}.safetensors"));
        let whole = fs::read(&path).unwrap();
        for (value, precision) in [(nan, "int8"), (nan, "f32"), (infinite, "int8"), (infinite, "f32")] {
            files::overwrite(&path, tensor, &value);
            // Only what starts from a picture needs the encoder.
            let init: &[&str] =
                if tensor.starts_with("encoder.") { &["--init", "init.png", "--strength", "1"] } else { &[] };
            let args = [&["-m", "model", "--precision", precision], init, &DRAW[..]].concat();
            refused(&sandbox, &args, 3, &[named, "infinite or NaN"]);
        }
        refused(&sandbox, &["convert", "model", "new.safetensors"], 3, &[named]);
        refused(&sandbox, &["quantize", "model", "new.safetensors"], 3, &[named]);
        assert!(!sandbox.join("new.safetensors").exists());
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn scales_that_no_model_has_are_refused() {
    let sandbox = Sandbox::new();
    let path = sandbox.join("int8.safetensors");
    let small = small();
    small.write_native(&path, Storage::Int8(&Policy::default())).unwrap();
    let whole = fs::read(&path).unwrap();
    for tensor in [
        "unet.mid_block.resnets.0.conv1.weight_scale",
        "text_encoder.encoder.layers.0.mlp.fc1.weight_scale",
        "vae.decoder.mid_block.resnets.0.conv1.weight_scale",
    ] {
        for scale in [1e38f32, -1.0, f32::NAN, f32::INFINITY, 1e4] {
            files::overwrite(&path, tensor, &scale.to_le_bytes());
            refused(&sandbox, &[&["-m", "int8.safetensors"], &DRAW[..]].concat(), 3, &[tensor, "scales"]);
        }
        fs::write(&path, &whole).unwrap();
    }
}

/// What no terminal may be sent: escape sequences, in one byte too, and turned writing.
const STEERING: &str = "\u{1b}[31m\u{9b}2J\u{202e}\u{7}\r";

#[track_caller]
fn steers_nothing(left: &Left) {
    for text in [&left.stderr, str::from_utf8(&left.stdout).unwrap()] {
        let obeyed = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!text.contains(obeyed), "{text:?}");
    }
}

#[test]
fn what_files_say_does_not_steer_the_terminal() {
    let sandbox = Sandbox::new();
    // A tensor's name.
    let header =
        serde_json::json!({STEERING: {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}).to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat();
    sandbox.write("odd.safetensors", &file);
    let left =
        refused(&sandbox, &[&["-m", "odd.safetensors"], &DRAW[..]].concat(), 3, &["u001b[31m", "u202e"]);
    steers_nothing(&left);
    steers_nothing(&refused(
        &sandbox,
        &[&["--lora", "odd.safetensors"], &DRAW[..]].concat(),
        2,
        &["u001b[31m"],
    ));
    // A picture's text.
    let picture = image::RgbImage::new(8, 8);
    let text = format!("a {STEERING} prompt\nSteps: 1, Seed: 1, Odd{STEERING}: 1");
    sandbox.write("in.png", &pochade::png::encode(&picture, &[("parameters", text)]).unwrap());
    let shown = sandbox.run(&["info", "in.png"]);
    assert!(shown.done().contains(r"a \u001b[31m\u009b2J\u202e\u0007"), "{}", shown.done());
    steers_nothing(&shown);
    let json = sandbox.run(&["info", "in.png", "--json"]);
    steers_nothing(&json);
    let json: Value = serde_json::from_str(json.done()).unwrap();
    assert!(json["request"]["prompt"].as_str().unwrap().contains("\u{1b}[31m\u{9b}2J"));
    // A list's keys and values.
    let line = serde_json::json!({"prompt": "x", STEERING: 1}).to_string() + "\n";
    sandbox.write(
        "list.jsonl",
        [&line, &line[..], "{\"prompt\":\"x\",\"sampler\":\"\u{9b}2J\"}\n"].concat().as_bytes(),
    );
    let left = sandbox.run(&["batch", "list.jsonl", "-m", "pocket", "--seed", "1"]);
    left.refused(2, &["u001b[31m", "u009b2J"]);
    steers_nothing(&left);
}

/// Starts `args`, and ends it as soon as a temporary file is there.
#[cfg(unix)]
fn ended_while_writing(sandbox: &Sandbox, args: &[&str], signal: &str) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    let temporary = || sandbox.files().iter().any(|name| name.starts_with(".pochade-"));
    for _ in 0..50 {
        let mut child = sandbox.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while child.try_wait().unwrap().is_none() && !temporary() {
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
        Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        let status = child.wait().unwrap();
        if !status.success() {
            return status.code().or(status.signal().map(|signal| 128 + signal));
        }
        // The signal came too late.
        let made = Path::new(args[2]);
        fs::remove_file(sandbox.join(args[2]))
            .or_else(|_| fs::remove_dir_all(sandbox.path().join(made)))
            .unwrap();
    }
    panic!("{args:?} was never caught while it wrote");
}

/// A report of what layers of `checkpoint` cost, as `--measured` reads it, but made up.
#[cfg(unix)]
fn costs(checkpoint: &Checkpoint) -> serde_json::Value {
    use pochade::quantize::Bits;

    let (tensors, policy) = (checkpoint.tensors(), Policy::all(Bits::Four));
    let is_rounded =
        |name: &&str| policy.stored_bits(name, tensors.view(name).unwrap().shape) != Bits::Sixteen;
    let layer = |name| serde_json::json!({"layer": name, "tensors": [name], "four_bits": [1e-3], "eight_bits": [1e-5]});
    let layers: Vec<_> = tensors.parameters().filter(is_rounded).map(layer).collect();
    serde_json::json!({
        "model": checkpoint.name(), "prompts": [], "steps": 1, "width": 64, "height": 64, "seed": 0,
        "timesteps": [999.0], "layers": layers,
    })
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_nothing_of_a_model_and_a_kill_is_swept() {
    let sandbox = Sandbox::new();
    let quick = ["--measured", "r.json", "--report-size", "64", "--report-prompt", "x"];
    let trying = ["quantize", "pocket.safetensors", "new.safetensors", "--quality", "30"];
    let trying = [&trying[..], &quick].concat();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        for args in [
            &["convert", "pocket.safetensors", "new.safetensors", "--storage", "f32"][..],
            &["quantize", "pocket.safetensors", "new.safetensors"],
            &["convert", "pocket.safetensors", "new", "--format", "diffusers", "--storage", "f32"],
            &["prepack", "int8.safetensors"],
            &trying,
        ] {
            if !sandbox.join("pocket.safetensors").exists() {
                let built_in = Checkpoint::built_in().unwrap();
                let floats = Storage::Float(pochade::checkpoint::FloatType::F32);
                built_in.write_native(&sandbox.join("pocket.safetensors"), floats).unwrap();
                sandbox.write("int8.safetensors", include_bytes!("../../models/pocket/pocket.safetensors"));
                sandbox.write("r.json", costs(&built_in).to_string().as_bytes());
            }
            assert_eq!(ended_while_writing(&sandbox, args, signal), Some(code), "{args:?}");
            assert_eq!(sandbox.files(), ["int8.safetensors", "pocket.safetensors", "r.json"], "{args:?}");
        }
    }
    for args in [
        &["convert", "pocket.safetensors", "new.safetensors", "--storage", "f32"][..],
        &["convert", "pocket.safetensors", "new", "--format", "diffusers", "--storage", "f32"],
    ] {
        assert_eq!(ended_while_writing(&sandbox, args, "KILL"), Some(137), "{args:?}");
        let left: Vec<String> = sandbox.files().into_iter().filter(|name| name.starts_with('.')).collect();
        assert_eq!(left.len(), 1, "{left:?}");
        let file = fs::File::open(sandbox.join(&left[0])).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(600)).unwrap();
        sandbox.run(args).done();
        assert!(!sandbox.join(&left[0]).exists());
        let _ = fs::remove_file(sandbox.join(args[2]));
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_can_not_be_written_whole_is_the_disks_fault() {
    let sandbox = with_model();
    let limits = "trap '' XFSZ; ulimit -f 1000";
    for args in [
        &["convert", "model", "new.safetensors"][..],
        &["quantize", "model", "new.safetensors"],
        &["convert", "model", "new", "--format", "diffusers"],
    ] {
        let left = sandbox.run_limited(limits, args);
        left.refused(1, &["can't write new"]);
        assert!(!left.stderr.contains("panicked"));
        assert_eq!(sandbox.files(), ["model"]);
    }
}
