//! A model that can't be written to its end leaves nothing behind and names whose fault it is.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use pochade::checkpoint::{Checkpoint, FloatType, Form, Storage, WriteError};
use pochade::quantize::Policy;
use tempfile::TempDir;

use crate::support::models::small;

fn forms(policy: &Policy) -> [Form<'_>; 3] {
    [
        Form::Native(Storage::Int8(policy)),
        Form::Native(Storage::Float(FloatType::F32)),
        Form::Diffusers(FloatType::F16),
    ]
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

#[test]
fn a_stopped_writer_leaves_nothing() {
    let (folder, policy) = (TempDir::new().unwrap(), Policy::default());
    let model = small();
    for form in forms(&policy) {
        let path = folder.path().join("model");
        let asked = Cell::new(0);
        let count = |stop_at: usize| {
            asked.set(0);
            model.write(&path, form, &|| {
                asked.set(asked.get() + 1);
                asked.get() == stop_at
            })
        };
        count(usize::MAX).unwrap();
        let all = asked.get();
        assert!(all > 1000, "asked {all} times");
        fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)).unwrap();
        for stop_at in [1, 2, all / 3, all / 2, all - 1, all] {
            assert!(matches!(count(stop_at), Err(WriteError::Stopped)), "{form:?} at {stop_at} of {all}");
            assert_eq!(names(folder.path()), [""; 0], "{form:?}");
        }
    }
}

#[test]
fn a_source_that_is_cut_meanwhile_is_the_models_fault() {
    let (folder, policy) = (TempDir::new().unwrap(), Policy::default());
    let source = folder.path().join("source.safetensors");
    for form in forms(&policy) {
        for cut_at in [10, 1500] {
            let model = small();
            model.write_native(&source, Storage::Float(FloatType::F16)).unwrap();
            let model = Checkpoint::open(&source).unwrap();
            let asked = Cell::new(0);
            let written = model.write(&folder.path().join("model"), form, &|| {
                asked.set(asked.get() + 1);
                if asked.get() == cut_at {
                    fs::OpenOptions::new().write(true).open(&source).unwrap().set_len(100_000).unwrap();
                }
                false
            });
            let Err(WriteError::Model(error)) = written else { panic!("{form:?} at {cut_at}: {written:?}") };
            let error = format!("{error:#}");
            assert!(error.contains("tensor '") && error.contains("can't be read from its file"), "{error}");
            assert_eq!(names(folder.path()), ["source.safetensors"]);
        }
    }
}

#[test]
fn a_place_that_can_not_be_written_is_the_disks_fault() {
    let (folder, policy) = (TempDir::new().unwrap(), Policy::default());
    let model = small();
    fs::create_dir_all(folder.path().join("taken/inside")).unwrap();
    for form in forms(&policy) {
        for place in ["no/such/model", "taken"] {
            let written = model.write(&folder.path().join(place), form, &|| false);
            let Err(WriteError::Disk(error)) = written else { panic!("{form:?} at {place}: {written:?}") };
            assert!(format!("{error:#}").contains(place), "{error:#}");
        }
        assert_eq!(names(folder.path()), ["taken"]);
    }
}

#[test]
fn what_is_written_is_valid_and_aligned() {
    let (folder, policy) = (TempDir::new().unwrap(), Policy::default());
    let model = small();
    for storage in [Storage::Int8(&policy), Storage::Float(FloatType::F16)] {
        let path = folder.path().join("model.safetensors");
        model.write_native(&path, storage).unwrap();
        let bytes = fs::read(&path).unwrap();
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert!(header.is_multiple_of(8));
        for (name, info) in metadata.tensors() {
            let width = info.dtype.bitsize() / 8;
            assert!(info.data_offsets.0.is_multiple_of(width), "{name} begins at {}", info.data_offsets.0);
        }
    }
}
