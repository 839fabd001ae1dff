//! Metadata of pictures.

#![no_main]

mod on_disk;

use libfuzzer_sys::fuzz_target;
use pochade::png::read_header;
use pochade::request::Embedded;

use on_disk::on_disk;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = read_header(on_disk(bytes).path()) else { return };
    if let Ok(Some(record)) = Embedded::find(header.chunks()) {
        let _ = (record.draft(), record.model(), record.precision());
    }
});
