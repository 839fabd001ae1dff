//! A model of one file: its kind, names, configs and vocabulary, as far as they are read before a picture is asked for.

#![no_main]

mod on_disk;

use candle_core::Device;
use libfuzzer_sys::fuzz_target;
use pochade::checkpoint::Checkpoint;
use pochade::pipeline::{Model, Numerics};
use pochade::request::Precision;

use on_disk::on_disk;

fuzz_target!(|bytes: &[u8]| {
    let file = on_disk(bytes);
    let Ok(checkpoint) = Checkpoint::open(file.path()) else { return };
    let _ = checkpoint.summary();
    let _ = Model::open(checkpoint, &Numerics::new(Device::Cpu, Precision::F32));
});
