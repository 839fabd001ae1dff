//! The transformer block of the UNet, through which the prompt enters the picture.

use anyhow::Result;
use candle_core::Tensor;

use crate::layers::{Attention, Conv2d, ConvShape, Fused, GroupNorm, LayerNorm, Linear, Params};

/// Cross-attention keys and values of one block: they depend on the prompt alone.
pub struct ContextRows {
    /// `[batch, tokens, channels]`
    key: Tensor,
    /// `[batch, tokens, channels]`
    value: Tensor,
}

/// `Transformer2DModel` with one `BasicTransformerBlock` (Rombach et al. 2022).
pub struct Transformer {
    attention: Attention,
    norm: GroupNorm,
    /// A 1x1 convolution or a linear layer: the same over channels-last maps.
    proj_in: Conv2d,
    norm1: LayerNorm,
    self_qkv: Linear,
    self_out: Linear,
    norm2: LayerNorm,
    cross_query: Linear,
    cross_kv: Linear,
    cross_out: Linear,
    norm3: LayerNorm,
    feed_in: Linear,
    feed_out: Linear,
    proj_out: Conv2d,
}

impl Transformer {
    pub fn load(
        params: &Params,
        channels: usize,
        heads: usize,
        context_channels: usize,
        groups: usize,
    ) -> Result<Self> {
        let block = params.at("transformer_blocks.0");
        let stacked = |names: &[&str], inputs: usize| {
            let parts: Vec<_> = names.iter().map(|name| block.at(name)).collect();
            Linear::load_stacked(&parts, inputs, channels, false)
        };
        let square = |name: &str| Linear::load(&block.at(name), channels, channels);
        let norm = |name: &str| LayerNorm::load(&block.at(name), channels, 1e-5);
        let pointwise = ConvShape::same(channels, channels, 1);
        Ok(Self {
            attention: Attention::new(params, heads),
            norm: GroupNorm::load(&params.at("norm"), groups, channels, 1e-6)?,
            proj_in: Conv2d::load(&params.at("proj_in"), pointwise)?,
            norm1: norm("norm1")?,
            self_qkv: stacked(&["attn1.to_q", "attn1.to_k", "attn1.to_v"], channels)?,
            self_out: square("attn1.to_out.0")?,
            norm2: norm("norm2")?,
            cross_query: stacked(&["attn2.to_q"], channels)?,
            cross_kv: stacked(&["attn2.to_k", "attn2.to_v"], context_channels)?,
            cross_out: square("attn2.to_out.0")?,
            norm3: norm("norm3")?,
            feed_in: Linear::load_gated(&block.at("ff.net.0.proj"), channels, 4 * channels)?,
            feed_out: Linear::load(&block.at("ff.net.2"), 4 * channels, channels)?,
            proj_out: Conv2d::load(&params.at("proj_out"), pointwise)?,
        })
    }

    /// Keys and values of `context` `[batch, tokens, context_channels]`.
    pub fn context_rows(&self, context: &Tensor) -> Result<ContextRows> {
        let [key, value] = columns(&self.cross_kv.forward(context)?)?;
        Ok(ContextRows { key, value })
    }

    /// `[batch, height, width, channels]` to the same shape.
    pub fn forward(&self, input: &Tensor, context: &ContextRows) -> Result<Tensor> {
        let (batch, height, width, channels) = input.dims4()?;
        let hidden = self.proj_in.forward(self.norm.of(input))?;
        let hidden = hidden.reshape((batch, height * width, channels))?;

        let [query, key, value] = columns(&self.self_qkv.forward(self.norm1.of(&hidden))?)?;
        let attended = self.attention.to_itself(&query, &key, &value)?;
        let hidden = self.self_out.forward_residual(&attended, &hidden)?;

        let query = self.cross_query.forward(self.norm2.of(&hidden))?;
        let attended = self.attention.to_context(&query, &context.key, &context.value)?;
        let hidden = self.cross_out.forward_residual(&attended, &hidden)?;

        let gated = self.feed_in.forward(self.norm3.of(&hidden))?;
        let hidden = self.feed_out.forward_residual(&gated, &hidden)?;

        let hidden = hidden.reshape((batch, height, width, channels))?;
        self.proj_out.forward_fused(&hidden, Fused { residual: Some(input), ..Fused::default() })
    }
}

/// Cuts stacked outputs `[batch, rows, N * channels]` into N views.
fn columns<const N: usize>(stacked: &Tensor) -> Result<[Tensor; N]> {
    let views = stacked.chunk(N, 2)?;
    let found = views.len();
    views.try_into().map_err(|_| anyhow::anyhow!("{found} parts where {N} were stacked"))
}
