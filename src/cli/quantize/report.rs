//! What `quantize` says: what has how many bits, what layers cost, and the same as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::super::report::shown;
use super::chosen::Choice;
use crate::checkpoint::Checkpoint;
use crate::quantize::{Bits, Origin};
use crate::sensitivity::{Costs, Fidelity, LayerReport, Report};

/// What a report's file holds.
#[derive(Serialize)]
pub struct Measured<'a> {
    #[serde(flatten)]
    pub layers: Layers<'a>,
    pub fidelity: &'a Fidelity,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum Layers<'a> {
    AsWritten(Report),
    Chosen(Chosen<'a>),
}

/// What layers cost, and which bits they got.
#[derive(Serialize)]
pub struct Chosen<'a> {
    #[serde(flatten)]
    costs: &'a Costs,
    /// By layer.
    bits: BTreeMap<&'a str, Bits>,
    expected_sqnr: f64,
}

impl<'a> From<&'a Choice> for Chosen<'a> {
    fn from(choice: &'a Choice) -> Self {
        let names = choice.costs.layers.iter().map(|layer| layer.layer.as_str());
        Self {
            costs: &choice.costs,
            bits: names.zip(choice.bits.iter().copied()).collect(),
            expected_sqnr: choice.expected_sqnr,
        }
    }
}

/// A written file, as `--json` prints it.
#[derive(Serialize)]
pub struct Written<'a> {
    path: String,
    bytes: u64,
    widths: Vec<Width>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_sqnr: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fidelity: Option<&'a Fidelity>,
}

/// What is stored with so many bits.
#[derive(Serialize)]
struct Width {
    bits: Bits,
    tensors: usize,
    /// With scales and factors.
    bytes: u64,
}

impl<'a> Written<'a> {
    /// Of the file at `path`, by what is in it: weights that have been rounded before may have fewer bits than were
    /// asked for.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn new(path: &Path) -> anyhow::Result<Self> {
        let bytes = path.metadata()?.len();
        let file = Checkpoint::open(path)?;
        let tensors = file.tensors();
        let bits_of = |name: &str| match tensors.origin(name) {
            Origin::Int4 => Bits::Four,
            Origin::Int8 => Bits::Eight,
            Origin::Kept | Origin::Float => Bits::Sixteen,
        };
        let widths = Bits::ALL.map(|bits| {
            let names = tensors.parameters().filter(|name| bits_of(name) == bits);
            let bytes = names.clone().map(|name| tensors.stored_len(name) as u64).sum();
            Width { bits, tensors: names.count(), bytes }
        });
        Ok(Self { path: shown(path), bytes, widths: widths.into(), expected_sqnr: None, fidelity: None })
    }

    pub fn expecting(self, sqnr: Option<f64>) -> Self {
        Self { expected_sqnr: sqnr, ..self }
    }

    pub fn measured(self, fidelity: &'a Fidelity) -> Self {
        Self { fidelity: Some(fidelity), ..self }
    }
}

/// As a few lines for people: what has which bits only where these were chosen.
impl fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:.1} MB", self.path, self.bytes as f64 / 1e6)?;
        let Some(expected) = self.expected_sqnr else { return Ok(()) };
        write!(f, "\n{:>4}  {:>7}  {:>8}", "bits", "tensors", "MB")?;
        for Width { bits, tensors, bytes } in self.widths.iter().filter(|width| width.tensors > 0) {
            write!(f, "\n{:>4}  {tensors:>7}  {:>8.1}", u8::from(*bits), *bytes as f64 / 1e6)?;
        }
        write!(f, "\nsignal to error expected of these bits: {expected:.1} dB")
    }
}

impl Layers<'_> {
    /// One line per layer, the worst first, and the sums of all.
    pub fn table(&self) -> String {
        match self {
            Self::AsWritten(report) => as_written(report),
            Self::Chosen(chosen) => chosen.table(),
        }
    }
}

impl Chosen<'_> {
    fn table(&self) -> String {
        let mut layers: Vec<_> = self.costs.layers.iter().collect();
        layers.sort_by(|a, b| a.mean_sqnr(Bits::Four).total_cmp(&b.mean_sqnr(Bits::Four)));
        let width = layers.iter().map(|layer| layer.layer.chars().count()).max().unwrap_or(0);
        let mut text = format!("{:width$}  {:>6}  {:>6}  {:>4}\n", "SQNR in dB", "4 bits", "8 bits", "bits");
        for layer in layers {
            let name = layer.layer.as_str();
            let [four, eight] = [Bits::Four, Bits::Eight].map(|bits| decibel(finite(layer.mean_sqnr(bits))));
            let bits = self.bits.get(name).copied().map_or(0, u8::from);
            // Writing to a String can't fail.
            let _ = writeln!(text, "{name:width$}  {four:>6}  {eight:>6}  {bits:>4}");
        }
        text + &format!("{:width$}  {:>6}  {:>6.1}", "all of them together", "", self.expected_sqnr)
    }
}

fn finite(sqnr: f64) -> Option<f64> {
    (sqnr < f64::INFINITY).then_some(sqnr)
}

fn as_written(report: &Report) -> String {
    let name = |layer: &LayerReport| layer.layer.chars().count();
    let width = report.layers.iter().map(name).max().unwrap_or(0);
    let mut text = String::new();
    let _ =
        writeln!(text, "{:width$}  {:>8}  {:>11}  {:>8}", "SQNR in dB", "weights", "activations", "output");
    for layer in &report.layers {
        let _ = writeln!(
            text,
            "{:width$}  {:>8}  {:>11}  {:>8}",
            layer.layer,
            decibel(layer.weight_sqnr),
            decibel(layer.activation_sqnr),
            decibel(layer.output_sqnr),
        );
    }
    let all = decibel(report.output_sqnr);
    text + &format!("{:width$}  {:>8}  {:>11}  {all:>8}", "all of them together", "", "")
}

fn decibel(sqnr: Option<f64>) -> String {
    sqnr.map_or_else(|| "exact".to_owned(), |sqnr| format!("{sqnr:.1}"))
}
