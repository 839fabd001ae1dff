//! The tiny autoencoder (TAESD, Bohan 2023), as diffusers' `AutoencoderTiny`: its layers are one numbered sequence.

use std::ops::Range;

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};

use super::config::TinyConfig;
use super::strips::{Strips, enlarged_rows, widened, without_margin};
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

impl Level {
    /// As an encoder's: the convolution, then the blocks.
    fn forward_down(&self, input: &Tensor) -> Result<Tensor> {
        let mut hidden = self.conv.forward(input)?;
        for block in &self.blocks {
            hidden = block.forward(&hidden)?;
        }
        Ok(hidden)
    }
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
        let mut hidden = self.first_map(latents)?;
        for (index, level) in self.levels.iter().enumerate() {
            for block in &level.blocks {
                hidden = block.forward(&hidden)?;
            }
            let double = (2 * hidden.dim(1)?, 2 * hidden.dim(2)?);
            let enlarge_to = (index + 1 < self.levels.len()).then_some(double);
            hidden = level.conv.forward_fused(&hidden, Fused { enlarge_to, ..Fused::default() })?;
        }
        as_picture(&hidden)
    }

    /// The same with the last level, whose maps are the largest, strip by strip; rows next to a strip that its
    /// convolutions see are computed again.
    pub fn forward_in_strips(&self, latents: &Tensor, strips: Strips) -> Result<Tensor> {
        let mut hidden = self.first_map(latents)?;
        let (last, levels) = self.levels.split_last().context("a decoder has levels")?;
        for (index, level) in levels.iter().enumerate() {
            for block in &level.blocks {
                hidden = block.forward(&hidden)?;
            }
            if index + 1 < levels.len() {
                let enlarge_to = Some((2 * hidden.dim(1)?, 2 * hidden.dim(2)?));
                hidden = level.conv.forward_fused(&hidden, Fused { enlarge_to, ..Fused::default() })?;
            }
        }
        let (_, small, width, channels) = hidden.dims4()?;
        let enlarge = levels.last().map(|level| &level.conv);
        let factor = if enlarge.is_some() { 2 } else { 1 };
        let height = factor * small;
        let margin = 3 * last.blocks.len() + 1;
        let mut picture = Vec::new();
        for strip in strips.of(height, factor * width * channels) {
            let wide = widened(&strip, margin, height);
            let read = |rows: Range<usize>| Ok(hidden.narrow(1, rows.start, rows.len())?);
            let mut rows = match enlarge {
                Some(conv) => enlarged_rows(conv, wide.clone(), small, read)?,
                None => read(wide.clone())?,
            }
            .contiguous()?;
            for block in &last.blocks {
                rows = block.forward(&rows)?;
            }
            let rows = without_margin(&last.conv.forward(&rows)?, &wide, &strip)?;
            picture.push(as_picture(&rows)?);
        }
        Ok(Tensor::cat(&picture, 2)?)
    }

    fn first_map(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = latents.to_dtype(self.dtype)?.permute((0, 2, 3, 1))?.contiguous()?;
        // A soft clamp to -3..3.
        let latents = ((latents / 3.0)?.tanh()? * 3.0)?;
        self.conv_in.forward_fused(&latents, Fused { relu: true, ..Fused::default() })
    }
}

/// `[batch, H, W, 3]` from 0 to 1 as `[batch, 3, H, W]` from -1 to 1.
fn as_picture(map: &Tensor) -> Result<Tensor> {
    let picture = map.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)?;
    Ok(((picture * 2.0)? - 1.0)?)
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
            hidden = level.forward_down(&hidden)?;
        }
        self.latents(&hidden)
    }

    /// The same with the first level, whose maps are the largest, strip by strip.
    pub fn forward_in_strips(&self, picture: &Tensor, strips: Strips) -> Result<Tensor> {
        let unit = ((picture + 1.0)? / 2.0)?;
        let unit = unit.to_dtype(self.dtype)?.permute((0, 2, 3, 1))?.contiguous()?;
        let (first, levels) = self.levels.split_first().context("an encoder has levels")?;
        let Some((second, levels)) = levels.split_first() else {
            return self.latents(&first.forward_down(&unit)?);
        };
        let (_, height, width, _) = unit.dims4()?;
        // What the first level sees, and the convolution that halves; even, so that the halving keeps its grid.
        let margin = (3 * first.blocks.len() + 2).next_multiple_of(2);
        let mut halved = Vec::new();
        for strip in strips.of(height, width * second.conv.shape().in_channels) {
            let wide = widened(&strip, margin, height);
            let rows = first.forward_down(&unit.narrow(1, wide.start, wide.len())?.contiguous()?)?;
            let rows = second.conv.forward(&rows)?;
            halved.push(without_margin(
                &rows,
                &(wide.start / 2..wide.end.div_ceil(2)),
                &(strip.start / 2..strip.end.div_ceil(2)),
            )?);
        }
        let mut hidden = Tensor::cat(&halved, 1)?;
        for block in &second.blocks {
            hidden = block.forward(&hidden)?;
        }
        for level in levels {
            hidden = level.forward_down(&hidden)?;
        }
        self.latents(&hidden)
    }

    /// The last layer.
    fn latents(&self, hidden: &Tensor) -> Result<Tensor> {
        let latents = self.conv_out.forward(hidden)?;
        Ok(latents.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)?)
    }
}
