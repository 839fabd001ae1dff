//! What a sweep measured: of each picture and of each combination, as a table for people and JSON for programs.

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value};

use super::vary::{Combination, Variation};
use crate::request::Passes;

/// One picture.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    pub prompt: String,
    pub seed: u64,
    pub settings: Map<String, Value>,
    pub path: String,
    /// Against the first combination's picture of the same item, in dB; null where they are the same.
    pub psnr: Option<f64>,
    /// Whether they are the same to the last pixel.
    pub same: bool,
    /// Without loading; null where it is not known any more.
    pub seconds: Option<f64>,
    pub unet: Option<Passes>,
    pub error: Option<String>,
}

/// All pictures of one combination.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub settings: Map<String, Value>,
    pub pictures: usize,
    /// Whether all are the first combination's to the last pixel.
    pub same: bool,
    /// Of those that differ.
    pub mean_psnr: Option<f64>,
    pub worst_psnr: Option<f64>,
    /// Means over the pictures.
    pub whole_passes: Option<f64>,
    pub outer_passes: Option<f64>,
    pub unet_macs: Option<f64>,
    pub seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct Sweep {
    /// First, so that a file is known by its beginning.
    pub sweep: &'static str,
    pub model: String,
    pub combinations: Vec<Summary>,
    pub pictures: Vec<Figures>,
}

impl Sweep {
    /// # Errors
    /// None in practice: it is plain data.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).context("writing the figures as JSON")
    }

    /// A row for each combination.
    pub fn table(&self) -> String {
        let Some(first) = self.combinations.first() else { return String::new() };
        let mut head: Vec<String> = first.settings.keys().cloned().collect();
        let names = ["PSNR/dB", "worst", "passes", "outer", "GMAC", "work", "seconds"];
        head.extend(names.map(str::to_owned));
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let row = |summary: &Summary| {
            let psnr = |psnr: Option<f64>| match psnr {
                None if summary.same => "same".to_owned(),
                psnr => number(psnr, 1),
            };
            let share = summary.unet_macs.zip(first.unet_macs).map(|(macs, first)| macs / first.max(1.0));
            let mut row: Vec<String> = summary.settings.values().map(text).collect();
            row.extend([
                psnr(summary.mean_psnr),
                psnr(summary.worst_psnr),
                number(summary.whole_passes, 1),
                number(summary.outer_passes, 1),
                number(summary.unet_macs.map(|macs| macs / 1e9), 2),
                number(share, 2),
                number(summary.seconds, 2),
            ]);
            row
        };
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(self.combinations.iter().map(row)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}"));
            cells.collect::<Vec<_>>().join("  ")
        };
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// The values of a combination by their settings' names.
pub fn settings(combination: &Combination, variations: &[Variation]) -> Map<String, Value> {
    combination.values(variations).map(|(name, value)| (name.to_owned(), value.into())).collect()
}

impl Summary {
    /// Of the pictures of one combination; those that failed don't count.
    pub fn new(settings: Map<String, Value>, figures: &[&Figures]) -> Self {
        let drawn: Vec<_> = figures.iter().filter(|figures| figures.error.is_none()).collect();
        let mean = |value: &dyn Fn(&Figures) -> Option<f64>| {
            let values: Vec<f64> = drawn.iter().filter_map(|figures| value(figures)).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let passes = |value: fn(&Passes) -> u64| mean(&|figures| Some(value(figures.unet.as_ref()?) as f64));
        Self {
            settings,
            pictures: drawn.len(),
            same: !drawn.is_empty() && drawn.iter().all(|figures| figures.same),
            mean_psnr: mean(&|figures| figures.psnr),
            worst_psnr: drawn.iter().filter_map(|figures| figures.psnr).min_by(f64::total_cmp),
            whole_passes: passes(|passes| passes.whole),
            outer_passes: passes(|passes| passes.outer),
            unet_macs: passes(|passes| passes.macs),
            seconds: mean(&|figures| figures.seconds),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
