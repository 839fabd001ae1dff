//! Lists of requests, in both spellings.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pochade::request::list::{Format, List};

fuzz_target!(|bytes: &[u8]| {
    for format in [Format::Jsonl, Format::Text] {
        let mut lines = List::new(bytes, format);
        while let Some(line) = lines.next() {
            let _ = line;
        }
    }
});
