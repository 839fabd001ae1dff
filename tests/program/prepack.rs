//! `prepack`: what it writes is used, noted when it doesn't fit, never put in another file's place.

use std::fs;

use crate::support::sandbox::Sandbox;

/// A folder with an int8 file, and its packed one's name.
fn with_model() -> (Sandbox, String) {
    let sandbox = Sandbox::new();
    sandbox.write("model.safetensors", include_bytes!("../../models/pocket/pocket.safetensors"));
    let packed = sandbox.run(&["prepack", "model.safetensors"]).done().trim().to_owned();
    assert!(packed.starts_with("model.safetensors.") && packed.ends_with(".packed"), "{packed}");
    assert!(sandbox.join(&packed).is_file());
    (sandbox, packed)
}

const PICTURE: [&str; 10] =
    ["a fox", "-m", "model.safetensors", "--size", "64x64", "--steps", "2", "-s", "1", "-o"];

#[test]
fn pictures_are_the_same_and_what_does_not_fit_is_noted() {
    let (sandbox, packed) = with_model();
    let draw = |name: &'static str, more: &[&str]| {
        let left = sandbox.run(&[&PICTURE, &[name][..], more].concat());
        left.done();
        (fs::read(sandbox.join(name)).unwrap(), left.stderr.clone())
    };
    let (picture, stderr) = draw("packed.png", &[]);
    assert!(!stderr.contains("not used"), "{stderr}");
    let refused = sandbox.run(&[&PICTURE, &["no.png", "--memory", "30MB"][..]].concat());
    let least = refused.stderr.split("--memory ").nth(1).unwrap().split(' ').next().unwrap();
    let (streamed, stderr) = draw("streamed.png", &["--memory", least]);
    assert!(streamed == picture && stderr.contains("stay in their file"), "{stderr}");
    assert!(!stderr.contains("more time"), "{stderr}");
    let bytes = fs::read(sandbox.join(&packed)).unwrap();
    fs::remove_file(sandbox.join(&packed)).unwrap();
    let (plain, stderr) = draw("plain.png", &["--memory", least]);
    assert!(plain == picture && stderr.contains("`pochade prepack` saves that"), "{stderr}");

    sandbox.write(&packed, &bytes[..bytes.len() / 2]);
    let (again, stderr) = draw("cut.png", &[]);
    assert!(again == picture);
    assert!(
        stderr.contains(&packed) && stderr.contains("not used") && stderr.contains("pochade prepack"),
        "{stderr}"
    );
    // It is no packed file any more, but somebody's.
    sandbox.run(&["prepack", "model.safetensors"]).refused(2, &[&packed, "no packed weights"]);
    assert_eq!(fs::read(sandbox.join(&packed)).unwrap().len(), bytes.len() / 2);

    // Whole, but of a model that was written again.
    sandbox.write(&packed, &bytes);
    sandbox.write("model.safetensors", include_bytes!("../../models/pocket/pocket.safetensors"));
    let (again, stderr) = draw("newer.png", &[]);
    assert!(again == picture && stderr.contains("another version of the model"), "{stderr}");
    sandbox.run(&["prepack", "model.safetensors"]).done();
    let (again, stderr) = draw("anew.png", &[]);
    assert!(again == picture && !stderr.contains("not used"), "{stderr}");
}

#[test]
fn what_can_not_be_prepacked_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.run(&["prepack", "nothing.safetensors"]).refused(3, &["nothing.safetensors"]);
    sandbox.write("text.safetensors", b"hello");
    sandbox.run(&["prepack", "text.safetensors"]).refused(3, &["text.safetensors"]);
    let floats = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/small");
    sandbox.run(&["prepack", floats]).refused(2, &["no file of quantized weights", "pochade quantize"]);
    assert_eq!(fs::read_dir(sandbox.join(".")).unwrap().count(), 1);
}
