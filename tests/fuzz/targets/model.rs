//! A model of one file: its kind, names, configs and vocabulary, as far as they are read before a picture is asked for.

#![no_main]

mod on_disk;

use candle_core::Device;
use libfuzzer_sys::fuzz_target;
use pochade::checkpoint::Checkpoint;
use pochade::pipeline::{LoadOptions, Pipeline};
use pochade::request::Precision;

use on_disk::on_disk;

fuzz_target!(|bytes: &[u8]| {
    let file = on_disk(bytes);
    let Ok(checkpoint) = Checkpoint::open(file.path()) else { return };
    let options = LoadOptions { device: Device::Cpu, precision: Precision::F32, single: true };
    let _ = Pipeline::load(&checkpoint, &options);
    let _ = checkpoint.summary();
});
