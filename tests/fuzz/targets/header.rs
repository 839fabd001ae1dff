//! Headers of safetensors and GGUF files.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = pochade::checkpoint::check_header(bytes);
});
