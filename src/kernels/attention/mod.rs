//! Softmax attention whose scores exist only block by block; projections around it are products.
//!
//! Blocks of keys with a running maximum and sum per query: Milakov and Gimelshein, "Online normalizer
//! calculation for softmax" (2018), and Dao et al., "FlashAttention" (2022). Everything is kept transposed,
//! with queries in the vector lanes: keys and values are then read by broadcast, and the softmax needs no sums
//! across lanes.

mod bf16;
mod causal;
mod float;
mod heads;
mod part;
mod words;

use super::isa::Isa;
use super::output::{Output, Written};

/// What queries, keys, values and exponentials are as they are multiplied. NaN and infinity come out as NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Products {
    /// As they are. The exponential's relative error is below 3e-7 (see `math::exp2`).
    Floats,
    /// bfloat16: 8 bits, of whatever size. A fourth of the time where [`Isa::multiplies_bf16_fast`]; results are 50 dB
    /// above the error, 45 dB if attention is peaked, and 36 dB where it is one-hot.
    Bf16,
    /// 16-bit integers (`words` says how). Half of the time where [`Isa::multiplies_words_fast`]; results are 60 dB
    /// above the error, flat attention or peaked, and 55 dB where it is one-hot.
    Words,
    /// The same with bytes for queries and keys, in five sixths of the time, where [`Isa::multiplies_words_and_bytes`].
    /// Results are then 53 dB above the error, 40 dB if attention is peaked.
    WordsAndBytes,
}

impl Products {
    /// How many of them take the time of one of f32, at the most.
    pub fn rate(self, isa: Isa) -> f64 {
        match self {
            Self::Floats => 1.0,
            Self::Bf16 => isa.bf16_rate(),
            // Half of the products are of bytes, which take half the time.
            Self::WordsAndBytes if isa.multiplies_words_and_bytes() => isa.word_rate() * 4.0 / 3.0,
            Self::Words | Self::WordsAndBytes => isa.word_rate(),
        }
    }
}

/// Sizes of a multi-head attention.
///
/// Row r of batch item b of the queries begins at `(b * q_len + r) * q_stride`; head h has the `head_dim`
/// values from `h * head_dim`. Keys and values likewise.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    pub batch: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub q_len: usize,
    pub kv_len: usize,
    /// f32 from row to row: `heads * head_dim`, or more if the rows hold something else too.
    pub q_stride: usize,
    pub k_stride: usize,
    pub v_stride: usize,
    /// Multiplies the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}

impl Attention {
    /// `batch` x `q_len` queries over as many x `kv_len` keys and values, densely stored, with the usual scale.
    pub fn dense(batch: usize, heads: usize, head_dim: usize, q_len: usize, kv_len: usize) -> Self {
        let stride = heads * head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self {
            batch,
            heads,
            head_dim,
            q_len,
            kv_len,
            q_stride: stride,
            k_stride: stride,
            v_stride: stride,
            scale,
        }
    }

    /// `softmax(q k^T * scale) v` for each head, into `output` `[batch, q_len, heads * head_dim]`.
    ///
    /// Sums are in an order that depends only on the sizes and the instruction set.
    ///
    /// # Panics
    /// If a size is zero, a stride is smaller than its rows, or a slice is too short.
    pub fn apply<'a>(
        &self,
        isa: Isa,
        products: Products,
        [q, k, v]: [&[f32]; 3],
        output: impl Into<Output<'a>>,
    ) -> Written<'a> {
        let output = output.into();
        self.check(q, k, v, &output);
        match products {
            Products::Floats => float::apply(self, isa, [q, k, v], output),
            Products::Bf16 => bf16::apply(self, isa, [q, k, v], output),
            Products::Words => words::apply(self, isa, false, [q, k, v], output),
            Products::WordsAndBytes => {
                words::apply(self, isa, isa.multiplies_words_and_bytes(), [q, k, v], output)
            }
        }
    }

    fn check(&self, q: &[f32], k: &[f32], v: &[f32], output: &Output<'_>) {
        let Self { batch, heads, head_dim, q_len, kv_len, .. } = *self;
        assert!(batch > 0 && heads > 0 && head_dim > 0 && q_len > 0 && kv_len > 0, "a zero size in {self:?}");
        let width = heads * head_dim;
        for (values, len, stride) in
            [(q, q_len, self.q_stride), (k, kv_len, self.k_stride), (v, kv_len, self.v_stride)]
        {
            assert!(stride >= width, "a stride below {width}");
            assert!(values.len() >= (batch * len - 1) * stride + width, "{batch} x {len} rows of {width}");
        }
        assert_eq!(output.len(), batch * q_len * width, "an output of {batch} x {q_len} rows of {width}");
    }
}
