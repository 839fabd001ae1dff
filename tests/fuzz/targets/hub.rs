//! What the Hub's API answers about a repository.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pochade::hub::{ModelInfo, needed};

fuzz_target!(|bytes: &[u8]| {
    let Ok(info) = serde_json::from_slice::<ModelInfo>(bytes) else { return };
    let _ = (info.check(), info.licence());
    for file in [None, Some("model.safetensors")] {
        for sibling in needed(&info, file).into_iter().flatten() {
            let _ = sibling.blob();
        }
    }
});
