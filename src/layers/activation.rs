//! Element-wise layers without parameters.

use anyhow::Result;
use candle_core::{D, Tensor};

/// `x * sigmoid(x)` (Elfwing et al. 2017).
pub fn silu(input: &Tensor) -> Result<Tensor> {
    Ok(input.silu()?)
}

/// Joins two feature maps along their channels.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(Tensor::cat(&[a, b], D::Minus1)?)
}
