//! Rounding learned from runs of the network: what its layers read is collected, and their weights fitted to that.

mod learned;
mod runs;

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

pub use learned::{Learned, Mixed};
pub use runs::{PROMPTS, Runs};

use crate::checkpoint::Checkpoint;
use crate::layers::{Backend, Calibrated, Calibration, Params};
use crate::networks::config::UnetConfig;
use crate::networks::unet::{Step, Unet};
use crate::quantize::grid::Grid;
use crate::quantize::{Balance, Bits, Cancellation, Policy};

/// Told how much is done of how much, first nothing of it.
pub type Progress<'a> = dyn FnMut(usize, usize) + 'a;

/// Rounds what `policy` has computed in int8 of `checkpoint`, equalized by `balance`, so that its layers' outputs come
/// as near to the float ones' as can be for inputs as they are in `runs`.
///
/// The network runs in f32; statistics of as many layers as `memory` bytes hold, of one at least, are collected at a
/// time, for each of which it runs again.
///
/// # Errors
/// When the model can't be loaded, has been quantized already, or computes values that are not finite.
pub fn learn(
    checkpoint: &Checkpoint,
    policy: &Policy,
    balance: &Balance,
    runs: &Runs,
    memory: usize,
    on_progress: &mut Progress<'_>,
) -> Result<Learned> {
    let [learned] = learn_each(checkpoint, [policy], balance, runs, memory, on_progress)?;
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
    runs: &Runs,
    memory: usize,
    on_progress: &mut Progress<'_>,
) -> Result<[Learned; N]> {
    check(checkpoint)?;
    let policy = policies.first().copied().cloned().unwrap_or_default();
    let calibration = Arc::new(Calibration::new(policy, runs.calls()));
    let unet = load(checkpoint, &calibration, balance)?;
    let layers = calibration.layers();
    let groups = groups(&layers.iter().map(Calibrated::bytes).collect::<Vec<_>>(), memory);
    let mut learned = policies.map(|_| Learned::default());
    // Of each group as many parts as there are calls, and one more for each layer.
    let total = groups.len() * runs.calls() + layers.len();
    let mut before = 0;
    on_progress(0, total);
    for group in groups {
        calibration.collect(group.clone())?;
        Replay::new(&unet, &calibration).all(runs, &mut |done| on_progress(before + done, total))?;
        before += runs.calls();
        for (layer, moments) in layers[group].iter().zip(calibration.take()) {
            let means = moments.means.clone();
            let cancellation = Cancellation::of(moments).with_context(|| layer.tensors.join(" and "))?;
            for name in &layer.tensors {
                for (policy, learned) in policies.iter().zip(&mut learned) {
                    let grid = if policy.bits(name) == Bits::Four { Grid::Nibbles } else { layer.grid };
                    learned.round(checkpoint, balance, name, grid, &cancellation, &means)?;
                }
            }
            before += 1;
            on_progress(before, total);
        }
    }
    Ok(learned)
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
            for call in &run.calls {
                let (latents, timestep) = (&call.input, call.timestep);
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
