//! Element-wise layers without parameters.

use anyhow::{Result, bail};
use candle_core::{D, Device, Tensor};

use super::{Params, host};
use crate::kernels::{self, Isa, RowsMut, Written};

pub use crate::kernels::Activation as Function;

/// A function of single values.
pub struct Activation {
    function: Function,
    kernels: Option<Isa>,
}

impl Activation {
    pub fn new(params: &Params, function: Function) -> Self {
        Self { function, kernels: params.backend().kernels }
    }

    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        if self.kernels.is_some() {
            let output = kernels::collect(input.elem_count(), |output| self.write(input, output))?;
            return Ok(Tensor::from_vec(output, input.dims(), &Device::Cpu)?);
        }
        Ok(match self.function {
            Function::Silu => input.silu()?,
            Function::Gelu => input.gelu_erf()?,
            Function::QuickGelu => (input * candle_nn::ops::sigmoid(&(input * 1.702)?)?)?,
        })
    }

    /// Writes the values in the form `output` takes.
    pub(super) fn write<'a>(&self, input: &Tensor, output: impl Into<RowsMut<'a>>) -> Result<Written<'a>> {
        let Some(isa) = self.kernels else { bail!("this activation was made for candle, not for kernels") };
        let depth = input.dim(D::Minus1)?;
        host::with_values(input, |values| Ok(self.function.apply(isa, values, depth, output)))
    }
}

/// Joins two feature maps along their channels.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(Tensor::cat(&[a, b], D::Minus1)?)
}
