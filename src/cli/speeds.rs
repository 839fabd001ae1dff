//! How fast this machine draws: figures of earlier runs, a small file in the cache folder for each kind of picture.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::files::{self, Fingerprint};
use crate::hub::environment;
use crate::pipeline::{Pace, Stretch, Timings, Work};
use crate::request::Request;

/// The latest runs whose figures are kept; their medians count.
const RUNS: usize = 5;

/// Bytes of the longest file of figures.
const LONGEST: u64 = 1 << 14;

/// How much longer a multiply-accumulate takes in a cached step than in a whole one, until it has been measured: it was
/// 0.7 to 0.8 for the built-in model and 1.08 for Stable Diffusion 1.5 at 512x512, on two cores of a Zen 3.
const OUTER: f64 = 1.1;

/// The seconds of one picture, and of the UNet for each 10^9 multiply-accumulates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Reading the networks; absent where they were in memory.
    load: Option<f64>,
    encode: f64,
    decode: f64,
    /// In steps that compute the UNet whole.
    whole: f64,
    /// In steps of a cache; absent where there were none.
    outer: Option<f64>,
}

/// What the figures depend on, for all pictures of a run.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Machine {
    pub model: String,
    /// SHA-256 of the networks' configs.
    pub configs: String,
    /// That are not the model's own.
    pub components: BTreeMap<String, String>,
    pub precision: String,
    pub kernel: String,
    pub device: String,
    pub threads: usize,
    /// What `--memory` says: below it weights may have to be read at each step.
    pub memory: Option<u64>,
}

/// What they depend on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Kind {
    #[serde(flatten)]
    machine: Machine,
    size: (usize, usize),
    final_size: (usize, usize),
}

/// What a file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Figures {
    of: Kind,
    /// The latest last.
    runs: Vec<Speed>,
}

/// The figures that this run has looked up, and what it has added to them.
pub struct Speeds {
    machine: Machine,
    known: RefCell<HashMap<Kind, Speed>>,
    noted: RefCell<HashSet<Kind>>,
}

impl Speeds {
    pub fn new(machine: Machine) -> Self {
        Self { machine, known: RefCell::default(), noted: RefCell::default() }
    }

    /// What earlier runs give for pictures like `request`'s; once looked up, it stays the same all through this run.
    pub fn of(&self, request: &Request) -> Option<Speed> {
        let kind = self.kind(request);
        if let Some(speed) = self.known.borrow().get(&kind) {
            return Some(*speed);
        }
        let speed = median(&read(&kind)?.runs)?;
        self.known.borrow_mut().insert(kind, speed);
        Some(speed)
    }

    /// Keeps how fast a picture was drawn, the first of its kind in this run, for this run and the next ones. These can
    /// do without, so a cache that takes no files is no error.
    pub fn note(&self, request: &Request, timings: &Timings, pace: Pace) {
        let Some(speed) = Speed::of(timings, pace) else { return };
        let kind = self.kind(request);
        if !self.noted.borrow_mut().insert(kind.clone()) {
            return;
        }
        self.known.borrow_mut().entry(kind.clone()).or_insert(speed);
        let mut runs = read(&kind).map_or_else(Vec::new, |figures| figures.runs);
        runs.push(speed);
        let runs = runs.split_off(runs.len().saturating_sub(RUNS));
        let write = || -> Result<()> {
            let path = kind.path()?;
            fs::create_dir_all(files::folder_of(&path))?;
            files::save(&serde_json::to_vec(&Figures { of: kind, runs })?, &path, true)?;
            Ok(())
        };
        let _ = write();
    }

    fn kind(&self, request: &Request) -> Kind {
        let size = (request.width, request.height);
        Kind { machine: self.machine.clone(), size, final_size: request.final_size() }
    }
}

impl Kind {
    fn path(&self) -> Result<PathBuf> {
        let folder = environment::native_folder().context("there is no cache folder")?;
        let hash = Fingerprint::of_bytes(&serde_json::to_vec(self)?).whole;
        Ok(folder.join("speeds").join(format!("{}.json", &hash[..16])))
    }
}

/// The figures of earlier runs; what else may lie there is none.
fn read(kind: &Kind) -> Option<Figures> {
    let text = files::text(&kind.path().ok()?, LONGEST).ok()?;
    let figures: Figures = serde_json::from_str(&text).ok()?;
    let usable = figures.of == *kind && figures.runs.iter().all(Speed::is_usable);
    usable.then_some(figures)
}

/// Of each figure on its own.
fn median(runs: &[Speed]) -> Option<Speed> {
    let of = |figure: fn(&Speed) -> Option<f64>| {
        let mut values: Vec<f64> = runs.iter().filter_map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Some(Speed {
        load: of(|speed| speed.load),
        encode: of(|speed| Some(speed.encode))?,
        decode: of(|speed| Some(speed.decode))?,
        whole: of(|speed| Some(speed.whole))?,
        outer: of(|speed| speed.outer),
    })
}

impl Speed {
    /// None if the UNet has not run whole.
    fn of(timings: &Timings, pace: Pace) -> Option<Self> {
        let rate = |stretch: Stretch| {
            (stretch.macs > 0).then(|| stretch.time.as_secs_f64() / (stretch.macs as f64 / 1e9))
        };
        let load = timings.load.as_secs_f64();
        Some(Self {
            load: (load > 0.0).then_some(load),
            encode: timings.encode.as_secs_f64(),
            decode: timings.decode.as_secs_f64(),
            whole: rate(pace.whole)?,
            outer: rate(pace.outer),
        })
    }

    fn is_usable(&self) -> bool {
        let figures = [self.load.unwrap_or(0.0), self.encode, self.decode, self.whole];
        figures.iter().all(|seconds| seconds.is_finite() && *seconds >= 0.0)
            && self.whole > 0.0
            && self.outer.is_none_or(|seconds| seconds.is_finite() && seconds > 0.0)
    }

    /// The seconds of a picture, with or without reading the model.
    pub fn seconds(&self, work: Work, loads: bool) -> f64 {
        let load = self.load.filter(|_| loads).unwrap_or(0.0);
        let outer = self.outer.unwrap_or(self.whole * OUTER);
        let unet = (work.whole as f64 * self.whole + work.outer as f64 * outer) / 1e9;
        load + self.encode + unet + self.decode
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speed(whole: f64, load: Option<f64>) -> Speed {
        Speed { load, encode: 1.0, decode: 2.0, whole, outer: None }
    }

    #[test]
    fn a_pictures_seconds_are_those_of_its_parts() {
        let work = Work { whole: 10_000_000_000, outer: 2_000_000_000 };
        assert_eq!(speed(0.5, Some(4.0)).seconds(work, true), 4.0 + 1.0 + 5.0 + 2.0 * 0.5 * OUTER + 2.0);
        let measured = Speed { outer: Some(2.0), ..speed(0.5, Some(4.0)) };
        assert_eq!(measured.seconds(work, false), 1.0 + 5.0 + 4.0 + 2.0);
    }

    #[test]
    fn medians_are_each_figures_own() {
        let runs = [speed(3.0, None), speed(1.0, Some(9.0)), speed(2.0, None)];
        assert_eq!(median(&runs), Some(speed(2.0, Some(9.0))));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn what_can_be_no_speed_is_not_used() {
        assert!(speed(1.0, None).is_usable());
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(!speed(wrong, None).is_usable(), "{wrong}");
            assert!(!Speed { outer: Some(wrong), ..speed(1.0, None) }.is_usable(), "{wrong}");
        }
        assert!(!speed(1.0, Some(f64::NAN)).is_usable());
    }
}
