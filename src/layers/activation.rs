//! Element-wise layers without parameters.

use anyhow::{Result, ensure};
use candle_core::{D, Tensor};

use super::host;
use crate::kernels::{self, Isa};

/// `x * sigmoid(x)` (Elfwing et al. 2017).
pub fn silu(input: &Tensor) -> Result<Tensor> {
    Ok(input.silu()?)
}

/// `value * gelu(gate)` of `[.., 2n]`, whose first half is the value (GEGLU, Shazeer 2020; exact GELU).
pub(super) fn geglu(kernels: Option<Isa>, input: &Tensor) -> Result<Tensor> {
    let Some(isa) = kernels else {
        let halves = input.chunk(2, D::Minus1)?;
        return Ok((&halves[0] * halves[1].gelu_erf()?)?);
    };
    let mut shape = input.dims().to_vec();
    let width = shape.pop().unwrap_or(0) / 2;
    ensure!(width > 0, "no value and gate in {:?}", input.shape());
    shape.push(width);
    host::map(input, shape, |rows, output| kernels::geglu(isa, rows, width, output))
}

/// Joins two feature maps along their channels.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(Tensor::cat(&[a, b], D::Minus1)?)
}
