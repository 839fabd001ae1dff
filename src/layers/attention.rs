//! Scaled dot-product attention over heads that lie side by side in the channels.

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};

use super::meter::{self, Kind};
use super::{Params, host};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::{self, Isa, Products};

/// Bytes of scores that candle's operations have at once.
const SCORES: usize = 256 << 20;

/// Multi-head attention without projections.
pub struct Attention {
    heads: usize,
    /// Whether no row sees a later one.
    causal: bool,
    kernels: Option<Isa>,
    /// Of rows to themselves, and to others.
    products: [Products; 2],
}

impl Attention {
    /// Between layers that take bytes, `beside_int8`, products of 16 bits lose nothing that counts.
    pub fn new(params: &Params, heads: usize, beside_int8: bool) -> Self {
        let backend = params.backend();
        let products = match backend.kernels {
            Some(_) if backend.words && backend.multiplies_words() => [Products::Words; 2],
            Some(isa) if backend.int8 && beside_int8 => in_16_bits(isa),
            _ => [Products::Floats; 2],
        };
        Self { heads, causal: false, kernels: backend.kernels, products }
    }

    /// The same in which no row sees a later one, of few rows to themselves.
    pub fn causal(params: &Params, heads: usize) -> Self {
        Self { causal: true, products: [Products::Floats; 2], ..Self::new(params, heads, false) }
    }

    /// `softmax(q k^T / sqrt(d)) v` for each head (Vaswani et al. 2017), all three from the same rows.
    ///
    /// `query`, `key` and `value` are `[batch, rows, heads * d]`, each possibly a slice of wider rows. Gives
    /// `[batch, rows, heads * d]`.
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
        let products = self.products[usize::from(kind == Kind::CrossAttention)];
        let gain = self.kernels.map_or(1.0, |isa| products.rate(isa));
        meter::record(kind, macs, gain, || match self.kernels {
            Some(isa) => self.by_kernels(isa, products, query, key, value),
            None if self.causal => causal_by_candle(query, key, value, self.heads),
            #[cfg(feature = "cuda")]
            None if query.device().is_cuda() => cuda::attention(query, key, value, self.heads),
            None => by_candle(query, key, value, self.heads, SCORES),
        })
    }

    fn by_kernels(
        &self,
        isa: Isa,
        products: Products,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
    ) -> Result<Tensor> {
        let (batch, q_len, channels) = query.dims3()?;
        let (heads, kv_len) = (self.heads, key.dim(1)?);
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
                    let output = kernels::collect(batch * q_len * channels, |output| {
                        let rows = [q.data, k.data, v.data];
                        anyhow::Ok(match self.causal {
                            true => attention.apply_causal(isa, rows, output),
                            false => attention.apply(isa, products, rows, output),
                        })
                    })?;
                    Ok(Tensor::from_vec(output, (batch, q_len, channels), &Device::Cpu)?)
                })
            })
        })
    }
}

/// What the products of 16 bits that are fastest take, to rows themselves and to others; floats where none are faster.
fn in_16_bits(isa: Isa) -> [Products; 2] {
    if isa.multiplies_words_fast() {
        [Products::WordsAndBytes, Products::Words]
    } else if isa.multiplies_bf16_fast() {
        [Products::Bf16; 2]
    } else {
        [Products::Floats; 2]
    }
}

/// candle's operations over few rows, whose scores are all there at once.
fn causal_by_candle(query: &Tensor, key: &Tensor, value: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, rows, channels) = query.dims3()?;
    let later = |row: usize, key: usize| if key > row { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> = (0..rows).flat_map(|row| (0..rows).map(move |key| later(row, key))).collect();
    let mask = Tensor::from_vec(mask, (rows, rows), query.device())?;
    let head_dim = channels / heads;
    let split = |rows: &Tensor| split(rows, heads);
    let scores = split(query)?.matmul(&split(key)?.t()?)?.to_dtype(DType::F32)?;
    let scores = (scores * (head_dim as f64).powf(-0.5))?.broadcast_add(&mask)?;
    let shares = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(value.dtype())?;
    Ok(shares.matmul(&split(value)?)?.transpose(1, 2)?.reshape((batch, rows, channels))?)
}

/// `[batch, rows, heads * d]` as `[batch, heads, rows, d]`.
fn split(rows: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, length, channels) = rows.dims3()?;
    Ok(rows.reshape((batch, length, heads, channels / heads))?.transpose(1, 2)?.contiguous()?)
}

/// candle's operations, as many queries at a time as `limit` bytes of scores in f32 hold.
fn by_candle(query: &Tensor, key: &Tensor, value: &Tensor, heads: usize, limit: usize) -> Result<Tensor> {
    let (batch, queries, channels) = query.dims3()?;
    let head_dim = channels / heads;
    let (query, key, value) = (split(query, heads)?, split(key, heads)?, split(value, heads)?);
    let keys = key.t()?;
    let at_once = (limit / (4 * batch * heads * key.dim(2)?)).clamp(1, queries);
    let block = |first: usize| -> Result<Tensor> {
        let query = query.narrow(2, first, at_once.min(queries - first))?.contiguous()?;
        let scores = (query.matmul(&keys)?.to_dtype(DType::F32)? * (head_dim as f64).powf(-0.5))?;
        Ok(candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(value.dtype())?.matmul(&value)?)
    };
    let blocks = (0..queries).step_by(at_once).map(block).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&blocks, 2)?.transpose(1, 2)?.reshape((batch, queries, channels))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_queries_attend_like_all_at_once() {
        let (batch, queries, keys, heads, channels) = (2, 13, 7, 3, 12);
        let rows = |rows: usize| Tensor::randn(0f32, 1.0, (batch, rows, channels), &Device::Cpu).unwrap();
        let (query, key, value) = (rows(queries), rows(keys), rows(keys));
        let attend = |limit: usize| {
            let output = by_candle(&query, &key, &value, heads, limit).unwrap();
            assert_eq!(output.dims(), [batch, queries, channels]);
            output.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let whole = attend(usize::MAX);
        // One query at a time, then five, of which the last block has three.
        for limit in [0, 5 * 4 * batch * heads * keys] {
            for (block, whole) in attend(limit).iter().zip(&whole) {
                assert!((block - whole).abs() < 1e-6, "{block} {whole}");
            }
        }
    }
}
