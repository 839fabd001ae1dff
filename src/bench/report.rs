//! What a measurement found, and how JSON spells it.

use serde::Serialize;
use serde_json::{Value, json};

use super::watch::{Sample, median};
use crate::layers::meter::{Kind, Macs};
use crate::request::Precision;

/// The rows of a table of operations; what is left of the whole is the last row.
const ROWS: [(Kind, &str); 6] = [
    (Kind::Conv3x3, "conv 3x3"),
    (Kind::Conv1x1, "conv 1x1"),
    (Kind::Linear, "linear"),
    (Kind::SelfAttention, "self-attention"),
    (Kind::CrossAttention, "cross-attention"),
    (Kind::Norm, "norms"),
];

/// The median run of one part of a picture.
#[derive(Debug, Clone)]
pub struct Part {
    pub seconds: f64,
    /// 10^9 multiply-accumulates.
    pub gmac: f64,
    /// Seconds times the yardstick's rate for each multiply-accumulate: 1 is as fast as the f32 product.
    pub cost: f64,
    /// By kind; they add up to `seconds` and `gmac`.
    pub operations: Vec<Operation>,
}

/// What one kind of operation takes of a [`Part`].
#[derive(Debug, Clone, Serialize)]
pub struct Operation {
    pub kind: &'static str,
    pub seconds: f64,
    /// Of the part's seconds, 0 to 1.
    pub share: f64,
    /// 10^9 multiply-accumulates.
    pub gmac: f64,
    /// 10^9 multiply-accumulates per second; none where there are no products.
    pub gmacs: Option<f64>,
    /// The same if its products were as fast as the kernels' own f32 product lets expect.
    pub best_gmacs: Option<f64>,
}

/// Everything measured in one run. Rates are 10^9 multiply-accumulates per second.
#[derive(Debug, Clone)]
pub struct Report {
    pub model: String,
    pub precision: Precision,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    pub threads: usize,
    pub kernels: Vec<String>,
    /// The rate of the yardstick, candle's f32 product: the median over all rounds.
    pub f32_gmacs: f64,
    /// The rate of the kernels' own f32 product.
    pub kernel_f32_gmacs: f64,
    /// Of the yardstick before loading, then after each picture: far apart if the machine had other things to do.
    pub f32_gmacs_rounds: Vec<f64>,
    /// Making up random weights, which is no part of loading; 0 for a real model.
    pub inventing_seconds: f64,
    /// From the closed checkpoint to networks that are ready.
    pub load_seconds: f64,
    /// Both prompts, and the UNet's keys and values of them.
    pub text_encoder: Part,
    /// With guidance.
    pub unet_step: Part,
    /// Latents to 8-bit pixels.
    pub vae_decode: Part,
    /// Of the process, where the system tells.
    pub peak_rss_bytes: Option<u64>,
}

impl Part {
    /// The median of `samples`, of which there is at least one, each of which multiplies `macs`.
    pub(super) fn new(samples: &[Sample], macs: &Macs, f32_gmacs: f64, kernel_f32_gmacs: f64) -> Self {
        let Sample { seconds, reading } = median(samples, |sample| sample.seconds);
        let operation = |kind, own: f64, macs: u64, gain: Option<f64>| {
            let gmac = macs as f64 / 1e9;
            let gmacs = (macs > 0).then(|| gmac / own);
            let best_gmacs = gain.map(|gain| gain * kernel_f32_gmacs);
            Operation { kind, seconds: own, share: own / seconds, gmac, gmacs, best_gmacs }
        };
        let mut operations = Vec::new();
        let (mut other, mut other_macs) = (seconds, macs.total());
        for (kind, name) in ROWS {
            let spent = reading.of(kind);
            let own = spent.time.as_secs_f64();
            operations.push(operation(name, own, macs.of(kind), spent.gain()));
            other -= own;
            other_macs -= macs.of(kind);
        }
        operations.push(operation("rest", other, other_macs, None));
        let gmac = macs.total() as f64 / 1e9;
        Self { seconds, gmac, cost: seconds * f32_gmacs / gmac, operations }
    }

    /// 10^9 multiply-accumulates per second.
    pub fn gmacs(&self) -> f64 {
        self.gmac / self.seconds
    }
}

impl Report {
    /// One flat object, its operations those of a step.
    pub fn json(&self) -> Value {
        let mut json = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.model,
            "precision": self.precision,
            "width": self.width,
            "height": self.height,
            "threads": self.threads,
            "kernels": self.kernels,
            "f32_gmacs": self.f32_gmacs,
            "f32_gmacs_rounds": self.f32_gmacs_rounds,
            "kernel_f32_gmacs": self.kernel_f32_gmacs,
            "inventing_seconds": self.inventing_seconds,
            "load_seconds": self.load_seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            "operations": self.unet_step.operations,
            "vae_decode_operations": self.vae_decode.operations,
        });
        let parts = [
            ("text_encoder", &self.text_encoder),
            ("unet_step", &self.unet_step),
            ("vae_decode", &self.vae_decode),
        ];
        for (name, part) in parts {
            json[format!("{name}_seconds")] = part.seconds.into();
            json[format!("{name}_gmac")] = part.gmac.into();
            json[format!("{name}_gmacs")] = part.gmacs().into();
            json[format!("{name}_cost")] = part.cost.into();
        }
        json
    }
}
