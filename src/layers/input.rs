//! What a product reads: rows that are computed only when it is known in which form, so that nothing is written twice.

use anyhow::Result;
use candle_core::Tensor;

use super::activation;
use super::meter::{self, Kind};
use super::norm::{GroupNorm, LayerNorm};
use crate::kernels::Isa;

/// Feature maps or rows, or those after a norm or GEGLU that has not been computed yet.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    Plain(&'a Tensor),
    GroupNorm(&'a GroupNorm, &'a Tensor),
    /// SiLU of the norm.
    GroupNormSilu(&'a GroupNorm, &'a Tensor),
    LayerNorm(&'a LayerNorm, &'a Tensor),
    /// `[.., 2n]` that becomes `[.., n]`.
    Geglu(&'a Tensor),
}

impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Plain(tensor)
    }
}

impl Input<'_> {
    /// The rows as a tensor, computed by `kernels` where they are given.
    pub(super) fn to_tensor(self, kernels: Option<Isa>) -> Result<Tensor> {
        match self {
            Self::Plain(tensor) => Ok(tensor.clone()),
            Self::GroupNorm(norm, tensor) => meter::record(Kind::Norm, 0, || norm.forward(tensor, false)),
            Self::GroupNormSilu(norm, tensor) => meter::record(Kind::Norm, 0, || norm.forward(tensor, true)),
            Self::LayerNorm(norm, tensor) => meter::record(Kind::Norm, 0, || norm.forward(tensor)),
            Self::Geglu(tensor) => activation::geglu(kernels, tensor),
        }
    }
}
