//! Lets layers tell what they read, from which rounding learns; what is learned from it is in `quantize`.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use candle_core::Tensor;

use super::weight::{Form, Packing};
use super::{Backend, host};
use crate::kernels::{Gather, Isa};
use crate::quantize::grid::Grid;
use crate::quantize::{Finished, Moments, Origin, Policy};

/// Rows that are taken of one call of a layer: this many, or more where a layer reads so much at once that fewer
/// would leave it undetermined.
const ROWS: usize = 256;

/// A layer that int8 would compute.
#[derive(Debug, Clone)]
pub struct Calibrated {
    /// Canonical names of its weights: several where layers are stacked.
    pub tensors: Vec<String>,
    pub inputs: usize,
    pub taps: usize,
    /// Whether it is multiplied in pairs of bytes.
    pub grid: Grid,
}

impl Calibrated {
    /// Bytes that its statistics take.
    pub fn bytes(&self) -> usize {
        Moments::bytes(self.inputs, self.taps)
    }
}

/// The layers of a network that int8 would compute, and statistics of what some of them read at the moment. Layers
/// enroll when they are loaded with a [`Backend`] that holds the calibration.
pub struct Calibration {
    policy: Policy,
    /// How many calls there will be.
    calls: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    layers: Vec<Calibrated>,
    collected: Range<usize>,
    /// Of each of them, and how often it was called.
    moments: Vec<(Moments, usize)>,
    /// Calls so far of layers that are collected.
    calls: usize,
}

impl std::fmt::Debug for Calibration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calibration").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl Calibration {
    /// A calibration of the layers that `policy` has computed in int8, by so many calls of the network.
    pub fn new(policy: Policy, calls: usize) -> Self {
        Self { policy, calls, state: Mutex::default() }
    }

    /// In the order in which they were loaded, which numbers them.
    pub fn layers(&self) -> Vec<Calibrated> {
        self.state().layers.clone()
    }

    /// Collects moments of what the layers of these numbers read from now on, and forgets what there was.
    ///
    /// # Errors
    /// When the environment chooses an instruction set that this CPU lacks.
    pub fn collect(&self, layers: Range<usize>) -> Result<()> {
        let isa = Isa::chosen()?;
        let mut state = self.state();
        let moments = |layer: &Calibrated| (Moments::new(isa, layer.inputs, layer.taps), 0);
        state.moments = state.layers[layers.clone()].iter().map(moments).collect();
        state.collected = layers;
        Ok(())
    }

    /// Calls so far of layers that were collected.
    pub fn calls(&self) -> usize {
        self.state().calls
    }

    /// The moments that were collected, layer by layer.
    pub fn take(&self) -> Vec<Finished> {
        let moments = std::mem::take(&mut self.state().moments);
        moments.into_iter().map(|(moments, _)| moments.finish()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panicking thread left behind are still sums.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A layer's own part in a calibration.
pub struct Probe {
    calibration: Arc<Calibration>,
    number: usize,
    inputs: usize,
    taps: usize,
}

impl Probe {
    /// Enrolls the layer of the weights of these names, if the back end holds a calibration that is about it.
    pub fn enroll(
        backend: &Backend,
        tensors: impl FnOnce() -> Vec<String>,
        packing: Packing,
    ) -> Option<Self> {
        let calibration = backend.calibration.clone()?;
        let tensors = tensors();
        if !tensors.iter().all(|name| calibration.policy.computes_int8(name, Origin::Float)) {
            return None;
        }
        let Packing { inputs, taps, form, .. } = packing;
        let grid = if matches!(form, Form::Winograd { .. }) { Grid::Bytes } else { Grid::PairedBytes };
        let mut state = calibration.state();
        let number = state.layers.len();
        state.layers.push(Calibrated { tensors, inputs, taps, grid });
        drop(state);
        Some(Self { calibration, number, inputs, taps })
    }

    /// Takes some rows of what the layer reads, spread evenly, others at every call.
    pub fn see(&self, input: &Tensor, gather: &Gather) -> Result<()> {
        let mut state = self.calibration.state();
        let State { collected, moments, calls, .. } = &mut *state;
        if !collected.contains(&self.number) {
            return Ok(());
        }
        *calls += 1;
        let (moments, offset) = &mut moments[self.number - collected.start];
        *offset += 1;
        let rows = gather.out_rows();
        let wanted = ROWS.max((2 * self.inputs * self.taps).div_ceil(self.calibration.calls.max(1)));
        let count = wanted.min(rows);
        host::with_values(input, |values| {
            moments.add(count, |number, to| {
                gather.copy_row(values, self.inputs, (number * rows / count + *offset) % rows, to);
            });
            Ok(())
        })
    }
}
