//! `quantize` and `convert` on the command line: files, the report, and what is refused before anything is written.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use pochade::checkpoint::{Checkpoint, FloatType, Storage};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::models::data;
use crate::support::planting::{Place, Spread, plant};
use crate::support::sandbox::Sandbox;

/// The built-in model, whose weights are integers, as a float file outside the sandbox.
fn pocket(folder: &TempDir) -> String {
    let path = folder.path().join("pocket.safetensors");
    Checkpoint::built_in().unwrap().write_native(&path, Storage::Float(FloatType::F16)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_int8_file_draws_and_becomes_floats_again() {
    let (sandbox, folder) = (Sandbox::new(), TempDir::new().unwrap());
    let pocket = pocket(&folder);
    let left = sandbox.run(&["quantize", &pocket, "int8.safetensors", "--keep", "unet.mid_block.*"]);
    assert_eq!(left.done(), "");
    assert!(left.stderr.contains("int8.safetensors: 1"), "{}", left.stderr);
    let picture = sandbox.run(&["-q", "-m", "int8.safetensors", "x", "-s", "1", "--steps", "1"]);
    assert_eq!(picture.done(), "x-1.png\n");
    sandbox.run(&["convert", "int8.safetensors", "f16.safetensors"]).done();
    sandbox.run(&["convert", "int8.safetensors", "folder", "--format", "diffusers"]).done();
    assert!(sandbox.join("folder/unet/diffusion_pytorch_model.safetensors").exists());
    let bytes = |path: &Path| fs::metadata(path).unwrap().len();
    assert_eq!(bytes(&sandbox.join("f16.safetensors")) / 100_000, bytes(Path::new(&pocket)) / 100_000);
    // The folder is a model, and is not replaced.
    let again = ["convert", "int8.safetensors", "folder", "--format", "diffusers", "--force"];
    sandbox.run(&again).refused(2, &["folder exists already"]);
    let picture = sandbox.run(&["-q", "-m", "folder", "x", "-s", "2", "--steps", "1"]);
    assert_eq!(picture.done(), "x-2.png\n");
}

#[test]
fn a_lora_becomes_part_of_what_is_written() {
    let sandbox = Sandbox::new();
    let small = data("small").display().to_string();
    let lora = format!("{}:0.7", data("reference/lora_kohya.safetensors").display());
    let merge = |args: &[&str]| sandbox.run(&[args, &["--lora", &lora]].concat());
    let draw = |name: &str, args: &[&str]| {
        let settings = ["a cat", "-s", "1", "--size", "64x64", "--steps", "6", "-q", "-o", name];
        sandbox.run(&[&settings[..], args].concat()).done();
        image::open(sandbox.join(name)).unwrap().into_rgb8()
    };
    let left = merge(&["convert", &small, "f32.safetensors", "--storage", "f32"]);
    assert!(left.stderr.contains("at 0.7: merged into 144 layers"), "{}", left.stderr);
    merge(&["convert", &small, "folder", "--format", "diffusers"]).done();
    merge(&["quantize", &small, "int8.safetensors"]).done();
    sandbox.run(&["quantize", &small, "plain.safetensors"]).done();
    merge(&["convert", "plain.safetensors", "f16.safetensors"]).done();
    for (precision, model, merged, least) in [
        ("f32", small.as_str(), "f32.safetensors", f64::INFINITY),
        ("f32", &small, "folder", 60.0),
        // Rounded from f16 or from the floats themselves, this model's pictures are 38 dB apart without a LoRA too.
        ("int8", &small, "int8.safetensors", 36.0),
        ("f32", "plain.safetensors", "f16.safetensors", 60.0),
    ] {
        let precision = ["--precision", precision];
        let plain = draw("plain.png", &[&["-m", model, "--force"], &precision[..]].concat());
        let beside =
            draw("beside.png", &[&["-m", model, "--force", "--lora", &lora], &precision[..]].concat());
        let within = draw("within.png", &[&["-m", merged, "--force"], &precision[..]].concat());
        let psnr = |a, b| pochade::compare::compare(a, b).unwrap().psnr;
        assert!(psnr(&beside, &within) >= least, "{merged}: {}", psnr(&beside, &within));
        assert!(psnr(&beside, &plain) < 30.0, "{merged}: {}", psnr(&beside, &plain));
    }
    let before = sandbox.files();
    for command in ["convert", "quantize"] {
        let refused = |lora: &str, part: &str| {
            sandbox.run(&[command, &small, "new.safetensors", "--lora", lora]).refused(2, &[part]);
        };
        refused("gone.safetensors", "gone.safetensors");
        refused("a:1e9", "out of range");
    }
    assert_eq!(sandbox.files(), before);
}

#[test]
fn layers_get_the_bits_that_are_asked_for() {
    let (sandbox, folder) = (Sandbox::new(), TempDir::new().unwrap());
    let pocket = pocket(&folder);
    let quantize = |args: &[&str]| sandbox.run(&[&["quantize", &pocket], args].concat());
    quantize(&["eight.safetensors"]).done();
    quantize(&["mixed.safetensors", "--bits", "conv3x3=4,*.to_v=16", "--bits", "text_encoder.*=4"]).done();
    quantize(&["four.safetensors", "--bits", "*=4", "--keep", "unet.mid_block.*"]).done();
    let bytes = |name: &str| fs::metadata(sandbox.join(name)).unwrap().len();
    assert!(bytes("four.safetensors") < bytes("mixed.safetensors"));
    assert!(bytes("mixed.safetensors") < bytes("eight.safetensors"));
    let shown = sandbox.run(&["info", "mixed.safetensors"]);
    let types = |component: &str| {
        let line = shown.done().lines().find(|line| line.starts_with(component)).unwrap();
        line.rsplit(" MB, ").next().unwrap().to_owned()
    };
    assert_eq!(
        (types("unet"), types("text_encoder"), types("vae")),
        ("F16 I4 I8".into(), "F16 I4".into(), "F16 I8".into())
    );
    let picture = sandbox.run(&["-q", "-m", "mixed.safetensors", "x", "-s", "1", "--steps", "1"]);
    assert_eq!(picture.done(), "x-1.png\n");
    sandbox.run(&["convert", "mixed.safetensors", "folder", "--format", "diffusers"]).done();
    let picture = sandbox.run(&["-q", "-m", "folder", "x", "-s", "2", "--steps", "1"]);
    assert_eq!(picture.done(), "x-2.png\n");
    for (rule, part) in [
        ("conv3x3", "PATTERN=BITS"),
        ("conv3x3=5", "4, 8 or 16 bits"),
        ("unet.conv_in=4", "too sensitive"),
        ("unet.middle.*=4", "'unet.middle.*'"),
    ] {
        quantize(&["new.safetensors", "--bits", rule]).refused(2, &[part]);
        assert!(!sandbox.join("new.safetensors").exists());
    }
}

#[test]
fn a_report_is_a_table_and_json() {
    let (sandbox, folder) = (Sandbox::new(), TempDir::new().unwrap());
    let report = ["--report", "report.json", "--report-steps", "1", "--report-prompt", "a dog"];
    let left = sandbox.run(&[&["quantize", &pocket(&folder), "int8.safetensors"], &report[..]].concat());
    let table: Vec<&str> = left.done().lines().collect();
    assert!(table[0].starts_with("SQNR in dB") && table[0].ends_with("output"), "{}", table[0]);
    assert!(table.last().unwrap().starts_with("all of them together"));
    let json: Value = serde_json::from_slice(&fs::read(sandbox.join("report.json")).unwrap()).unwrap();
    assert_eq!(json["model"], "pocket");
    assert_eq!(json["fidelity"]["timesteps"].as_array().unwrap().len(), 20);
    assert!(left.stderr.contains("UNet's output, signal to error"), "{}", left.stderr);
    assert_eq!(json["prompts"], serde_json::json!(["a dog"]));
    let layers = json["layers"].as_array().unwrap();
    assert_eq!(layers.len() + 2, table.len());
    for (line, layer) in table[1..].iter().zip(layers) {
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells[0], layer["layer"]);
        assert_eq!(cells[3], format!("{:.1}", layer["output_sqnr"].as_f64().unwrap()));
    }
}

#[test]
fn a_comparison_is_part_of_the_summary() {
    let (sandbox, folder) = (Sandbox::new(), TempDir::new().unwrap());
    let compare = ["--compare", "--report-prompt", "a dog", "--report-size", "64"];
    let left = sandbox.run(&[&["quantize", &pocket(&folder), "int8.safetensors"], &compare[..]].concat());
    assert_eq!(left.done(), "");
    for part in ["over 20 timesteps", "final latents", "on average over 1,", "with another seed"] {
        assert!(left.stderr.contains(part), "{part}: {}", left.stderr);
    }
    assert_eq!(sandbox.files(), ["int8.safetensors"]);
}

#[test]
fn rounding_is_learned_from_a_list() {
    let (sandbox, folder) = (Sandbox::new(), TempDir::new().unwrap());
    let pocket = pocket(&folder);
    sandbox.write(
        "list.jsonl",
        b"{\"prompt\": \"a dog\", \"seed\": 3, \"steps\": 4}\n{\"prompt\": \"a red fox\"}\n",
    );
    let learn = ["--method", "gptq", "--calibrate-size", "64", "--calibrate-steps", "2"];
    let quantize = |args: &[&str]| sandbox.run(&[&["quantize", &pocket], args, &learn[..]].concat());
    sandbox.run(&["quantize", &pocket, "nearest.safetensors"]).done();
    assert_eq!(quantize(&["learned.safetensors", "--calibrate", "list.jsonl"]).done(), "");
    let file = |name: &str| fs::read(sandbox.join(name)).unwrap();
    assert_eq!(file("learned.safetensors").len() / 1000, file("nearest.safetensors").len() / 1000);
    // The same again is the same file, other inputs make another one.
    quantize(&["again.safetensors", "--calibrate", "list.jsonl"]).done();
    assert!(file("again.safetensors") == file("learned.safetensors"));
    sandbox.write("other.txt", b"# one a line\nan owl\n");
    quantize(&["other.safetensors", "--calibrate", "other.txt"]).done();
    assert!(file("other.safetensors") != file("learned.safetensors"));
    let picture = sandbox.run(&["-q", "-m", "learned.safetensors", "x", "-s", "1", "--steps", "1"]);
    assert_eq!(picture.done(), "x-1.png\n");

    sandbox.write("empty.txt", b"\n# nothing\n");
    sandbox.write("wrong.jsonl", b"{\"prompt\": \"a\"}\n{\"prompt\": \"a\", \"stpes\": 3}\n");
    sandbox.write("lora.jsonl", b"{\"prompt\": \"a\", \"lora\": [\"x.safetensors\"]}\n");
    for (list, part) in [
        ("missing.txt", "missing.txt"),
        ("empty.txt", "empty.txt has no prompts"),
        ("wrong.jsonl", "wrong.jsonl, line 2: unknown key 'stpes'"),
        ("lora.jsonl", "lora.jsonl, line 1"),
    ] {
        quantize(&["new.safetensors", "--calibrate", list]).refused(2, &[part]);
    }
    for flag in [["--calibrate", "list.jsonl"], ["--calibrate-size", "64"], ["--calibrate-steps", "2"]] {
        let refused = sandbox.run(&[&["quantize", &pocket, "new.safetensors"], &flag[..]].concat());
        refused.refused(2, &["--method gptq"]);
    }
    let again = ["quantize", "learned.safetensors", "new.safetensors", "--method", "gptq"];
    sandbox.run(&again).refused(3, &["quantized already"]);
    assert!(!sandbox.join("new.safetensors").exists());
}

/// By either method, weights whose outliers no factors undo are what they were, in 16 bits, and the command says so.
#[test]
fn outliers_that_no_factors_undo_stay_float() {
    let sandbox = Sandbox::new();
    let outliers = Spread::Outliers { share: 0.05, times: 100.0 };
    let small = Checkpoint::open(&data("small")).unwrap();
    let source = plant(&small, Place::Rotated, outliers, 1, &sandbox.join("planted.safetensors"));
    sandbox.write("list.txt", b"an owl\n");
    let learn =
        ["--method", "gptq", "--calibrate", "list.txt", "--calibrate-size", "64", "--calibrate-steps", "1"];
    for (file, args) in [("nearest.safetensors", &[][..]), ("learned.safetensors", &learn[..])] {
        let left = sandbox.run(&[&["quantize", "planted.safetensors", file], args].concat());
        left.done();
        assert!(left.stderr.contains("layers stay in 16 bits for their outliers, e.g. unet."), "{left:?}");
        let written = Checkpoint::open(&sandbox.join(file)).unwrap();
        let kept: Vec<&str> =
            written.tensors().parameters().filter(|name| name.ends_with("to_v.weight")).collect();
        assert!(!kept.is_empty());
        for name in kept {
            let view = source.tensors().view(name).unwrap();
            let values = |checkpoint: &Checkpoint| checkpoint.tensors().f32(name, view.shape).unwrap();
            for (written, planted) in values(&written).iter().zip(values(&source)) {
                assert!(
                    (written - planted).abs() <= planted.abs() / 2000.0 + 1e-7,
                    "{name} {written} {planted}"
                );
            }
        }
    }
}

#[test]
fn an_interrupted_calibration_goes_on_where_it_was() {
    let (sandbox, folder) = (Sandbox::new(), TempDir::new().unwrap());
    let pocket = pocket(&folder);
    let quantize = |file: &'static str| {
        ["quantize", &pocket, file, "--method", "gptq", "--calibrate-size", "64", "--calibrate-steps", "2"]
    };
    let mut child = sandbox.command(&quantize("a.safetensors")).stderr(Stdio::null()).spawn().unwrap();
    // Two pictures of sixteen have been drawn, and nothing has been learned.
    while !sandbox.join("a.safetensors.learning/run-1.safetensors").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!sandbox.join("a.safetensors").exists());

    let left = sandbox.run(&quantize("a.safetensors"));
    left.done();
    assert!(left.stderr.contains("going on where an earlier run left off"), "{left:?}");
    let left = sandbox.run(&quantize("b.safetensors"));
    left.done();
    assert!(!left.stderr.contains("going on"), "{left:?}");
    let file = |name: &str| fs::read(sandbox.join(name)).unwrap();
    assert!(file("a.safetensors") == file("b.safetensors"));
    assert_eq!(sandbox.files(), ["a.safetensors", "b.safetensors"]);

    sandbox.write("c.safetensors.learning", b"mine");
    sandbox.run(&quantize("c.safetensors")).refused(1, &["c.safetensors.learning"]);
    assert_eq!(file("c.safetensors.learning"), b"mine");
}

#[test]
fn rounding_is_learned_by_descent_too() {
    let sandbox = Sandbox::new();
    let small = data("small");
    let small = small.to_str().unwrap();
    let quantize = |file: &str, method: &str| {
        // Of the middle block, or it would take a minute.
        let keep = ["--keep", "unet.up_blocks.*", "--keep", "unet.down_blocks.*"];
        let learn = ["--calibrate", "list.txt", "--calibrate-size", "64", "--calibrate-steps", "2"];
        let args = [&["quantize", small, file, "--method", method], &keep[..], &learn[..]];
        sandbox.run(&args.concat()).done();
        fs::read(sandbox.join(file)).unwrap()
    };
    sandbox.write("list.txt", b"an owl\n");
    let found = quantize("descent.safetensors", "adaround");
    assert!(found != quantize("gptq.safetensors", "gptq"));
    let picture = ["-q", "-m", "descent.safetensors", "x", "-s", "1", "--steps", "1", "--size", "64x64"];
    assert_eq!(sandbox.run(&picture).done(), "x-1.png\n");
}

#[test]
fn mistakes_are_refused_before_anything_is_written() {
    let (sandbox, folder) = (Sandbox::new(), TempDir::new().unwrap());
    sandbox.write("there.safetensors", b"mine");
    let pocket = pocket(&folder);
    let quantize = |args: &[&str]| sandbox.run(&[&["quantize", &pocket], args].concat());
    quantize(&["there.safetensors"]).refused(2, &["there.safetensors exists already", "--force"]);
    quantize(&["new.safetensors", "--report", "there.safetensors"]).refused(2, &["exists already"]);
    quantize(&["new.safetensors", "--report", "no/such/report.json"]).refused(2, &["no/such"]);
    quantize(&["no/such/new.safetensors"]).refused(2, &["no/such"]);
    sandbox.run(&["convert", &pocket, "no/such/folder", "--format", "diffusers"]).refused(2, &["no/such"]);
    quantize(&["new.safetensors", "--keep", "unet.middle.*"]).refused(2, &["'unet.middle.*'"]);
    quantize(&["new.safetensors", "--report-steps", "2"]).refused(2, &["--report"]);
    quantize(&["new.safetensors", "--report", "r.json", "--report-size", "100"])
        .refused(2, &["multiple of 8"]);
    sandbox.run(&["quantize", "missing", "new.safetensors"]).refused(3, &["missing"]);
    assert_eq!(sandbox.files(), ["there.safetensors"]);

    quantize(&["int8.safetensors"]).done();
    let again = ["quantize", "int8.safetensors", "new.safetensors", "--report", "r.json"];
    sandbox.run(&again).refused(3, &["quantized already"]);
    assert_eq!(sandbox.files(), ["int8.safetensors", "there.safetensors"]);
}
