//! The tiny autoencoder (TAESD, Bohan 2023), as diffusers' `AutoencoderTiny`: its layers are one numbered sequence.

use anyhow::Result;
use candle_core::{DType, Tensor};

use super::config::TinyConfig;
use crate::layers::{Conv2d, ConvShape, Fused, Padding, Params};

/// Three convolutions around which the input is added, ReLU after each.
struct Block {
    convs: [Conv2d; 3],
}

impl Block {
    fn load(params: &Params, channels: usize) -> Result<Self> {
        let conv = |index: usize| {
            Conv2d::load(&params.at(format_args!("conv.{index}")), ConvShape::same(channels, channels, 3))
        };
        Ok(Self { convs: [conv(0)?, conv(2)?, conv(4)?] })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let relu = Fused { relu: true, ..Fused::default() };
        let hidden = self.convs[0].forward_fused(input, relu)?;
        let hidden = self.convs[1].forward_fused(&hidden, relu)?;
        self.convs[2].forward_fused(&hidden, Fused { residual: Some(input), ..relu })
    }
}

/// One level: blocks, and the convolution before (encoder) or after (decoder) them.
struct Level {
    blocks: Vec<Block>,
    conv: Conv2d,
}

/// Latents to picture.
pub struct Decoder {
    dtype: DType,
    conv_in: Conv2d,
    levels: Vec<Level>,
}

impl Decoder {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: &TinyConfig) -> Result<Self> {
        let layer = |index: usize| params.at(format_args!("decoder.layers.{index}"));
        let channels = config.decoder_block_out_channels[0];
        let conv_in = Conv2d::load(&layer(0), ConvShape::same(config.latent_channels, channels, 3))?;
        // Number 1 is a ReLU; each level but the last has an upsampling before its convolution.
        let mut next = 2;
        let mut levels = Vec::new();
        let last = config.num_decoder_blocks.len() - 1;
        for (index, &count) in config.num_decoder_blocks.iter().enumerate() {
            let blocks =
                (next..next + count).map(|at| Block::load(&layer(at), channels)).collect::<Result<_>>()?;
            next += count;
            let shape = if index == last {
                ConvShape::same(channels, config.out_channels, 3)
            } else {
                next += 1;
                ConvShape { bias: false, ..ConvShape::same(channels, channels, 3) }
            };
            levels.push(Level { blocks, conv: Conv2d::load(&layer(next), shape)? });
            next += 1;
        }
        Ok(Self { dtype: params.backend().dtype, conv_in, levels })
    }

    /// Unscaled latents `[batch, latent, h, w]` to a picture `[batch, 3, H, W]`, about -1 to 1.
    pub fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = latents.to_dtype(self.dtype)?.permute((0, 2, 3, 1))?.contiguous()?;
        // A soft clamp to -3..3.
        let latents = ((latents / 3.0)?.tanh()? * 3.0)?;
        let mut hidden = self.conv_in.forward_fused(&latents, Fused { relu: true, ..Fused::default() })?;
        for (index, level) in self.levels.iter().enumerate() {
            for block in &level.blocks {
                hidden = block.forward(&hidden)?;
            }
            let double = (2 * hidden.dim(1)?, 2 * hidden.dim(2)?);
            let enlarge_to = (index + 1 < self.levels.len()).then_some(double);
            hidden = level.conv.forward_fused(&hidden, Fused { enlarge_to, ..Fused::default() })?;
        }
        let picture = hidden.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)?;
        Ok(((picture * 2.0)? - 1.0)?)
    }
}

/// Picture to latents.
pub struct Encoder {
    dtype: DType,
    levels: Vec<Level>,
    conv_out: Conv2d,
}

impl Encoder {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: &TinyConfig) -> Result<Self> {
        let layer = |index: usize| params.at(format_args!("encoder.layers.{index}"));
        let channels = config.encoder_block_out_channels[0];
        let mut next = 0;
        let mut levels = Vec::new();
        for (index, &count) in config.num_encoder_blocks.iter().enumerate() {
            let shape = if index == 0 {
                ConvShape::same(config.in_channels, channels, 3)
            } else {
                ConvShape { bias: false, ..ConvShape::halving(channels, Padding::Around) }
            };
            let conv = Conv2d::load(&layer(next), shape)?;
            next += 1;
            let blocks =
                (next..next + count).map(|at| Block::load(&layer(at), channels)).collect::<Result<_>>()?;
            next += count;
            levels.push(Level { blocks, conv });
        }
        let conv_out = Conv2d::load(&layer(next), ConvShape::same(channels, config.latent_channels, 3))?;
        Ok(Self { dtype: params.backend().dtype, levels, conv_out })
    }

    /// A picture `[batch, 3, H, W]` from -1 to 1 to its unscaled latents `[batch, latent, h, w]`.
    pub fn forward(&self, picture: &Tensor) -> Result<Tensor> {
        let unit = ((picture + 1.0)? / 2.0)?;
        let mut hidden = unit.to_dtype(self.dtype)?.permute((0, 2, 3, 1))?.contiguous()?;
        for level in &self.levels {
            hidden = level.conv.forward(&hidden)?;
            for block in &level.blocks {
                hidden = block.forward(&hidden)?;
            }
        }
        let latents = self.conv_out.forward(&hidden)?;
        Ok(latents.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)?)
    }
}
