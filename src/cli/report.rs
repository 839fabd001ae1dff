//! What is said about a finished picture: one JSON object for programs, one line for people.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::progress::human;
use crate::pipeline::Timings;
use crate::request::{Passes, Precision, Request};

/// A finished picture, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    pub path: String,
    /// Every parameter, under its own name.
    #[serde(flatten)]
    pub request: &'a Request,
    pub model: &'a str,
    pub precision: Precision,
    pub kernel: &'a str,
    pub device: &'a str,
    pub seconds: Seconds,
    pub unet: Passes,
    /// Null where the system does not tell.
    pub peak_rss_bytes: Option<u64>,
    pub version: &'static str,
}

/// Seconds by phase; what the run loads once counts for its first picture.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Seconds {
    pub load: f64,
    pub encode: f64,
    pub denoise: f64,
    pub decode: f64,
    /// From the request to the written file, so slightly more than the sum.
    pub total: f64,
}

impl Seconds {
    /// `load` includes what `generate`, the time of the whole picture, spent loading.
    pub fn new(load: Duration, timings: &Timings, generate: Duration) -> Self {
        Self {
            load: load.as_secs_f64(),
            encode: timings.encode.as_secs_f64(),
            denoise: timings.denoise.as_secs_f64(),
            decode: timings.decode.as_secs_f64(),
            total: (load + generate - timings.load).as_secs_f64(),
        }
    }
}

impl Report<'_> {
    /// # Errors
    /// None in practice: a report is plain data.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).context("writing the report as JSON")
    }

    /// One line for stderr.
    pub fn summary(&self) -> String {
        let Request { seed, width, height, steps, sampler, schedule, .. } = self.request;
        let (model, precision) = (self.model, self.precision);
        let total = human(Duration::from_secs_f64(self.seconds.total));
        let saved = if self.request.saves_work() { format!(", unet {}", self.unet) } else { String::new() };
        format!(
            "seed {seed}, {width}x{height}, {steps} steps of {sampler} ({schedule}){saved}, {model} in {precision}, {total}"
        )
    }

    /// Times and memory for `--verbose`.
    pub fn details(&self) -> String {
        let Seconds { load, encode, denoise, decode, .. } = self.seconds;
        let memory = self
            .peak_rss_bytes
            .map_or_else(String::new, |bytes| format!(", peak memory {} MiB", bytes >> 20));
        let unet = self.unet;
        format!(
            "load {load:.2} s, encode {encode:.2} s, denoise {denoise:.2} s ({unet}), decode {decode:.2} s{memory}"
        )
    }
}

/// A path as JSON can hold it.
pub fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
