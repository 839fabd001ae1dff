//! Rounding learned from runs of the network: what its layers read is collected, and their weights fitted to that.

mod identity;
mod kept;
mod learned;
mod runs;

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

pub use identity::identity;
pub use kept::{Kept, Unkept};
pub use learned::{Learned, Mixed};
pub use runs::{PROMPTS, Runs};

use runs::Asked;

use crate::checkpoint::Checkpoint;
use crate::layers::{Backend, Calibrated, Calibration, Params};
use crate::networks::config::UnetConfig;
use crate::networks::unet::{Step, Unet};
use crate::quantize::grid::Grid;
use crate::quantize::{Balance, Bits, Learning, Policy, Rounder};

/// Told how much is done of how much, first nothing of it.
pub type Progress<'a> = dyn FnMut(usize, usize) + 'a;

/// How a model's rounding is learned.
pub struct Lesson<'a> {
    pub learning: Learning,
    pub runs: &'a Runs,
    /// Bytes that statistics may take: those of as many layers as fit, of one at least, are collected at a time, for
    /// each of which the network runs again, in f32.
    pub memory: usize,
    /// What has been learned already is taken from there, and what is learned is kept there.
    pub kept: &'a Kept,
}

/// Rounds what `policy` has computed in int8 of `checkpoint`, equalized by `balance`, so that its layers' outputs come
/// as near to the float ones' as can be for inputs as they are in the lesson's runs.
///
/// # Errors
/// When the model can't be loaded, has been quantized already, or computes values that are not finite.
pub fn learn(
    checkpoint: &Checkpoint,
    policy: &Policy,
    balance: &Balance,
    lesson: &Lesson<'_>,
    on_progress: &mut Progress<'_>,
) -> Result<Learned> {
    let [learned] = learn_each(checkpoint, [policy], balance, lesson, on_progress)?;
    Ok(learned)
}

/// The same for several policies that differ in bits only, in one go.
///
/// # Errors
/// As [`learn`].
pub fn learn_each<const N: usize>(
    checkpoint: &Checkpoint,
    policies: [&Policy; N],
    balance: &Balance,
    lesson: &Lesson<'_>,
    on_progress: &mut Progress<'_>,
) -> Result<[Learned; N]> {
    check(checkpoint)?;
    let Lesson { learning, runs, memory, kept } = *lesson;
    let policy = policies.first().copied().cloned().unwrap_or_default();
    let calibration = Arc::new(Calibration::new(policy, runs.calls()));
    let unet = load(checkpoint, &calibration, balance)?;
    let layers = calibration.layers();
    let mut learned = policies.map(|_| Learned::default());
    // Layers are learned in their order, so those that an earlier run has come to are the first ones.
    let mut first = 0;
    while first < layers.len()
        && let Some(mut tensors) = kept.load(&part(first))?
    {
        let named =
            || format!("what was learned of layer {first}, '{}'", layers[first].tensors.join("' and '"));
        learned::restore(&mut learned, &mut tensors).with_context(named)?;
        let done =
            layers[first..].iter().take_while(|layer| learned.iter().all(|one| one.has(&layer.tensors)));
        let count = done.count();
        ensure!(count > 0, "{} is not there", named());
        first += count;
    }
    let groups = groups(&layers[first..].iter().map(Calibrated::bytes).collect::<Vec<_>>(), memory);
    // Of each group as many parts as there are calls, and one more for each layer.
    let total = groups.len() * runs.calls() + layers.len() - first;
    let mut before = 0;
    on_progress(0, total);
    for group in groups {
        let group = first + group.start..first + group.end;
        calibration.collect(group.clone())?;
        Replay::new(&unet, &calibration).all(runs, &mut |done| on_progress(before + done, total))?;
        before += runs.calls();
        let mut fresh = policies.map(|_| Learned::default());
        for (layer, moments) in layers[group.clone()].iter().zip(calibration.take()) {
            let means = moments.means.clone();
            let rounder = Rounder::of(learning, moments).with_context(|| layer.tensors.join(" and "))?;
            for name in &layer.tensors {
                for (policy, learned) in policies.iter().zip(&mut fresh) {
                    let grid = if policy.bits(name) == Bits::Four { Grid::Nibbles } else { layer.grid };
                    learned.round(checkpoint, balance, name, grid, &rounder, &means)?;
                }
            }
            before += 1;
            on_progress(before, total);
        }
        kept.save(&part(group.start), || learned::to_keep(&fresh))?;
        learned.iter_mut().zip(fresh).for_each(|(learned, fresh)| learned.extend(fresh));
    }
    Ok(learned)
}

/// The name under which the layers from this number on are kept.
fn part(first: usize) -> String {
    format!("learned-{first}")
}

fn load(checkpoint: &Checkpoint, calibration: &Arc<Calibration>, balance: &Balance) -> Result<Unet> {
    let backend = Backend::cpu_calibrating(calibration.clone())?;
    let params = Params::new(checkpoint.tensors(), &backend, "unet").balanced(balance);
    Unet::load(&params, UnetConfig::parse(&checkpoint.configs().unet)?)
}

/// Whether `checkpoint` still has the weights to round.
///
/// # Errors
/// When it has been quantized.
pub fn check(checkpoint: &Checkpoint) -> Result<()> {
    ensure!(
        !checkpoint.tensors().is_quantized(),
        "the model is quantized already: rounding can only be learned from floats"
    );
    Ok(())
}

/// Runs as much of the network as is collected.
struct Replay<'a> {
    unet: &'a Unet,
    calibration: &'a Calibration,
    /// Those after these have no layer that is collected; known after the first call.
    stages: Option<usize>,
}

impl<'a> Replay<'a> {
    fn new(unet: &'a Unet, calibration: &'a Calibration) -> Self {
        Self { unet, calibration, stages: None }
    }

    /// `on_call` is told how many calls are done.
    fn all(&mut self, runs: &Runs, on_call: &mut dyn FnMut(usize)) -> Result<()> {
        let mut done = 0;
        for run in runs.all() {
            let context = self.unet.context(&run.embeddings)?.guided_by(run.request.guidance_scale);
            for Asked { latents, timestep } in &run.asked {
                let timestep = *timestep;
                self.call(&Step { latents, timestep, context: &context, residuals: None })?;
                done += 1;
                on_call(done);
            }
        }
        Ok(())
    }

    fn call(&mut self, step: &Step<'_>) -> Result<()> {
        let mut maps = self.unet.begin(step)?;
        if let Some(stages) = self.stages {
            return self.unet.run(&mut maps, 0..stages, step);
        }
        let mut last = 0;
        for stage in 0..self.unet.stages() {
            let before = self.calibration.calls();
            self.unet.run(&mut maps, stage..stage + 1, step)?;
            if self.calibration.calls() != before {
                last = stage + 1;
            }
        }
        self.stages = Some(last);
        Ok(())
    }
}

/// Neighboring layers whose statistics, of these bytes, fit into `memory` together; each at least alone.
fn groups(bytes: &[usize], memory: usize) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut taken = 0;
    for (number, &bytes) in bytes.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if taken + bytes <= memory => group.end = number + 1,
            _ => {
                groups.push(number..number + 1);
                taken = 0;
            }
        }
        taken += bytes;
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_as_large_as_memory_lets_them_be() {
        assert_eq!(groups(&[3, 4, 3, 20, 1, 1], 10), [0..3, 3..4, 4..6]);
        assert_eq!(groups(&[3, 4], 0), [0..1, 1..2]);
        assert!(groups(&[], 10).is_empty());
    }
}
