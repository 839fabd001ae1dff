//! Packed weights beside a model's file: drawn with to the same pictures, and left alone when they don't fit.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pochade::checkpoint::{Checkpoint, Replaceable, Storage, WriteError, is_packed};
use pochade::pipeline::{DrawError, Model, Pipeline, Residency};
use pochade::quantize::Policy;
use pochade::request::{Draft, Lora, Precision};
use tempfile::TempDir;

use crate::support::models::{Quiet, data, open, resolve, small};

/// The small model with weights of eight bits, some of four and some kept, in `folder`.
fn quantized(folder: &Path) -> PathBuf {
    let path = folder.join("model.safetensors");
    let policy = Policy::new(vec!["*.conv2=4".parse().unwrap(), "*.ff.net.0.proj=4".parse().unwrap()])
        .and_keeping(&["unet.mid_block.*".to_owned()]);
    let source = small();
    let balance = source.tensors().balance(&policy).unwrap();
    source.write_native(&path, Storage::Balanced(&policy, &balance)).unwrap();
    path
}

fn model(path: &Path) -> Model {
    open(&Checkpoint::open(path).unwrap(), Precision::Int8)
}

fn prepack(path: &Path) -> PathBuf {
    let model = model(path);
    let bytes = model.prepack(Arc::new(|| false)).unwrap();
    let packed = model.prepacked_path().unwrap();
    assert_eq!(fs::metadata(&packed).unwrap().len(), bytes);
    assert!(is_packed(&packed) && !is_packed(path));
    packed
}

/// Another file of the same name: what is mapped stays as it was.
fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

fn draw(model: &Model, residency: Residency, lora: Option<&str>) -> Vec<u8> {
    try_draw(model, residency, lora).unwrap()
}

fn try_draw(model: &Model, residency: Residency, lora: Option<&str>) -> Result<Vec<u8>, DrawError> {
    let lora = lora.map(|weight| {
        let path = data("reference/lora_peft.safetensors");
        vec![Lora { path, weight: weight.parse().unwrap() }]
    });
    let draft = Draft {
        prompt: Some("a cat".into()),
        width: Some(72),
        height: Some(64),
        steps: Some(2),
        seed: Some(1),
        lora,
        ..Draft::default()
    };
    let request = resolve(draft, model.checkpoint());
    Ok(Pipeline::new(model, residency).generate(&request, &mut Quiet)?.rgb.into_raw())
}

/// The weights of `model` that are taken from a file of packed ones.
fn taken(model: &Model) -> usize {
    let tensors = model.checkpoint().tensors();
    tensors.names().filter(|name| tensors.prepacked([(*name).to_owned()]).is_some()).count()
}

#[test]
fn pictures_are_the_same() {
    let folder = TempDir::new().unwrap();
    let path = quantized(folder.path());
    let plain = model(&path);
    let expected = draw(&plain, Residency::Kept, None);
    let adapted = draw(&plain, Residency::Kept, Some("2"));
    assert_ne!(expected, adapted);
    let packed = prepack(&path);
    let model = model(&path);
    assert_eq!((taken(&plain), model.notice()), (0, None));
    assert!(model.is_prepacked() && !plain.is_prepacked());
    assert!(taken(&model) > 60, "{}", taken(&model));
    for residency in [Residency::Kept, Residency::OneByOne, Residency::Streamed] {
        assert!(draw(&model, residency, None) == expected, "{residency:?}");
    }
    // A LoRA is merged into weights that are not packed.
    assert!(draw(&model, Residency::Kept, Some("2")) == adapted);

    // What comes from elsewhere is not in the model's file.
    let mut replaced = Checkpoint::open(&path).unwrap();
    replaced.replace(Replaceable::TextEncoder, &data("small/text_encoder")).unwrap();
    let replaced = open(&replaced, Precision::Int8);
    let names: Vec<_> = replaced.checkpoint().tensors().names().map(str::to_owned).collect();
    let is_taken = |name: &String| replaced.checkpoint().tensors().prepacked([name.clone()]).is_some();
    let (text, others) = names.iter().partition::<Vec<_>, _>(|name| name.starts_with("text_encoder."));
    assert!(others.into_iter().any(is_taken) && !text.into_iter().any(is_taken));

    // What is in the file is what counts: it is read, not made again.
    let mut bytes = fs::read(&packed).unwrap();
    let end = bytes.len();
    for byte in &mut bytes[end / 2..] {
        *byte ^= 0x11;
    }
    replace(&packed, &bytes);
    let other = open(&Checkpoint::open(&path).unwrap(), Precision::Int8);
    assert_eq!(other.notice(), None);
    let tensors = other.checkpoint().tensors();
    assert!(tensors.prepacked(["unet.conv_in.weight".to_owned()]).is_some());
    assert!(try_draw(&other, Residency::Kept, None).map_or(true, |picture| picture != expected));
}

#[test]
fn only_what_fits_is_used() {
    let folder = TempDir::new().unwrap();
    let path = quantized(folder.path());
    let expected = draw(&model(&path), Residency::Kept, None);
    let packed = prepack(&path);
    let good = fs::read(&packed).unwrap();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(good[8..header].to_vec()).unwrap();
    assert_eq!(header % 64, 0);
    let with_header = |from: &str, to: &str| {
        let changed = text.replacen(from, to, 1);
        assert!(changed != text && changed.len() == text.len(), "{from}");
        [&good[..8], changed.as_bytes(), &good[header..]].concat()
    };
    let cases = [
        (good[..good.len() - 64].to_vec(), "damaged or cut short"),
        (b"PNG".to_vec(), "damaged or cut short"),
        (with_header("pochade-packed", "pochade-packet"), "no packed weights"),
        (with_header("layout", "loyaut"), "header is damaged"),
        (with_header(env!("CARGO_PKG_VERSION"), "9.9.9"), "another version of pochade"),
        (with_header("|", "."), "a part of no weight"),
    ];
    for (bytes, message) in cases {
        replace(&packed, &bytes);
        let model = model(&path);
        let notice = model.notice().unwrap();
        assert!(notice.contains(message) && notice.contains("model.safetensors."), "{notice}");
        assert_eq!(taken(&model), 0);
        assert!(draw(&model, Residency::Kept, None) == expected, "{message}");
    }

    // A part of another length is one that is packed anew.
    let name = "unet.conv_in.weight|";
    let shorter = with_header(name, "unet.conv_in.weighs|");
    replace(&packed, &shorter);
    let odd = model(&path);
    assert!(odd.checkpoint().tensors().prepacked(["unet.conv_in.weight".to_owned()]).is_none());
    assert!(draw(&odd, Residency::Kept, None) == expected);

    // The model was written again since.
    replace(&packed, &good);
    assert_eq!(model(&path).notice(), None);
    let time = fs::metadata(&path).unwrap().modified().unwrap() + std::time::Duration::from_secs(1);
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    assert!(model(&path).notice().unwrap().contains("another version of the model"));
    prepack(&path);
    assert_eq!(model(&path).notice(), None);
    // Floats are computed with floats.
    let floats = open(&Checkpoint::open(&path).unwrap(), Precision::F32);
    assert_eq!((taken(&floats), floats.prepacked_path()), (0, None));
}

#[test]
fn only_files_of_quantized_weights_are_prepacked() {
    let folder = TempDir::new().unwrap();
    for checkpoint in [small(), Checkpoint::built_in().unwrap()] {
        let model = open(&checkpoint, Precision::Int8);
        assert_eq!(model.prepacked_path(), None);
        let error = model.prepack(Arc::new(|| false)).unwrap_err();
        assert!(error.to_string().contains("quantized weights"), "{error}");
    }
    let path = quantized(folder.path());
    let stopped = model(&path).prepack(Arc::new(|| true)).unwrap_err();
    assert!(matches!(stopped, WriteError::Stopped), "{stopped}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
