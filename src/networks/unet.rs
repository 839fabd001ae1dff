//! The denoising UNet (Ronneberger et al. 2015; Rombach et al. 2022), as diffusers' `UNet2DConditionModel`.

use std::slice;

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Tensor};

use super::config::UnetConfig;
use super::resnet::Resnet;
use super::transformer::{ContextRows, Transformer};
use crate::layers::{Conv2d, ConvShape, Fused, GroupNorm, Linear, Padding, Params, concat_channels, silu};

/// A resnet and the transformer that may follow it.
struct Layer {
    resnet: Resnet,
    transformer: Option<Transformer>,
}

struct DownBlock {
    layers: Vec<Layer>,
    downsample: Option<Conv2d>,
}

struct MidBlock {
    first: Layer,
    last: Resnet,
}

struct UpBlock {
    layers: Vec<Layer>,
    upsample: Option<Conv2d>,
}

/// A prompt prepared for one UNet: each transformer's keys and values, in the order it asks for them.
pub struct Context {
    rows: Vec<ContextRows>,
    /// For a UNet that was distilled to do the guidance itself.
    guidance_scale: Option<f64>,
}

impl Context {
    /// Guides by `scale` in the network itself; only for a UNet with [`UnetConfig::guidance_channels`].
    #[must_use]
    pub fn guided_by(self, scale: f64) -> Self {
        Self { guidance_scale: Some(scale), ..self }
    }
}

pub struct Unet {
    config: UnetConfig,
    dtype: DType,
    conv_in: Conv2d,
    time_1: Linear,
    time_2: Linear,
    guidance: Option<Linear>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Unet {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: UnetConfig) -> Result<Self> {
        let channels = &config.channels;
        let (levels, first) = (channels.len(), channels[0]);
        let time_channels = 4 * first;
        let resnet = |params: Params, from: usize, to: usize| {
            Resnet::load(&params, from, to, Some(time_channels), config.norm_groups, config.norm_eps)
        };
        let transformer = |params: Params, level: usize| {
            Transformer::load(
                &params,
                channels[level],
                config.heads[level],
                config.context_channels,
                config.norm_groups,
            )
        };

        // What each layer on the way down leaves for the way up.
        let mut skips = vec![first];
        let mut width = first;
        let mut down_blocks = Vec::new();
        for (level, &level_width) in channels.iter().enumerate() {
            let block = params.at(format_args!("down_blocks.{level}"));
            let mut layers = Vec::new();
            for index in 0..config.layers_per_block {
                layers.push(Layer {
                    resnet: resnet(block.at(format_args!("resnets.{index}")), width, level_width)?,
                    transformer: config.down_attention[level]
                        .then(|| transformer(block.at(format_args!("attentions.{index}")), level))
                        .transpose()?,
                });
                width = level_width;
                skips.push(width);
            }
            let downsample = (level + 1 < levels)
                .then(|| {
                    let shape = ConvShape::halving(width, Padding::Around);
                    Conv2d::load(&block.at("downsamplers.0.conv"), shape)
                })
                .transpose()?;
            if downsample.is_some() {
                skips.push(width);
            }
            down_blocks.push(DownBlock { layers, downsample });
        }

        let mid = params.at("mid_block");
        let mid_block = config
            .has_mid_block
            .then(|| -> Result<_> {
                Ok(MidBlock {
                    first: Layer {
                        resnet: resnet(mid.at("resnets.0"), width, width)?,
                        transformer: Some(transformer(mid.at("attentions.0"), levels - 1)?),
                    },
                    last: resnet(mid.at("resnets.1"), width, width)?,
                })
            })
            .transpose()?;

        let mut up_blocks = Vec::new();
        for (index, level) in (0..levels).rev().enumerate() {
            let block = params.at(format_args!("up_blocks.{index}"));
            let mut layers = Vec::new();
            for layer in 0..=config.layers_per_block {
                let skip = skips.pop().context("the unet has more layers up than down")?;
                layers.push(Layer {
                    resnet: resnet(block.at(format_args!("resnets.{layer}")), width + skip, channels[level])?,
                    transformer: config.up_attention[index]
                        .then(|| transformer(block.at(format_args!("attentions.{layer}")), level))
                        .transpose()?,
                });
                width = channels[level];
            }
            let upsample = (level > 0)
                .then(|| Conv2d::load(&block.at("upsamplers.0.conv"), ConvShape::same(width, width, 3)))
                .transpose()?;
            up_blocks.push(UpBlock { layers, upsample });
        }

        Ok(Self {
            dtype: params.backend().dtype,
            conv_in: Conv2d::load(&params.at("conv_in"), ConvShape::same(config.in_channels, first, 3))?,
            time_1: Linear::load(&params.at("time_embedding.linear_1"), first, time_channels)?,
            time_2: Linear::load(&params.at("time_embedding.linear_2"), time_channels, time_channels)?,
            guidance: config
                .guidance_channels
                .map(|width| {
                    Linear::load_stacked(&[params.at("time_embedding.cond_proj")], width, first, false)
                })
                .transpose()?,
            down_blocks,
            mid_block,
            up_blocks,
            norm_out: GroupNorm::load(
                &params.at("conv_norm_out"),
                config.norm_groups,
                first,
                config.norm_eps,
            )?,
            conv_out: Conv2d::load(&params.at("conv_out"), ConvShape::same(first, config.out_channels, 3))?,
            config,
        })
    }

    /// Prepares text embeddings `[batch, tokens, context_channels]` for [`Self::forward`].
    pub fn context(&self, embeddings: &Tensor) -> Result<Context> {
        let embeddings = embeddings.to_dtype(self.dtype)?;
        let down = self.down_blocks.iter().flat_map(|block| &block.layers);
        let mid = self.mid_block.iter().map(|block| &block.first);
        let up = self.up_blocks.iter().flat_map(|block| &block.layers);
        let transformers = down.chain(mid).chain(up).filter_map(|layer| layer.transformer.as_ref());
        let rows = transformers.map(|part| part.context_rows(&embeddings)).collect::<Result<_>>()?;
        Ok(Context { rows, guidance_scale: None })
    }

    /// Predicts noise (or velocity) for `latents` `[batch, in_channels, height, width]` at `timestep`.
    ///
    /// # Errors
    /// When shapes do not fit, naming them.
    pub fn forward(&self, latents: &Tensor, timestep: f64, context: &Context) -> Result<Tensor> {
        ensure!(
            latents.dim(1)? == self.config.in_channels,
            "the unet takes {} channels, not latents of shape {:?}",
            self.config.in_channels,
            latents.shape()
        );
        let time = self.time_embedding(timestep, context.guidance_scale, latents)?;
        let mut context = context.rows.iter();
        let mut hidden = latents.to_dtype(self.dtype)?.permute((0, 2, 3, 1))?.contiguous()?;

        hidden = self.conv_in.forward(&hidden)?;
        let mut skips = vec![hidden.clone()];
        for block in &self.down_blocks {
            for layer in &block.layers {
                hidden = layer.forward(&hidden, &time, &mut context)?;
                skips.push(hidden.clone());
            }
            if let Some(downsample) = &block.downsample {
                hidden = downsample.forward(&hidden)?;
                skips.push(hidden.clone());
            }
        }

        if let Some(block) = &self.mid_block {
            hidden = block.first.forward(&hidden, &time, &mut context)?;
            hidden = block.last.forward(&hidden, Some(&time))?;
        }

        for block in &self.up_blocks {
            for layer in &block.layers {
                let skip = skips.pop().context("the unet has more layers up than down")?;
                hidden = layer.forward(&concat_channels(&hidden, &skip)?, &time, &mut context)?;
            }
            if let (Some(upsample), Some(next)) = (&block.upsample, skips.last()) {
                // Not always double: an odd size was rounded up on the way down.
                let size = (next.dim(1)?, next.dim(2)?);
                hidden =
                    upsample.forward_fused(&hidden, Fused { enlarge_to: Some(size), ..Fused::default() })?;
            }
        }

        hidden = self.conv_out.forward(self.norm_out.silu_of(&hidden))?;
        Ok(hidden.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)?)
    }

    /// Sinusoids of the timestep, plus those of the guidance scale through a linear layer, through two linear
    /// layers: `[1, 4 * first level's channels]`.
    fn time_embedding(&self, timestep: f64, guidance_scale: Option<f64>, latents: &Tensor) -> Result<Tensor> {
        let row = |values: Vec<f32>| -> Result<Tensor> {
            let width = values.len();
            Ok(Tensor::from_vec(values, (1, width), latents.device())?.to_dtype(self.dtype)?)
        };
        let mut hidden = row(sinusoids(timestep, &self.config))?;
        if let (Some(layer), Some(scale)) = (&self.guidance, guidance_scale) {
            let width = self.config.guidance_channels.unwrap_or_default();
            hidden = (hidden + layer.forward(&row(guidance_sinusoids(scale, width))?)?)?;
        }
        let hidden = self.time_1.forward(&hidden)?;
        self.time_2.forward(&silu(&hidden)?)
    }
}

/// `sin(t w_i), cos(t w_i)` with `w_i = 10000^(-i / (half - freq_shift))` (Vaswani et al. 2017, in the order
/// of diffusers' `get_timestep_embedding`).
fn sinusoids(timestep: f64, config: &UnetConfig) -> Vec<f32> {
    let half = config.channels[0] / 2;
    let angles: Vec<f32> = (0..half)
        .map(|i| {
            let exponent = -(10000f32.ln()) * i as f32 / (half as f32 - config.freq_shift as f32);
            timestep as f32 * exponent.exp()
        })
        .collect();
    let sines = angles.iter().map(|angle| angle.sin());
    let cosines = angles.iter().map(|angle| angle.cos());
    let mut values: Vec<f32> =
        if config.flip_sin_to_cos { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() };
    values.resize(config.channels[0], 0.0);
    values
}

/// `sin(1000 w f_i), cos(1000 w f_i)` of `w = scale - 1`, `f_i = 10000^(-i / (half - 1))` (Meng et al. 2023 in
/// the numbers of diffusers' `get_guidance_scale_embedding`).
fn guidance_sinusoids(scale: f64, width: usize) -> Vec<f32> {
    let half = width / 2;
    let angles: Vec<f32> = (0..half)
        .map(|i| {
            let exponent = -(10000f32.ln()) * i as f32 / (half as f32 - 1.0);
            (scale as f32 - 1.0) * 1000.0 * exponent.exp()
        })
        .collect();
    let sines = angles.iter().map(|angle| angle.sin());
    let mut values: Vec<f32> = sines.chain(angles.iter().map(|angle| angle.cos())).collect();
    values.resize(width, 0.0);
    values
}

impl Layer {
    fn forward(
        &self,
        input: &Tensor,
        time: &Tensor,
        context: &mut slice::Iter<'_, ContextRows>,
    ) -> Result<Tensor> {
        let hidden = self.resnet.forward(input, Some(time))?;
        match &self.transformer {
            Some(transformer) => {
                let rows = context.next().context("the context was made for another unet")?;
                transformer.forward(&hidden, rows)
            }
            None => Ok(hidden),
        }
    }
}
