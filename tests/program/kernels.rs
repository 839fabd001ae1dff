//! `POCHADE_KERNEL`: each kernel of this machine draws the built-in model's pictures; what is missing is refused early.

use std::path::Path;

use pochade::compare::compare;
use pochade::kernels::{Isa, VARIABLE};
use serde_json::Value;

use crate::support::model_files::built_in_in_bytes;
use crate::support::sandbox::{Left, Sandbox};

fn run(sandbox: &Sandbox, kernel: &str, args: &[&str]) -> Left {
    sandbox.command(args).env(VARIABLE, kernel).output().unwrap().into()
}

#[test]
fn every_kernel_draws_the_golden_picture_and_is_recorded() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/00.png");
    let golden = image::open(golden).unwrap().to_rgb8();
    let sandbox = Sandbox::new();
    built_in_in_bytes(&sandbox.join("bytes.safetensors"));
    for (isa, model) in
        Isa::available().iter().flat_map(|isa| ["pocket", "bytes.safetensors"].map(|model| (isa, model)))
    {
        let name = isa.short_name();
        let file = format!("{name}-{model}.png");
        let request = ["a red apple on a yellow background", "-s", "100", "--steps", "20", "--cfg", "3"];
        let solver = ["--sampler", "dpmpp_2m", "--schedule", "karras", "-m", model, "-o", &file];
        run(&sandbox, name, &[&request[..], &solver].concat()).done();
        let picture = image::open(sandbox.join(&file)).unwrap().to_rgb8();
        let psnr = compare(&golden, &picture).unwrap().psnr;
        assert!(psnr >= 40.0, "{name}, {model}: {psnr:.1} dB");
        let info: Value = serde_json::from_str(sandbox.run(&["info", "--json", &file]).done()).unwrap();
        assert_eq!(info["kernel"], isa.name());
    }
}

#[test]
fn what_this_machine_lacks_is_refused_before_anything_is_done() {
    let sandbox = Sandbox::new();
    sandbox.write("list.jsonl", br#"{"prompt":"x","seed":1,"id":"x"}"#);
    let before = sandbox.files();
    for args in [
        &["x", "-s", "1"][..],
        &["generate", "x", "-s", "1"],
        &["batch", "list.jsonl"],
        &["verify", "list.jsonl", "--against", "golden"],
        &["quantize", "gone", "int8.safetensors"],
        &["bench"],
    ] {
        // Every machine has the scalar kernel, and none has both of these.
        let missing = if cfg!(target_arch = "aarch64") { "sse2" } else { "neon" };
        for name in [missing, "avx3", " "] {
            let left = run(&sandbox, name, args);
            left.refused(2, &[VARIABLE, &format!("'{name}'"), "scalar"]);
        }
        assert_eq!(sandbox.files(), before, "{args:?}");
    }
    for args in [&["tokens", "x"][..], &["man"], &["models", "list"]] {
        run(&sandbox, "avx3", args).done();
    }
}

#[test]
fn doctor_lists_the_kernels_and_says_which_is_chosen_and_why() {
    let sandbox = Sandbox::new();
    let best = Isa::best().name();
    let free = run(&sandbox, "", &["doctor"]);
    assert!(free.done().contains(&format!("{best}, the fastest")), "{free:?}");

    let held = run(&sandbox, "SCALAR", &["doctor"]);
    assert!(held.done().contains("scalar, held by POCHADE_KERNEL=SCALAR"), "{held:?}");
    assert!(held.done().contains("[scalar] "), "{held:?}");
    let json: Value = serde_json::from_str(run(&sandbox, "scalar", &["doctor", "--json"]).done()).unwrap();
    assert_eq!((&json["kernel"], &json["kernel_asked"]), (&"scalar".into(), &"scalar".into()));
    let names: Vec<_> = Isa::available().iter().map(|isa| Value::from(isa.name())).collect();
    assert_eq!(json["kernels"], Value::from(names));

    let wrong = run(&sandbox, "avx3", &["doctor"]);
    assert!(wrong.done().contains("none, POCHADE_KERNEL=avx3: there is no kernel 'avx3'"), "{wrong:?}");
}
