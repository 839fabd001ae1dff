//! Lets single layers compute as int8 would, in float arithmetic, to find out what that costs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use candle_core::Tensor;

use super::weight::{self, Packed, Packing};
use super::{Backend, Input, host};
use crate::kernels::{self, Isa, QuantizedRows};
use crate::quantize::{Bits, Energy, GroupedWeight, Origin, Policy, QuantizedWeight, Weight};

/// Which layers pretend to be int8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounded {
    #[default]
    None,
    /// The layer of this number.
    One(usize),
    All,
}

/// A layer that int8 would compute, and what rounding its weights and its inputs loses.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Canonical names of its weights: several where layers are stacked.
    pub tensors: Vec<String>,
    pub weights: Energy,
    /// Of all inputs seen while recording.
    pub inputs: Energy,
}

/// The candidates of a network, and which of them are rounded at the moment. Layers enroll when they are loaded
/// with a [`Backend`] that holds the simulation.
#[derive(Debug)]
pub struct Simulation {
    policy: Policy,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    candidates: Vec<Candidate>,
    rounded: Rounded,
    recording: bool,
}

impl Simulation {
    /// A simulation of the layers that `policy` has computed in int8.
    pub fn new(policy: Policy) -> Self {
        Self { policy, state: Mutex::default() }
    }

    /// In the order in which they were loaded, which numbers them.
    pub fn candidates(&self) -> Vec<Candidate> {
        self.state().candidates.clone()
    }

    /// Rounds these layers from now on.
    pub fn round(&self, layers: Rounded) {
        self.state().rounded = layers;
    }

    /// Whether inputs are added to the candidates' records from now on.
    pub fn record(&self, on: bool) {
        self.state().recording = on;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panicking thread left behind is still a list of candidates.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A candidate's own part in a simulation.
pub struct Trial {
    simulation: Arc<Simulation>,
    number: usize,
    /// `[out, in, taps]`
    weight: Weight,
    packing: Packing,
}

impl Trial {
    /// Enrolls the layer of these weights, `[out, in, taps]`, if the back end holds a simulation that is about it.
    pub fn enroll(
        backend: &Backend,
        tensors: impl FnOnce() -> Vec<String>,
        weight: &Weight,
        packing: Packing,
    ) -> Result<Option<Self>> {
        let (Some(simulation), Weight::Float(values)) = (&backend.simulation, weight) else {
            return Ok(None);
        };
        let tensors = tensors();
        if !tensors.iter().all(|name| simulation.policy.computes_int8(name, Origin::Float)) {
            return Ok(None);
        }
        let Packing { outputs, inputs, taps, .. } = packing;
        let parts = tensors.iter().zip(values.chunks(values.len() / tensors.len()));
        let parts = parts.map(|(name, values)| match simulation.policy.bits(name) {
            Bits::Four => GroupedWeight::round(values, inputs, taps, None).map(Weight::Int4),
            _ => QuantizedWeight::round(values, outputs / tensors.len()).map(Weight::Int8),
        });
        let weight = weight::stack(parts.collect::<Result<_>>()?)?;
        let mut weights = Energy::default();
        weights.add(values, &weight.clone().into_f32());
        let mut state = simulation.state();
        let number = state.candidates.len();
        state.candidates.push(Candidate { tensors, weights, inputs: Energy::default() });
        Ok(Some(Self { simulation: simulation.clone(), number, weight, packing }))
    }

    /// What the layer computes with instead of `input` and its own weights, `packed`, while it is rounded.
    pub fn rounded(&self, input: Input<'_>, packed: &Packed) -> Result<Option<(Tensor, Packed)>> {
        let (rounded, recording) = {
            let state = self.simulation.state();
            (state.rounded, state.recording)
        };
        let rounded = rounded == Rounded::All || rounded == Rounded::One(self.number);
        let isa = match packed {
            Packed::F32(weights) => weights.isa(),
            Packed::Winograd(weights) => weights.isa(),
            Packed::I8(_) | Packed::Words(_) | Packed::WinogradWords(_) => return Ok(None),
        };
        if !rounded && !recording {
            return Ok(None);
        }
        let input = input.to_tensor()?;
        let rows = host::with_values(&input, |values| {
            let rows = through_bytes(values, self.packing.inputs, isa);
            if recording {
                self.simulation.state().candidates[self.number].inputs.add(values, &rows);
            }
            Ok(rows)
        })?;
        if !rounded {
            return Ok(None);
        }
        // The same algorithm as without rounding, so that nothing else makes a difference.
        let packed = weight::pack(Weight::Float(self.weight.clone().into_f32()), self.packing, isa);
        Ok(Some((Tensor::from_vec(rows, input.shape(), input.device())?, packed)))
    }
}

/// Rows of `depth` values as they are after having been quantized by the kernels.
fn through_bytes(values: &[f32], depth: usize, isa: Isa) -> Vec<f32> {
    let mut quantized = QuantizedRows::default();
    kernels::quantize_rows(isa, values, depth, &mut quantized);
    (0..quantized.rows()).flat_map(|row| quantized.dequantize(row)).collect()
}
