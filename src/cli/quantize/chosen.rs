//! Bits for each layer by what a file may take or what it has to keep: measured, chosen, and verified where need be.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::super::exit::{Exit, Failure, OrExit};
use super::super::model_args::QuantizeArgs;
use super::super::printer::Printer;
use super::super::signals::Signals;
use super::super::watched::watched;
use super::calibrator::Calibrator;
use crate::calibration::Mixed;
use crate::checkpoint::{Checkpoint, Form, Storage};
use crate::files::{self, Scratch};
use crate::quantize::allocation::{self, Candidate};
use crate::quantize::{Bits, Policy};
use crate::sensitivity::{Costs, LayerCosts, Recording};

/// What the bits are chosen for.
#[derive(Debug, Clone, Copy)]
enum Goal {
    /// Bytes of the file at the most.
    Size(u64),
    /// dB at the least.
    Quality(f64),
}

/// What was chosen, and by what.
pub struct Choice {
    pub costs: Costs,
    /// Of each layer of the costs, the fewest of its weights'.
    pub bits: Vec<Bits>,
    pub policy: Policy,
    /// By the costs, in dB.
    pub expected_sqnr: f64,
    /// Where it was needed for the choice already.
    pub learned: Option<Mixed>,
}

/// Measures, unless a report has it, and chooses, if the arguments name a goal.
///
/// # Errors
/// When no choice reaches the goal, or the report is of no use.
pub fn choose(
    args: &QuantizeArgs,
    checkpoint: &Checkpoint,
    recording: &Recording,
    signals: &Signals,
    printer: Printer,
) -> Result<Option<Choice>, Failure> {
    let goal = match (args.size, args.quality) {
        (Some(size), _) => Goal::Size(size),
        (None, Some(quality)) => Goal::Quality(quality),
        (None, None) => return Ok(None),
    };
    let costs = match &args.measured {
        Some(path) => read(path, checkpoint, &args.keep)?,
        None => watched("measuring layer, pass", printer, |on_layer| {
            Costs::measure(checkpoint, &args.keep, recording, on_layer)
        })?,
    };
    let mut chooser = Chooser::new(args, checkpoint, recording, signals, printer, &costs);
    let number = match goal {
        Goal::Size(size) => chooser.within(size)?,
        Goal::Quality(quality) => chooser.reaching(quality)?,
    };
    let policy = chooser.policy(number);
    let expected_sqnr = allocation::expected(&chooser.candidates, &chooser.combinations[number]);
    let fewest = |layer: &LayerCosts| layer.tensors.iter().map(|name| policy.bits(name)).min();
    let bits = costs.layers.iter().map(|layer| fewest(layer).unwrap_or(Bits::Sixteen)).collect();
    let learned = chooser.learned.take().map(|learned| Mixed { policy: policy.clone(), ..learned });
    Ok(Some(Choice { bits, policy, expected_sqnr, learned, costs }))
}

/// Bytes; full-size Stable Diffusion's has a hundred thousand.
const LARGEST_REPORT: u64 = 64 << 20;

/// What a report says that layers of `checkpoint` cost, without those to keep.
fn read(path: &Path, checkpoint: &Checkpoint, keep: &[String]) -> Result<Costs, Failure> {
    let unusable = || format!("{} is no report of --size or --quality on this model", path.display());
    let costs = files::text(path, LARGEST_REPORT).and_then(|text| Ok(serde_json::from_str::<Costs>(&text)?));
    let mut costs = costs.with_context(unusable).or_exit(Exit::Usage)?;
    costs.check(checkpoint, keep).with_context(unusable).or_exit(Exit::Usage)?;
    let kept = Policy::all(Bits::Four).and_keeping(keep);
    for layer in &mut costs.layers {
        layer.tensors.retain(|name| kept.bits(name) != Bits::Sixteen);
    }
    costs.layers.retain(|layer| !layer.tensors.is_empty());
    Ok(costs)
}

struct Chooser<'a> {
    args: &'a QuantizeArgs,
    checkpoint: &'a Checkpoint,
    recording: &'a Recording,
    signals: &'a Signals,
    printer: Printer,
    layers: &'a [LayerCosts],
    candidates: Vec<Candidate>,
    /// From the smallest to the best.
    combinations: Vec<Vec<Bits>>,
    learned: Option<Mixed>,
}

impl<'a> Chooser<'a> {
    fn new(
        args: &'a QuantizeArgs,
        checkpoint: &'a Checkpoint,
        recording: &'a Recording,
        signals: &'a Signals,
        printer: Printer,
        costs: &'a Costs,
    ) -> Self {
        let policies = Bits::ALL.map(Policy::all);
        let candidate = |layer: &LayerCosts| Candidate {
            bytes: policies.each_ref().map(|policy| {
                let names = layer.tensors.iter().map(String::as_str);
                Storage::Int8(policy).bytes(checkpoint.tensors(), names)
            }),
            errors: Bits::ALL.map(|bits| layer.errors(bits)),
        };
        let candidates: Vec<_> = costs.layers.iter().map(candidate).collect();
        let combinations = allocation::frontier(&candidates);
        let layers = &costs.layers;
        Self {
            args,
            checkpoint,
            recording,
            signals,
            printer,
            layers,
            candidates,
            combinations,
            learned: None,
        }
    }

    fn policy(&self, number: usize) -> Policy {
        let layers = self.layers.iter().zip(&self.combinations[number]);
        let weights = layers.flat_map(|(layer, bits)| layer.tensors.iter().map(|name| (name.clone(), *bits)));
        Policy::of(weights).and_keeping(&self.args.keep)
    }

    /// The best combination whose file has at most so many bytes.
    fn within(&self, limit: u64) -> Result<usize, Failure> {
        // As many as fit, since each is larger than the one before.
        let (mut fitting, mut beyond) = (0, self.combinations.len());
        while fitting < beyond {
            let middle = fitting.midpoint(beyond);
            if self.length(middle)? <= limit { fitting = middle + 1 } else { beyond = middle }
        }
        if let Some(number) = fitting.checked_sub(1) {
            return Ok(number);
        }
        let megabytes = (self.length(0)? as f64 / 1e5).ceil() / 10.0;
        Err(Failure::usage(format!(
            "the file can't be so small: with as few bits as there may be, it takes {megabytes:.1} MB"
        )))
    }

    /// Bytes of a combination's file.
    fn length(&self, number: usize) -> Result<u64, Failure> {
        let policy = self.policy(number);
        let balance = self.checkpoint.tensors().balance(&policy).or_exit(Exit::Model)?;
        self.checkpoint.native_length(Storage::Balanced(&policy, &balance)).or_exit(Exit::Model)
    }

    /// The smallest combination whose file was measured to keep so many dB.
    fn reaching(&mut self, quality: f64) -> Result<usize, Failure> {
        if let Some(learning) = self.args.method.learning() {
            let policies =
                [Bits::Four, Bits::Eight].map(|bits| Policy::all(bits).and_keeping(&self.args.keep));
            let calibrator = Calibrator::new(learning, self.args, self.checkpoint, self.printer)?;
            let [four, eight] = calibrator.learn(self.checkpoint, policies.each_ref())?.map(Arc::new);
            self.learned = Some(Mixed { policy: Policy::default(), four, eight });
        }
        let (mut short, mut reaches, mut most) = (0, self.combinations.len(), f64::NEG_INFINITY);
        while short < reaches {
            let middle = short.midpoint(reaches);
            let found = self.output(middle)?;
            most = most.max(found);
            if found >= quality { reaches = middle } else { short = middle + 1 }
        }
        if reaches == self.combinations.len() {
            return Err(Failure::usage(format!(
                "int8 can't keep so much: with as many bits as can be, the UNet's output is {most:.1} dB above its error"
            ))
            .hint("the model itself, or one written by `pochade convert`, can be drawn with `--precision f32`"));
        }
        Ok(reaches)
    }

    /// What the UNet's output keeps with a combination's file, in dB on average over the timesteps.
    fn output(&self, number: usize) -> Result<f64, Failure> {
        // Until nothing is left of the file but what is open.
        self.signals.exit_at_once(false);
        let written = self.written(&self.policy(number));
        self.signals.exit_at_once(true);
        if let Some(stopped) = self.signals.received() {
            return Err(Failure::new(stopped, "stopped"));
        }
        let written = written?;
        let found = watched("trying a choice, picture", self.printer, |on_picture| {
            self.recording.output_mean_sqnr(&written, on_picture)
        })?;
        Ok(found.unwrap_or(f64::INFINITY))
    }

    /// The model as a file has it whose name is gone already, where systems let an open file's name go.
    fn written(&self, policy: &Policy) -> Result<Checkpoint, Failure> {
        let balance = self.checkpoint.tensors().balance(policy).or_exit(Exit::Model)?;
        let checkpoint = match &self.learned {
            Some(learned) => self.checkpoint.merged(Mixed { policy: policy.clone(), ..learned.clone() }),
            None => self.checkpoint.clone(),
        };
        let scratch = Scratch::beside(&self.args.destination)
            .with_context(|| format!("can't write beside {}", self.args.destination.display()))
            .or_exit(Exit::PictureFailed)?;
        let path = scratch.path().join("tried.safetensors");
        let form = Form::Native(Storage::Balanced(policy, &balance));
        checkpoint.write(&path, form, &|| self.signals.received().is_some())?;
        Checkpoint::open(&path).or_exit(Exit::Model)
    }
}
