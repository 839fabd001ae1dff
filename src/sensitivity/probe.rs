//! A float UNet of which single layers can be rounded, held against itself at some timesteps of recorded runs.

use std::sync::Arc;

use anyhow::{Result, ensure};
use candle_core::Tensor;

use super::decibel;
use super::recording::Recording;
use crate::checkpoint::Checkpoint;
use crate::layers::{Backend, Candidate, Params, Rounded, Simulation};
use crate::networks::config::UnetConfig;
use crate::networks::unet::Unet;
use crate::quantize::{Bits, Energy, Policy};

/// The UNet, and what it answers when nothing is rounded.
pub(super) struct Probe<'a> {
    simulation: Arc<Simulation>,
    unet: Unet,
    reference: Reference<'a>,
}

/// The float UNet's answers.
pub(super) struct Reference<'a> {
    recording: &'a Recording,
    /// To the prompts of all runs, one after the other, by timestep.
    answers: Vec<Vec<f32>>,
}

impl<'a> Probe<'a> {
    /// Layers may be rounded as `policy` says.
    ///
    /// # Errors
    /// When the UNet can't be loaded or computes values that are not finite.
    pub fn load(checkpoint: &Checkpoint, policy: &Policy, recording: &'a Recording) -> Result<Self> {
        let simulation = Arc::new(Simulation::new(policy.clone()));
        let backend = Backend::cpu_simulating(simulation.clone())?;
        let balance = checkpoint.tensors().balance(policy)?;
        let params = Params::new(checkpoint.tensors(), &backend, "unet").balanced(&balance);
        let unet = Unet::load(&params, UnetConfig::parse(&checkpoint.configs().unet)?)?;
        simulation.record(true);
        let answers = answers(&unet, recording, &embeddings(recording))?;
        let is_finite = answers.iter().flatten().all(|value| value.is_finite());
        ensure!(is_finite, "the UNet computes NaN or infinite values in f32: the model is damaged");
        simulation.record(false);
        Ok(Self { simulation, unet, reference: Reference { recording, answers } })
    }

    /// The layers that can be rounded.
    pub fn candidates(&self) -> Vec<Candidate> {
        self.simulation.candidates()
    }

    /// What rounding these layers does to the answers at each timestep.
    ///
    /// # Errors
    /// When the answers are not finite, naming `what` was rounded.
    pub fn errors(&self, rounded: Rounded, what: &str) -> Result<Vec<Energy>> {
        self.simulation.round(rounded);
        let answers = answers(&self.unet, self.reference.recording, &embeddings(self.reference.recording));
        self.simulation.round(Rounded::None);
        self.reference.errors(&answers?, what)
    }

    /// What other embeddings of the runs' prompts do to the answers at each timestep.
    ///
    /// # Errors
    /// As [`Self::errors`].
    pub fn errors_of_embeddings(&self, embeddings: &[Tensor], what: &str) -> Result<Vec<Energy>> {
        self.reference.errors(&answers(&self.unet, self.reference.recording, embeddings)?, what)
    }

    /// The answers alone; the UNet's memory is given back.
    pub fn into_reference(self) -> Reference<'a> {
        self.reference
    }
}

impl Reference<'_> {
    /// How far other answers are from these at each timestep.
    ///
    /// # Errors
    /// When they are not finite, naming `what` was rounded for them.
    fn errors(&self, answers: &[Vec<f32>], what: &str) -> Result<Vec<Energy>> {
        let errors = self.answers.iter().zip(answers).map(|(reference, answer)| {
            let mut energy = Energy::default();
            energy.add(reference, answer);
            decibel(energy.sqnr(), what)?;
            Ok(energy)
        });
        errors.collect()
    }

    /// The same for the answers of another model's UNet.
    ///
    /// # Errors
    /// As [`Probe::load`] and [`Probe::errors`].
    pub fn errors_of_unet(&self, other: &Checkpoint, what: &str) -> Result<Vec<Energy>> {
        let other = Probe::load(other, &Policy::all(Bits::Sixteen), self.recording)?;
        self.errors(&other.reference.answers, what)
    }
}

fn embeddings(recording: &Recording) -> Vec<Tensor> {
    recording.runs.iter().map(|run| run.embeddings.clone()).collect()
}

/// The UNet's answers to the prompts at the chosen timesteps of all runs, whose embeddings these are.
fn answers(unet: &Unet, recording: &Recording, embeddings: &[Tensor]) -> Result<Vec<Vec<f32>>> {
    let chosen = recording.chosen();
    let mut answers = vec![Vec::new(); chosen.len()];
    for (run, embeddings) in recording.runs.iter().zip(embeddings) {
        // Under guidance the negative prompt comes first, and is the same for all.
        let prompted = embeddings.narrow(0, embeddings.dim(0)? - 1, 1)?;
        let context = unet.context(&prompted)?.guided_by(run.request.guidance_scale);
        for (answers, &at) in answers.iter_mut().zip(&chosen) {
            let call = &run.calls[at];
            let answer = unet.forward(&call.input, call.timestep, &context)?;
            answers.append(&mut answer.flatten_all()?.to_vec1()?);
        }
    }
    Ok(answers)
}
