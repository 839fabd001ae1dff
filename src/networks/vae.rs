//! The autoencoder between pictures and latents (Kingma & Welling 2014), as diffusers' `AutoencoderKL`.

use anyhow::Result;
use candle_core::{DType, Tensor};

use super::config::KlConfig;
use super::resnet::Resnet;
use super::strips::{Map, Source, Strips, widened, without_margin};
use crate::layers::{Attention, Conv2d, ConvShape, Fused, GroupNorm, Linear, Padding, Params};

const EPS: f64 = 1e-6;

/// Single-headed self-attention over all pixels.
struct PixelAttention {
    attention: Attention,
    norm: GroupNorm,
    qkv: Linear,
    out: Linear,
}

impl PixelAttention {
    fn load(params: &Params, channels: usize, groups: usize) -> Result<Self> {
        let parts = ["to_q", "to_k", "to_v"].map(|name| params.at(name));
        Ok(Self {
            attention: Attention::new(params, 1),
            norm: GroupNorm::load(&params.at("group_norm"), groups, channels, EPS)?,
            qkv: Linear::load_stacked(&parts, channels, channels, true)?,
            out: Linear::load(&params.at("to_out.0"), channels, channels)?,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let (batch, height, width, channels) = input.dims4()?;
        let rows = (batch, height * width, channels);
        let qkv = self
            .qkv
            .forward(self.norm.of(input))?
            .reshape((batch, height * width, 3 * channels))?
            .chunk(3, 2)?;
        let attended = self.attention.to_itself(&qkv[0], &qkv[1], &qkv[2])?;
        Ok(self.out.forward_residual(&attended, &input.reshape(rows)?)?.reshape(input.shape())?)
    }
}

/// Resnet, attention, resnet at the lowest resolution.
struct MidBlock {
    first: Resnet,
    attention: Option<PixelAttention>,
    last: Resnet,
}

impl MidBlock {
    fn load(params: &Params, channels: usize, config: &KlConfig) -> Result<Self> {
        let groups = config.norm_num_groups;
        let resnet = |name: &str| Resnet::load(&params.at(name), channels, channels, None, groups, EPS);
        Ok(Self {
            first: resnet("resnets.0")?,
            attention: config
                .mid_block_add_attention
                .then(|| PixelAttention::load(&params.at("attentions.0"), channels, groups))
                .transpose()?,
            last: resnet("resnets.1")?,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let mut hidden = self.first.forward(input, None)?;
        if let Some(attention) = &self.attention {
            hidden = attention.forward(&hidden)?;
        }
        self.last.forward(&hidden, None)
    }
}

/// Resnets, then a convolution that halves or doubles the size.
struct Block {
    resnets: Vec<Resnet>,
    resample: Option<Conv2d>,
}

/// Latents to picture.
pub struct Decoder {
    dtype: DType,
    post_quant_conv: Option<Conv2d>,
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<Block>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: &KlConfig) -> Result<Self> {
        let latent = config.latent_channels;
        let decoder = params.at("decoder");
        let levels = config.channels.len();
        let mut width = config.channels[levels - 1];
        let conv_in = Conv2d::load(&decoder.at("conv_in"), ConvShape::same(latent, width, 3))?;
        let mid_block = MidBlock::load(&decoder.at("mid_block"), width, config)?;
        let mut up_blocks = Vec::new();
        for (index, &channels) in config.channels.iter().rev().enumerate() {
            let block = decoder.at(format_args!("up_blocks.{index}"));
            up_blocks.push(Block {
                resnets: resnets(&block, config.layers_per_block + 1, width, channels, config)?,
                resample: (index + 1 < levels)
                    .then(|| {
                        Conv2d::load(
                            &block.at("upsamplers.0.conv"),
                            ConvShape::same(channels, channels, 3).over_large_maps(),
                        )
                    })
                    .transpose()?,
            });
            width = channels;
        }
        Ok(Self {
            dtype: params.backend().dtype,
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| Conv2d::load(&params.at("post_quant_conv"), ConvShape::same(latent, latent, 1)))
                .transpose()?,
            conv_in,
            mid_block,
            up_blocks,
            norm_out: GroupNorm::load(&decoder.at("conv_norm_out"), config.norm_num_groups, width, EPS)?,
            conv_out: Conv2d::load(&decoder.at("conv_out"), ConvShape::same(width, config.out_channels, 3))?,
        })
    }

    /// Unscaled latents `[batch, latent, h, w]` to a picture `[batch, 3, H, W]`, about -1 to 1.
    pub fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut hidden = self.smallest_map(latents)?;
        for block in &self.up_blocks {
            for resnet in &block.resnets {
                hidden = resnet.forward(&hidden, None)?;
            }
            if let Some(upsample) = &block.resample {
                let double = (2 * hidden.dim(1)?, 2 * hidden.dim(2)?);
                hidden = upsample
                    .forward_fused(&hidden, Fused { enlarge_to: Some(double), ..Fused::default() })?;
            }
        }
        hidden = self.conv_out.forward(self.norm_out.silu_of(&hidden))?;
        Ok(hidden.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)?)
    }

    /// The same for one picture, in less memory.
    pub fn forward_in_strips(&self, latents: &Tensor, strips: Strips) -> Result<Tensor> {
        let mut source = Source::Stored(Map::store(&self.smallest_map(latents)?)?);
        for block in &self.up_blocks {
            for resnet in &block.resnets {
                source = Source::Stored(resnet.forward_in_strips(source, strips)?);
            }
            source = match (source, &block.resample) {
                (Source::Stored(map), Some(upsample)) => Source::Enlarged(upsample, map),
                (source, _) => source,
            };
        }
        let (height, width, channels) = (source.height(), source.width(), self.conv_out.shape().in_channels);
        let moments = source.moments(channels, strips)?;
        let mut picture = Vec::new();
        for strip in strips.of(height, width * channels) {
            let wide = widened(&strip, 1, height);
            let rows = source.rows(wide.clone())?.contiguous()?;
            let rows = self.conv_out.forward(self.norm_out.silu_of_part(&rows, &moments))?;
            let rows = without_margin(&rows, &wide, &strip)?;
            picture.push(rows.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)?);
        }
        Ok(Tensor::cat(&picture, 2)?)
    }

    /// Latents to `[batch, h, w, channels]`, after all that is as small as they are.
    fn smallest_map(&self, latents: &Tensor) -> Result<Tensor> {
        let mut hidden = latents.to_dtype(self.dtype)?.permute((0, 2, 3, 1))?.contiguous()?;
        if let Some(conv) = &self.post_quant_conv {
            hidden = conv.forward(&hidden)?;
        }
        self.mid_block.forward(&self.conv_in.forward(&hidden)?)
    }
}

/// Picture to latents.
pub struct Encoder {
    dtype: DType,
    latent_channels: usize,
    conv_in: Conv2d,
    down_blocks: Vec<Block>,
    mid_block: MidBlock,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    quant_conv: Option<Conv2d>,
}

/// The distribution of latents an encoder gives: a normal one for each value.
pub struct LatentDistribution {
    /// `[batch, latent, h, w]`
    pub mean: Tensor,
    /// `[batch, latent, h, w]`, natural logarithm, within -30 to 20.
    pub log_variance: Tensor,
}

impl Encoder {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: &KlConfig) -> Result<Self> {
        let encoder = params.at("encoder");
        let (levels, moments) = (config.channels.len(), 2 * config.latent_channels);
        let mut width = config.channels[0];
        let conv_in = Conv2d::load(&encoder.at("conv_in"), ConvShape::same(config.in_channels, width, 3))?;
        let mut down_blocks = Vec::new();
        for (index, &channels) in config.channels.iter().enumerate() {
            let block = encoder.at(format_args!("down_blocks.{index}"));
            down_blocks.push(Block {
                resnets: resnets(&block, config.layers_per_block, width, channels, config)?,
                resample: (index + 1 < levels)
                    .then(|| {
                        let shape = ConvShape::halving(channels, Padding::BottomRight);
                        Conv2d::load(&block.at("downsamplers.0.conv"), shape)
                    })
                    .transpose()?,
            });
            width = channels;
        }
        Ok(Self {
            dtype: params.backend().dtype,
            latent_channels: config.latent_channels,
            conv_in,
            down_blocks,
            mid_block: MidBlock::load(&encoder.at("mid_block"), width, config)?,
            norm_out: GroupNorm::load(&encoder.at("conv_norm_out"), config.norm_num_groups, width, EPS)?,
            conv_out: Conv2d::load(&encoder.at("conv_out"), ConvShape::same(width, moments, 3))?,
            quant_conv: config
                .use_quant_conv
                .then(|| Conv2d::load(&params.at("quant_conv"), ConvShape::same(moments, moments, 1)))
                .transpose()?,
        })
    }

    /// A picture `[batch, 3, H, W]` from -1 to 1 to the distribution of its unscaled latents.
    pub fn forward(&self, picture: &Tensor) -> Result<LatentDistribution> {
        let mut hidden = picture.to_dtype(self.dtype)?.permute((0, 2, 3, 1))?.contiguous()?;
        hidden = self.conv_in.forward(&hidden)?;
        for block in &self.down_blocks {
            for resnet in &block.resnets {
                hidden = resnet.forward(&hidden, None)?;
            }
            if let Some(downsample) = &block.resample {
                hidden = downsample.forward(&hidden)?;
            }
        }
        self.distribution(&hidden)
    }

    /// The same for one picture, in less memory.
    pub fn forward_in_strips(&self, picture: &Tensor, strips: Strips) -> Result<LatentDistribution> {
        let pixels = picture.to_dtype(self.dtype)?.permute((0, 2, 3, 1))?.contiguous()?;
        let (_, height, width, _) = pixels.dims4()?;
        let channels = self.conv_in.shape().out_channels;
        let mut map = Map::new(height, width, channels, &pixels);
        for strip in strips.of(height, width * channels) {
            let wide = widened(&strip, 1, height);
            let rows = self.conv_in.forward(&pixels.narrow(1, wide.start, wide.len())?.contiguous()?)?;
            map.write(strip.start, &without_margin(&rows, &wide, &strip)?)?;
        }
        let mut source = Source::Stored(map);
        for block in &self.down_blocks {
            for resnet in &block.resnets {
                source = Source::Stored(resnet.forward_in_strips(source, strips)?);
            }
            source = match (source, &block.resample) {
                (Source::Stored(map), Some(downsample)) => Source::Halved(downsample, map),
                (source, _) => source,
            };
        }
        self.distribution(&source.rows(0..source.height())?)
    }

    /// From the smallest map on.
    fn distribution(&self, map: &Tensor) -> Result<LatentDistribution> {
        let mut hidden = self.mid_block.forward(map)?;
        hidden = self.conv_out.forward(self.norm_out.silu_of(&hidden))?;
        if let Some(conv) = &self.quant_conv {
            hidden = conv.forward(&hidden)?;
        }
        let moments = hidden.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)?;
        Ok(LatentDistribution {
            mean: moments.narrow(1, 0, self.latent_channels)?,
            log_variance: moments
                .narrow(1, self.latent_channels, self.latent_channels)?
                .clamp(-30f32, 20f32)?,
        })
    }
}

fn resnets(block: &Params, count: usize, from: usize, to: usize, config: &KlConfig) -> Result<Vec<Resnet>> {
    (0..count)
        .map(|index| {
            let params = block.at(format_args!("resnets.{index}"));
            let from = if index == 0 { from } else { to };
            Resnet::load(&params, from, to, None, config.norm_num_groups, EPS)
        })
        .collect()
}
