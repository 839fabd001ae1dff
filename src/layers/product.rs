//! The matrix product inside convolutions and linear layers on the CPU, in whichever precision its weights are.

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{Device, Shape, Tensor};

use super::calibration::Probe;
use super::simulation::Trial;
use super::weight::{self, Packed, Packing};
use super::{Input, Params, host, prepacked};
use crate::kernels::{self, Epilogue, Gather, Isa};
use crate::quantize::Weight;

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
    /// The product of the layers of `parts`, whose weights, one after the other, `read` reads unless a file holds them
    /// packed. It takes part in a simulation and a calibration, if the back end holds one.
    ///
    /// # Errors
    /// Those of `read`, or when whoever keeps packed weights fails.
    pub fn load(
        parts: &[Params],
        packing: Packing,
        isa: Isa,
        read: impl FnOnce() -> Result<Weight>,
        bias: Option<Vec<f32>>,
    ) -> Result<Self> {
        if let Some(weights) = prepacked::take(parts, packing, isa) {
            return Ok(Self { weights, bias, trial: None, probe: None });
        }
        let first = parts.first().context("no layers to multiply with")?;
        let (backend, weight) = (first.backend(), read()?);
        let names = || parts.iter().map(|part| part.path(&"weight")).collect();
        let trial = Trial::enroll(backend, names, &weight, packing)?.map(Box::new);
        let probe = Probe::enroll(backend, names, packing).map(Box::new);
        let weights = weight::pack(weight, packing, isa);
        prepacked::hand_over(backend, first, &weights)?;
        Ok(Self { weights, bias, trial, probe })
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
