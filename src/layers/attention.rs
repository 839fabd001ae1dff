//! Scaled dot-product attention over heads that lie side by side in the channels.

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};

use super::meter::{self, Kind};
use super::{Params, host};
use crate::kernels::{self, Isa};

/// Multi-head attention without projections.
pub struct Attention {
    heads: usize,
    kernels: Option<Isa>,
}

impl Attention {
    pub fn new(params: &Params, heads: usize) -> Self {
        Self { heads, kernels: params.backend().kernels }
    }

    /// `softmax(q k^T / sqrt(d)) v` for each head (Vaswani et al. 2017), all three from the same rows.
    ///
    /// `query`, `key` and `value` are `[batch, rows, heads * d]`, each possibly a slice of wider rows. Gives
    /// `[batch, rows, heads * d]`. Without kernels, all scores exist at once.
    pub fn to_itself(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
        self.run(Kind::SelfAttention, query, key, value)
    }

    /// The same with `key` and `value` from elsewhere: `[batch, context rows, heads * d]`.
    pub fn to_context(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
        self.run(Kind::CrossAttention, query, key, value)
    }

    fn run(&self, kind: Kind, query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
        let (batch, rows, channels) = query.dims3()?;
        let macs = 2 * batch * rows * key.dim(1)? * channels;
        meter::record(kind, macs, || match self.kernels {
            Some(isa) => blocked(isa, query, key, value, self.heads),
            None => materialized(query, key, value, self.heads),
        })
    }
}

fn blocked(isa: Isa, query: &Tensor, key: &Tensor, value: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, q_len, channels) = query.dims3()?;
    let kv_len = key.dim(1)?;
    host::with_rows(query, |q| {
        host::with_rows(key, |k| {
            host::with_rows(value, |v| {
                let dense = kernels::Attention::dense(batch, heads, channels / heads, q_len, kv_len);
                let attention = kernels::Attention {
                    q_stride: q.stride,
                    k_stride: k.stride,
                    v_stride: v.stride,
                    ..dense
                };
                let mut output = vec![0.0; batch * q_len * channels];
                attention.apply(isa, q.data, k.data, v.data, &mut output);
                Ok(Tensor::from_vec(output, (batch, q_len, channels), &Device::Cpu)?)
            })
        })
    })
}

fn materialized(query: &Tensor, key: &Tensor, value: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, queries, channels) = query.dims3()?;
    let head_dim = channels / heads;
    let split = |rows: &Tensor| -> Result<Tensor> {
        let (batch, length, _) = rows.dims3()?;
        Ok(rows.reshape((batch, length, heads, head_dim))?.transpose(1, 2)?.contiguous()?)
    };
    let (query, key, value) = (split(query)?, split(key)?, split(value)?);
    let scores = (query.matmul(&key.t()?)?.to_dtype(DType::F32)? * (head_dim as f64).powf(-0.5))?;
    let weights = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(value.dtype())?;
    Ok(weights.matmul(&value)?.transpose(1, 2)?.reshape((batch, queries, channels))?)
}
