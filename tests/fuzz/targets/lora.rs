//! An adapter file, every factor of which is read.

#![no_main]

mod on_disk;

use libfuzzer_sys::fuzz_target;
use pochade::checkpoint::lora::Adapter;

use on_disk::on_disk;

fuzz_target!(|bytes: &[u8]| {
    let _ = Adapter::open(on_disk(bytes).path());
});
