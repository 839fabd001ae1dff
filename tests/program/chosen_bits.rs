//! `quantize --size` and `--quality`: what they promise holds for the file, choices are the same again, and what can't be is said.

use std::fs;
use std::sync::OnceLock;

use pochade::checkpoint::Checkpoint;
use serde_json::Value;

use crate::support::model_files::disturbed_floats;
use crate::support::sandbox::{Left, Sandbox};

/// Little to measure with.
const LITTLE: [&str; 4] = ["--report-prompt", "a dog", "--report-size", "64"];

/// A folder with floats that are much like the built-in model's.
fn with_floats() -> Sandbox {
    let sandbox = Sandbox::new();
    disturbed_floats(&sandbox.join("floats.safetensors"), 0.15);
    sandbox
}

fn quantize(sandbox: &Sandbox, file: &str, args: &[&str]) -> Left {
    sandbox.run(&[&["quantize", "floats.safetensors", file], args, &LITTLE].concat())
}

/// Has a report written to choose by, of one timestep, with a file of at most so many MB; what stdout then has.
fn report(sandbox: &Sandbox, name: &str, megabytes: &str, keep: &[&str]) -> String {
    let report = ["--size", megabytes, "--report", name, "--report-steps", "1"];
    quantize(sandbox, "reported.safetensors", &[&report, keep].concat()).done().to_owned()
}

/// The same of all layers, which is measured once for all tests.
fn with_report() -> Sandbox {
    static MEASURED: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    let sandbox = with_floats();
    let [report, file] = MEASURED.get_or_init(|| {
        let table = report(&sandbox, "r.json", "9MB", &[]);
        let table: Vec<&str> = table.lines().collect();
        assert!(
            table[0].starts_with("SQNR in dB") && table[0].ends_with("4 bits  8 bits  bits"),
            "{}",
            table[0]
        );
        assert!(table.last().unwrap().starts_with("all of them together"));
        assert_eq!(table.len() - 2, read(&sandbox, "r.json")["layers"].as_array().unwrap().len());
        ["r.json", "reported.safetensors"].map(|name| fs::read(sandbox.join(name)).unwrap())
    });
    sandbox.write("r.json", report);
    sandbox.write("reported.safetensors", file);
    sandbox
}

fn read(sandbox: &Sandbox, name: &str) -> Value {
    serde_json::from_slice(&fs::read(sandbox.join(name)).unwrap()).unwrap()
}

fn json(left: &Left) -> Value {
    serde_json::from_str(left.done()).unwrap()
}

fn length(sandbox: &Sandbox, name: &str) -> u64 {
    fs::metadata(sandbox.join(name)).unwrap().len()
}

fn output(json: &Value) -> f64 {
    json["fidelity"]["output_mean_sqnr"].as_f64().unwrap()
}

/// How many tensors have so many bits.
fn tensors(json: &Value, bits: u64) -> u64 {
    let widths = json["widths"].as_array().unwrap();
    widths.iter().find(|width| width["bits"] == bits).unwrap()["tensors"].as_u64().unwrap()
}

#[test]
fn json_tells_what_is_in_the_file() {
    let sandbox = with_floats();
    let to = |source: &str, file: &str, args: &[&str]| {
        json(&sandbox.run(&[&["quantize", source, file, "--json"], args].concat()))
    };
    let four = to("floats.safetensors", "four.safetensors", &["--bits", "*=4"]);
    let counts = [4, 8].map(|bits| tensors(&four, bits));
    // The sensitive layers: both of the time embedding's, what enters seven transformers, two shortcuts.
    assert!(counts[0] > 100 && counts[1] == 11, "{four}");
    // What has lost bits doesn't get them back.
    let again = to("four.safetensors", "again.safetensors", &[]);
    assert_eq!([4, 8].map(|bits| tensors(&again, bits)), counts, "{again}");
    for written in [four, again] {
        let widths = written["widths"].as_array().unwrap().iter();
        let bytes: u64 = widths.map(|width| width["bytes"].as_u64().unwrap()).sum();
        let header = written["bytes"].as_u64().unwrap() - bytes;
        assert!((1..200_000).contains(&header), "{written}");
    }
}

#[test]
fn files_are_no_larger_than_asked_for_and_the_larger_the_better() {
    let sandbox = with_report();
    let measured = read(&sandbox, "r.json");
    assert!(length(&sandbox, "reported.safetensors") <= 9_000_000);
    let layers = measured["layers"].as_array().unwrap();
    let lost = |bits: &str| layers.iter().map(|layer| layer[bits][0].as_f64().unwrap()).sum::<f64>();
    assert!(lost("four_bits") > 10.0 * lost("eight_bits"), "{} {}", lost("four_bits"), lost("eight_bits"));
    assert!(layers.iter().any(|layer| layer["layer"].as_str().unwrap().starts_with("text_encoder.")));
    assert!(layers.iter().any(|layer| layer["layer"].as_str().unwrap().starts_with("vae.decoder.")));

    let choose = |file: &str, size: &str| {
        let args = ["--size", size, "--measured", "r.json", "--json", "--force"];
        let found = json(&quantize(&sandbox, file, &args));
        assert_eq!(found["bytes"], length(&sandbox, file));
        found
    };
    let mut before = choose("a.safetensors", "7.3MB");
    for (size, limit) in [("8000KB", 8_000_000), ("9MB", 9_000_000), ("13MiB", 13 << 20)] {
        let found = choose("b.safetensors", size);
        let bytes = found["bytes"].as_u64().unwrap();
        assert!(bytes <= limit, "{bytes} of {size}");
        // What is left is less than the next layer would take.
        assert!(bytes > limit - limit / 20, "{bytes} of {size}");
        assert!(found["expected_sqnr"].as_f64() > before["expected_sqnr"].as_f64());
        assert!(output(&found) > output(&before), "{size}: {} {}", output(&found), output(&before));
        assert!(tensors(&found, 4) < tensors(&before, 4));
        before = found;
    }
    // All rounded to bytes is no better than as many bytes, chosen.
    let eight = json(&quantize(&sandbox, "eight.safetensors", &["--compare", "--json"]));
    assert_eq!((tensors(&eight, 4), &eight["expected_sqnr"]), (0, &Value::Null));
    let chosen = choose("b.safetensors", &format!("{}KB", length(&sandbox, "eight.safetensors") / 1000));
    assert!(output(&chosen) > output(&eight) + 1.0, "{} {}", output(&chosen), output(&eight));

    // The same again, and as it was when it was measured.
    choose("b.safetensors", "9MB");
    let bytes = |name: &str| fs::read(sandbox.join(name)).unwrap();
    assert!(bytes("b.safetensors") == bytes("reported.safetensors"));
    let picture = sandbox.run(&["-q", "-m", "a.safetensors", "x", "-s", "1", "--steps", "1"]);
    assert_eq!(picture.done(), "x-1.png\n");
    let types = sandbox.run(&["info", "a.safetensors"]);
    assert!(types.done().contains("F16 I4 I8"), "{}", types.done());

    let before = sandbox.files();
    let refused = quantize(&sandbox, "new.safetensors", &["--size", "3MB", "--measured", "r.json"]);
    refused.refused(2, &["can't be so small"]);
    assert_eq!(sandbox.files(), before);
    // What it says is so, to a tenth of a megabyte.
    let least = refused.stderr.split("it takes ").nth(1).unwrap().split(" MB").next().unwrap();
    let least: f64 = least.parse().unwrap();
    choose("least.safetensors", &format!("{least}MB"));
    let (less, part) = (format!("{:.1}MB", least - 0.1), "can't be so small");
    quantize(&sandbox, "new.safetensors", &["--size", &less, "--measured", "r.json"]).refused(2, &[part]);
}

#[test]
fn files_keep_what_is_asked_for_and_no_smaller_one_was_chosen() {
    let sandbox = with_report();
    let choose = |file: &str, quality: &str, more: &[&str]| {
        let args = ["--quality", quality, "--measured", "r.json", "--json", "--force"];
        json(&quantize(&sandbox, file, &[&args, more].concat()))
    };
    let mut least = 0;
    for (quality, decibel) in [("30", 30.0), ("33.5dB", 33.5), ("40 dB", 40.0)] {
        let found = choose("a.safetensors", quality, &[]);
        assert!((decibel..decibel + 1.0).contains(&output(&found)), "{quality}: {}", output(&found));
        assert!(length(&sandbox, "a.safetensors") > least);
        least = length(&sandbox, "a.safetensors");
    }
    // What was promised is what is found afterwards.
    let (file, other) = ("a.safetensors", "b.safetensors");
    let size = format!("{}KB", least / 1000 + 1);
    quantize(&sandbox, other, &["--size", &size, "--measured", "r.json"]).done();
    assert!(fs::read(sandbox.join(file)).unwrap() == fs::read(sandbox.join(other)).unwrap());
    // Learned rounding reaches the same in less.
    let learned = ["--method", "gptq", "--calibrate-size", "64", "--calibrate-steps", "2"];
    let found = choose("learned.safetensors", "40", &learned);
    assert!(output(&found) >= 40.0, "{}", output(&found));
    assert!(length(&sandbox, "learned.safetensors") < least);

    let before = sandbox.files();
    let refused = quantize(&sandbox, "new.safetensors", &["--quality", "150dB", "--measured", "r.json"]);
    refused.refused(2, &["can't keep so much", "dB above its error"]);
    assert_eq!(sandbox.files(), before);
}

#[test]
fn layers_to_keep_are_kept() {
    let sandbox = with_report();
    let keep = ["--keep", "unet.down_blocks.0.*", "--keep", "*.attn1.to_v"];
    report(&sandbox, "kept.json", "9MB", &[&keep[..], &["--force"]].concat());
    let measured = read(&sandbox, "kept.json");
    let layers: Vec<&str> =
        measured["layers"].as_array().unwrap().iter().map(|layer| layer["layer"].as_str().unwrap()).collect();
    assert!(!layers.iter().any(|layer| layer.contains("down_blocks.0.resnets.0.conv1")));
    // What ran as one layer with what is kept is rounded all the same, alone.
    let block = "unet.mid_block.attentions.0.transformer_blocks.0.attn1";
    assert!(layers.contains(&format!("{block}.to_q").as_str()), "{layers:?}");
    let written = Checkpoint::open(&sandbox.join("reported.safetensors")).unwrap();
    let type_name = |name: &str| written.tensors().view(name).unwrap().type_name();
    assert_eq!(type_name(&format!("{block}.to_v.weight")), "F16");
    assert_eq!(type_name("unet.down_blocks.0.resnets.0.conv1.weight"), "F16");
    assert!(["I4", "I8"].contains(&type_name(&format!("{block}.to_q.weight")).as_str()));
    // A report of all layers serves too, one that lacks some does not.
    let by = |report: &str, keep: &[&str]| {
        let args = ["--size", "9MB", "--measured", report, "--force"];
        quantize(&sandbox, "new.safetensors", &[&args, keep].concat())
    };
    by("r.json", &keep).done();
    let written = Checkpoint::open(&sandbox.join("new.safetensors")).unwrap();
    assert_eq!(written.tensors().view(&format!("{block}.to_v.weight")).unwrap().type_name(), "F16");
    by("kept.json", &[]).refused(2, &["kept.json", "another --keep"]);
}

#[test]
fn contradictions_and_useless_reports_are_refused() {
    let sandbox = with_report();
    crate::support::model_files::copy_small(&sandbox.join("small"));
    let text = fs::read_to_string(sandbox.join("r.json")).unwrap();
    let edited = |name: &str, edit: &dyn Fn(&mut Value)| {
        let mut json: Value = serde_json::from_str(&text).unwrap();
        edit(&mut json);
        sandbox.write(name, json.to_string().as_bytes());
    };
    edited("nan.json", &|json| json["layers"][0]["four_bits"][0] = Value::Null);
    edited("negative.json", &|json| json["layers"][0]["eight_bits"][0] = (-1).into());
    edited("short.json", &|json| json["layers"][0]["four_bits"] = serde_json::json!([]));
    edited("lacking.json", &|json| drop(json["layers"].as_array_mut().unwrap().remove(0)));
    edited("twice.json", &|json| json["layers"][1]["tensors"] = json["layers"][0]["tensors"].clone());
    edited("empty.json", &|json| {
        json["timesteps"] = serde_json::json!([]);
        json["layers"] = serde_json::json!([]);
    });
    sandbox.write("plain.json", b"{}");
    let before = sandbox.files();
    let refused = |args: &[&str], parts: &[&str]| {
        quantize(&sandbox, "new.safetensors", args).refused(2, parts);
    };
    refused(&["--size", "9MB", "--bits", "conv3x3=4"], &["--size", "--bits", "cannot be used with"]);
    refused(&["--quality", "30", "--bits", "conv3x3=4"], &["--quality", "--bits", "cannot be used with"]);
    refused(&["--quality", "30", "--size", "9MB"], &["--quality", "--size", "cannot be used with"]);
    refused(&["--measured", "r.json"], &["--size", "--quality"]);
    refused(&["--size", "9MB", "--measured", "r.json", "--report-steps", "2"], &["--report-steps"]);
    refused(&["--size", "9"], &["a number and its unit"]);
    refused(&["--quality", "-3dB"], &["-3"]);
    refused(&["--quality", "good"], &["expected decibel"]);
    let by = |report: &str, part: &str| {
        refused(&["--size", "9MB", "--measured", report], &[report, part]);
    };
    by("gone.json", "gone.json");
    by("plain.json", "no report of --size or --quality");
    by("nan.json", "no report");
    by("negative.json", "errors of");
    by("short.json", "no error for each timestep");
    by("lacking.json", "it lacks");
    by("twice.json", "twice");
    by("empty.json", "no timesteps");
    // Another model's.
    let small = ["quantize", "small", "new.safetensors", "--size", "3MB", "--measured", "r.json"];
    sandbox.run(&[&small[..], &LITTLE].concat()).refused(2, &["another model"]);
    let quantized = ["quantize", "reported.safetensors", "new.safetensors", "--size", "9MB"];
    sandbox.run(&[&quantized[..], &LITTLE].concat()).refused(3, &["quantized already"]);
    assert_eq!(sandbox.files(), before);
}
