//! What a product reads: rows that are computed only when it is known in which form, so that nothing is written twice.

use anyhow::{Context, Result};
use candle_core::Tensor;

use super::activation::Activation;
use super::host;
use super::meter::{self, Kind};
use super::norm::{GroupNorm, LayerNorm};
use crate::kernels::{self, ChannelMoments, Isa, QuantizedRows};

/// Feature maps or rows, or those after a norm that has not been computed yet.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    Plain(&'a Tensor),
    GroupNorm(&'a GroupNorm, &'a Tensor),
    /// SiLU of the norm.
    GroupNormSilu(&'a GroupNorm, &'a Tensor),
    /// The same of some rows of a map, by the moments of all of them.
    GroupNormSiluOfPart(&'a GroupNorm, &'a Tensor, &'a ChannelMoments),
    LayerNorm(&'a LayerNorm, &'a Tensor),
    Activation(&'a Activation, &'a Tensor),
}

impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Plain(tensor)
    }
}

impl Activation {
    /// The function of `input`, for a layer to read.
    pub fn of<'a>(&'a self, input: &'a Tensor) -> Input<'a> {
        Input::Activation(self, input)
    }
}

impl GroupNorm {
    /// The norm of `input`, for a layer to read.
    pub fn of<'a>(&'a self, input: &'a Tensor) -> Input<'a> {
        Input::GroupNorm(self, input)
    }

    /// SiLU of the norm of `input`, for a layer to read.
    pub fn silu_of<'a>(&'a self, input: &'a Tensor) -> Input<'a> {
        Input::GroupNormSilu(self, input)
    }

    /// SiLU of the norm of some rows of a map by `moments` of all of them, for a layer to read.
    pub fn silu_of_part<'a>(&'a self, rows: &'a Tensor, moments: &'a ChannelMoments) -> Input<'a> {
        Input::GroupNormSiluOfPart(self, rows, moments)
    }
}

impl LayerNorm {
    /// The norm of `input`, for a layer to read.
    pub fn of<'a>(&'a self, input: &'a Tensor) -> Input<'a> {
        Input::LayerNorm(self, input)
    }
}

impl Input<'_> {
    /// The shape of the rows.
    pub(super) fn dims(&self) -> Vec<usize> {
        match self {
            Self::Plain(tensor)
            | Self::GroupNorm(_, tensor)
            | Self::GroupNormSilu(_, tensor)
            | Self::GroupNormSiluOfPart(_, tensor, _)
            | Self::LayerNorm(_, tensor)
            | Self::Activation(_, tensor) => tensor.dims().to_vec(),
        }
    }

    /// Keeps what is done before the product apart from it; reading plain rows is part of it.
    fn metered<R>(&self, work: impl FnOnce() -> R) -> R {
        match self {
            Self::Plain(_) => work(),
            _ => meter::record(Kind::Norm, 0, 1.0, work),
        }
    }

    /// The rows as a tensor.
    pub(super) fn to_tensor(self) -> Result<Tensor> {
        self.metered(|| match self {
            Self::Plain(tensor) => Ok(tensor.clone()),
            Self::GroupNorm(norm, tensor) => norm.forward(tensor, false),
            Self::GroupNormSilu(norm, tensor) => norm.forward(tensor, true),
            Self::GroupNormSiluOfPart(norm, rows, moments) => norm.forward_part(rows, moments),
            Self::LayerNorm(norm, tensor) => norm.forward(tensor),
            Self::Activation(activation, tensor) => activation.forward(tensor),
        })
    }

    /// The rows quantized on the way out of whatever computes them.
    pub(super) fn to_quantized(self, isa: Isa) -> Result<QuantizedRows> {
        let dims = self.dims();
        let &depth = dims.last().context("a product takes rows")?;
        let mut rows = QuantizedRows::default();
        self.metered(|| match self {
            Self::Plain(tensor) => {
                host::with_values(tensor, |values| Ok(kernels::quantize_rows(isa, values, depth, &mut rows)))
            }
            Self::Activation(activation, tensor) => activation.write(tensor, &mut rows),
            Self::GroupNorm(norm, tensor) => norm.write(tensor, false, &mut rows),
            Self::GroupNormSilu(norm, tensor) => norm.write(tensor, true, &mut rows),
            Self::GroupNormSiluOfPart(norm, part, moments) => norm.write_part(part, moments, &mut rows),
            Self::LayerNorm(norm, tensor) => norm.write(tensor, &mut rows),
        })?;
        Ok(rows)
    }
}
