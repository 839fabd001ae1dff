//! The configs of a model, as JSON.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pochade::networks::config::{ClipConfig, UnetConfig, VaeConfig};
use pochade::schedule::{NoiseSchedule, SchedulerConfig};

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = serde_json::from_slice(bytes) else { return };
    let _ = UnetConfig::parse(&value);
    let _ = ClipConfig::parse(&value);
    let _ = VaeConfig::parse(&value);
    if let Ok(scheduler) = serde_json::from_value::<SchedulerConfig>(value) {
        let _ = NoiseSchedule::new(&scheduler);
    }
});
