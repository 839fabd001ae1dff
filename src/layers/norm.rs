//! Group and layer normalisation.

use anyhow::{Result, bail};
use candle_core::{D, DType, Device, Tensor};

use super::{Params, host};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::{self, ChannelMoments, Isa, RowsMut, Written};

/// Gain and offset of each channel, as the back end reads them.
enum Affine {
    Kernels { isa: Isa, gain: Vec<f32>, offset: Vec<f32> },
    Candle { gain: Tensor, offset: Tensor },
}

impl Affine {
    fn load(params: &Params, channels: usize) -> Result<Self> {
        Ok(match params.backend().kernels {
            Some(isa) => Self::Kernels {
                isa,
                gain: params.floats("weight", &[channels])?,
                offset: params.floats("bias", &[channels])?,
            },
            None => Self::Candle {
                gain: params.tensor("weight", &[channels])?,
                offset: params.tensor("bias", &[channels])?,
            },
        })
    }

    fn for_kernels(&self) -> Result<(Isa, &[f32], &[f32])> {
        match self {
            Self::Kernels { isa, gain, offset } => Ok((*isa, gain, offset)),
            Self::Candle { .. } => bail!("this norm was loaded for candle, not for kernels"),
        }
    }
}

/// Group normalisation (Wu & He 2018) over `[batch, height, width, channels]`.
pub struct GroupNorm {
    groups: usize,
    eps: f64,
    affine: Affine,
}

impl GroupNorm {
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(params: &Params, groups: usize, channels: usize, eps: f64) -> Result<Self> {
        Ok(Self { groups, eps, affine: Affine::load(params, channels)? })
    }

    pub(super) fn forward_part(&self, rows: &Tensor, moments: &ChannelMoments) -> Result<Tensor> {
        match &self.affine {
            Affine::Kernels { .. } => {
                let output =
                    kernels::collect(rows.elem_count(), |output| self.write_part(rows, moments, output))?;
                Ok(Tensor::from_vec(output, rows.dims(), &Device::Cpu)?)
            }
            Affine::Candle { gain, offset } => {
                let host = |tensor: &Tensor| -> Result<Vec<f32>> {
                    Ok(tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_vec1()?)
                };
                let affine = moments.affine(&self.kernel(&host(gain)?, &host(offset)?, true));
                let affine = Tensor::from_vec(affine, (3, gain.elem_count()), rows.device())?;
                let centered = rows.to_dtype(DType::F32)?.broadcast_sub(&affine.get(0)?)?;
                let normed = centered.broadcast_mul(&affine.get(1)?)?.broadcast_add(&affine.get(2)?)?;
                Ok(normed.to_dtype(rows.dtype())?.silu()?)
            }
        }
    }

    /// [`Self::write`] for some rows of a map, with SiLU.
    pub(super) fn write_part<'a>(
        &self,
        rows: &Tensor,
        moments: &ChannelMoments,
        output: impl Into<RowsMut<'a>>,
    ) -> Result<Written<'a>> {
        let (isa, gain, offset) = self.affine.for_kernels()?;
        let norm = self.kernel(gain, offset, true);
        host::with_values(rows, |values| Ok(norm.apply_measured(isa, values, moments, output)))
    }

    fn kernel<'a>(&self, weight: &'a [f32], bias: &'a [f32], silu: bool) -> kernels::GroupNorm<'a> {
        kernels::GroupNorm { groups: self.groups, epsilon: self.eps as f32, weight, bias, silu }
    }

    pub(super) fn forward(&self, input: &Tensor, silu: bool) -> Result<Tensor> {
        match &self.affine {
            Affine::Kernels { .. } => {
                let output = kernels::collect(input.elem_count(), |output| self.write(input, silu, output))?;
                Ok(Tensor::from_vec(output, input.dims(), &Device::Cpu)?)
            }
            #[cfg(feature = "cuda")]
            Affine::Candle { gain, offset } if on_cuda(input) => {
                cuda::group_norm(input, self.groups, cuda::Affine { gain, offset }, self.eps, silu)
            }
            Affine::Candle { gain, offset } => {
                let (batch, height, width, channels) = input.dims4()?;
                let grouped = (batch, height * width, self.groups, channels / self.groups);
                let values = input.to_dtype(DType::F32)?.reshape(grouped)?;
                let centered = values.broadcast_sub(&values.mean_keepdim((1, 3))?)?;
                let variance = centered.sqr()?.mean_keepdim((1, 3))?;
                let normed = scale(&centered, &variance, self.eps)?.reshape(input.shape())?;
                let output = normed.to_dtype(input.dtype())?.broadcast_mul(gain)?.broadcast_add(offset)?;
                Ok(if silu { output.silu()? } else { output })
            }
        }
    }

    /// Writes the norm's rows in the form `output` takes.
    pub(super) fn write<'a>(
        &self,
        input: &Tensor,
        silu: bool,
        output: impl Into<RowsMut<'a>>,
    ) -> Result<Written<'a>> {
        let (isa, gain, offset) = self.affine.for_kernels()?;
        let norm = self.kernel(gain, offset, silu);
        let images = input.dim(0)?;
        host::with_values(input, |values| Ok(norm.apply(isa, values, images, output)))
    }
}

/// Whether our own kernel takes these maps.
#[cfg(feature = "cuda")]
fn on_cuda(maps: &Tensor) -> bool {
    maps.device().is_cuda()
        && maps.dim(D::Minus1).is_ok_and(|channels| cuda::takes_groups(maps.dtype(), channels))
}

/// Adds the rows `[batch, height, width, channels]` to `moments`.
///
/// # Errors
/// When the rows can't be read.
pub fn measure(rows: &Tensor, moments: &mut ChannelMoments) -> Result<()> {
    if rows.device().is_cpu() && rows.dtype() == DType::F32 {
        return host::with_values(rows, |values| {
            moments.add(Isa::chosen()?, values);
            Ok(())
        });
    }
    let rows = rows.to_dtype(DType::F32)?.flatten_to(2)?;
    let means = rows.mean_keepdim(0)?;
    let deviations = rows.broadcast_sub(&means)?.sqr()?.sum(0)?;
    let host = |tensor: Tensor| -> Result<Vec<f64>> {
        Ok(tensor.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()?)
    };
    moments.merge(rows.dim(0)? as f64, &host(means)?, &host(deviations)?);
    Ok(())
}

/// Layer normalisation (Ba et al. 2016) over the last dimension.
pub struct LayerNorm {
    eps: f64,
    affine: Affine,
}

impl LayerNorm {
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(params: &Params, channels: usize, eps: f64) -> Result<Self> {
        Ok(Self { eps, affine: Affine::load(params, channels)? })
    }

    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        match &self.affine {
            Affine::Kernels { .. } => {
                let output = kernels::collect(input.elem_count(), |output| self.write(input, output))?;
                Ok(Tensor::from_vec(output, input.dims(), &Device::Cpu)?)
            }
            #[cfg(feature = "cuda")]
            Affine::Candle { gain, offset } if input.device().is_cuda() => {
                cuda::layer_norm(input, cuda::Affine { gain, offset }, self.eps)
            }
            Affine::Candle { gain, offset } => {
                let values = input.to_dtype(DType::F32)?;
                let centered = values.broadcast_sub(&values.mean_keepdim(D::Minus1)?)?;
                let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
                let normed = scale(&centered, &variance, self.eps)?.to_dtype(input.dtype())?;
                Ok(normed.broadcast_mul(gain)?.broadcast_add(offset)?)
            }
        }
    }

    /// Writes the norm's rows in the form `output` takes.
    pub(super) fn write<'a>(&self, input: &Tensor, output: impl Into<RowsMut<'a>>) -> Result<Written<'a>> {
        let (isa, weight, bias) = self.affine.for_kernels()?;
        let norm = kernels::LayerNorm { epsilon: self.eps as f32, weight, bias };
        host::with_values(input, |values| Ok(norm.apply(isa, values, output)))
    }
}

fn scale(centered: &Tensor, variance: &Tensor, eps: f64) -> Result<Tensor> {
    Ok(centered.broadcast_div(&(variance + eps)?.sqrt()?)?)
}
