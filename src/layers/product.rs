//! The matrix product inside convolutions and linear layers on the CPU, in whichever precision its weights are.

use anyhow::{Result, bail, ensure};
use candle_core::{Device, Shape, Tensor};

use super::calibration::Probe;
use super::simulation::Trial;
use super::weight::Packed;
use super::{Input, host};
use crate::kernels::{self, Epilogue, Gather};

/// Packed weights `[out, taps, depth]` and what is always added to their products.
pub struct Product {
    weights: Packed,
    /// `[out]`
    bias: Option<Vec<f32>>,
    trial: Option<Box<Trial>>,
    probe: Option<Box<Probe>>,
}

/// Which rows a product reads.
pub enum Reads {
    /// This many, one after the other.
    Rows(usize),
    /// The pixels around each output pixel of a convolution.
    Pixels(kernels::Conv2d),
}

impl Reads {
    pub(super) fn gather(&self) -> Gather {
        match self {
            Self::Rows(rows) => Gather::identity(*rows),
            Self::Pixels(conv) => Gather::conv2d(conv),
        }
    }

    fn conv(&self) -> Result<&kernels::Conv2d> {
        match self {
            Self::Rows(_) => bail!("Winograd's algorithm is for convolutions"),
            Self::Pixels(conv) => Ok(conv),
        }
    }
}

/// What is added to the products of one call, and done to the sum.
#[derive(Default, Clone, Copy)]
pub struct Added<'a> {
    /// `[out]`
    pub shift: Option<&'a Tensor>,
    /// The output's shape.
    pub residual: Option<&'a Tensor>,
    pub relu: bool,
}

impl Product {
    pub fn new(weights: Packed, bias: Option<Vec<f32>>) -> Self {
        Self { weights, bias, trial: None, probe: None }
    }

    /// The same as a part of a simulation, if it takes part in one.
    pub fn on_trial(self, trial: Option<Trial>) -> Self {
        Self { trial: trial.map(Box::new), ..self }
    }

    /// The same telling what it reads, if somebody asked.
    pub fn probed(self, probe: Option<Probe>) -> Self {
        Self { probe: probe.map(Box::new), ..self }
    }

    /// How many times as fast as in f32 its multiply-accumulates could be; Winograd's algorithm does with 36 of 144.
    pub fn gain(&self) -> f64 {
        match &self.weights {
            Packed::F32(_) => 1.0,
            Packed::I8(weights) => weights.isa().byte_rate(),
            Packed::Words(weights) => weights.isa().word_rate(),
            Packed::Winograd(_) => 4.0,
            Packed::WinogradWords(weights) => 4.0 * weights.isa().word_rate(),
        }
    }

    /// The products of the rows of `input` that `reads` names, as a tensor of `shape`.
    pub fn apply(
        &self,
        input: Input<'_>,
        reads: &Reads,
        added: Added<'_>,
        shape: impl Into<Shape>,
    ) -> Result<Tensor> {
        let seen;
        let input = match &self.probe {
            Some(probe) => {
                seen = input.to_tensor()?;
                probe.see(&seen, &reads.gather())?;
                Input::Plain(&seen)
            }
            None => input,
        };
        let rounded = match &self.trial {
            Some(trial) => trial.rounded(input, &self.weights)?,
            None => None,
        };
        let (input, weights) = match &rounded {
            Some((rows, weights)) => (Input::Plain(rows), weights),
            None => (input, &self.weights),
        };
        let shifted = added.shift.map(|shift| self.shifted_bias(shift)).transpose()?;
        host::with_optional(added.residual, |residual| {
            let epilogue =
                Epilogue { bias: shifted.as_deref().or(self.bias.as_deref()), residual, relu: added.relu };
            let shape = shape.into();
            let output = kernels::collect(shape.elem_count(), |output| match weights {
                Packed::F32(weights) => {
                    let input = input.to_tensor()?;
                    check_depth(input.dims(), weights.depth())?;
                    host::with_values(&input, |rows| {
                        Ok(weights.apply(rows, &reads.gather(), &epilogue, output))
                    })
                }
                Packed::I8(weights) => {
                    check_depth(&input.dims(), weights.depth())?;
                    let rows = input.to_quantized(weights.isa())?;
                    Ok(weights.apply(&rows, &reads.gather(), &epilogue, output))
                }
                Packed::Words(weights) => {
                    let input = input.to_tensor()?;
                    check_depth(input.dims(), weights.depth())?;
                    host::with_values(&input, |rows| Ok(weights.apply(rows, &epilogue, output)))
                }
                Packed::Winograd(weights) => {
                    let input = input.to_tensor()?;
                    check_depth(input.dims(), weights.depth())?;
                    host::with_values(&input, |rows| {
                        Ok(weights.apply(rows, reads.conv()?, &epilogue, output))
                    })
                }
                Packed::WinogradWords(weights) => {
                    let input = input.to_tensor()?;
                    check_depth(input.dims(), weights.depth())?;
                    host::with_values(&input, |rows| {
                        Ok(weights.apply(rows, reads.conv()?, &epilogue, output))
                    })
                }
            })?;
            Ok(Tensor::from_vec(output, shape, &Device::Cpu)?)
        })
    }

    fn shifted_bias(&self, shift: &Tensor) -> Result<Vec<f32>> {
        let mut shift = shift.to_vec1::<f32>()?;
        for (shift, bias) in shift.iter_mut().zip(self.bias.iter().flatten()) {
            *shift += bias;
        }
        Ok(shift)
    }
}

fn check_depth(dims: &[usize], depth: usize) -> Result<()> {
    let found = dims.last().copied().unwrap_or(0);
    ensure!(found == depth, "rows of {found} where {depth} are taken");
    Ok(())
}
