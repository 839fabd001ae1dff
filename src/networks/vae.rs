//! The autoencoder between pictures and latents (Kingma & Welling 2014), as diffusers' `AutoencoderKL`.

use anyhow::Result;
use candle_core::Tensor;

use super::blocks::{pixel_attention, resnet};
use super::config::KlConfig;
use super::graph::{Conv, Enlarge, Graph, Groups, Value};
use super::network::Network;
use super::strips::Strips;
use crate::layers::{ConvShape, Padding, Params};

/// From unscaled latents to a picture.
pub fn describe_decoder(config: &KlConfig) -> Graph {
    let mut graph = Graph::default();
    let g = &mut graph;
    let (latent, levels, groups) = (config.latent_channels, config.channels.len(), groups(config));
    let lowest = config.channels[levels - 1];
    let mut map = g.input(latent);

    g.stage("decoder.conv_in");
    if config.use_post_quant_conv {
        map = g.conv(Conv::new("post_quant_conv", ConvShape::same(latent, latent, 1), map));
    }
    map = g.conv(Conv::new("decoder.conv_in", ConvShape::same(latent, lowest, 3), map));
    map = middle(g, "decoder", map, config);

    g.begin_large();
    for (index, &channels) in config.channels.iter().rev().enumerate() {
        let block = format!("decoder.up_blocks.{index}");
        map = resnets(g, &block, config.layers_per_block + 1, map, channels, groups);
        if index + 1 < levels {
            g.stage(format!("{block}.upsamplers"));
            let shape = ConvShape::same(channels, channels, 3).over_large_maps();
            let conv = Conv::new(format!("{block}.upsamplers.0.conv"), shape, map);
            map = g.conv(Conv { enlarge: Some(Enlarge::Double), ..conv });
        }
    }

    g.stage("decoder.conv_out");
    let shape = ConvShape::same(config.channels[0], config.out_channels, 3);
    g.conv(Conv::new("decoder.conv_out", shape, groups.norm_silu("decoder.conv_norm_out", map)));
    g.end_large();
    graph
}

/// From a picture to mean and logarithm of the variance of its unscaled latents, side by side in the channels.
pub fn describe_encoder(config: &KlConfig) -> Graph {
    let mut graph = Graph::default();
    let g = &mut graph;
    let (moments, levels, groups) = (2 * config.latent_channels, config.channels.len(), groups(config));
    let (first, lowest) = (config.channels[0], config.channels[levels - 1]);
    let mut map = g.input(config.in_channels);

    g.begin_large();
    g.stage("encoder.conv_in");
    map = g.conv(Conv::new("encoder.conv_in", ConvShape::same(config.in_channels, first, 3), map));
    for (index, &channels) in config.channels.iter().enumerate() {
        let block = format!("encoder.down_blocks.{index}");
        map = resnets(g, &block, config.layers_per_block, map, channels, groups);
        if index + 1 < levels {
            g.stage(format!("{block}.downsamplers"));
            let shape = ConvShape::halving(channels, Padding::BottomRight);
            map = g.conv(Conv::new(format!("{block}.downsamplers.0.conv"), shape, map));
        }
    }
    g.end_large();
    map = middle(g, "encoder", map, config);

    g.stage("encoder.conv_out");
    let shape = ConvShape::same(lowest, moments, 3);
    map = g.conv(Conv::new("encoder.conv_out", shape, groups.norm_silu("encoder.conv_norm_out", map)));
    if config.use_quant_conv {
        g.conv(Conv::new("quant_conv", ConvShape::same(moments, moments, 1), map));
    }
    graph
}

fn groups(config: &KlConfig) -> Groups {
    Groups { count: config.norm_num_groups, eps: 1e-6 }
}

/// Resnet, attention, resnet at the lowest resolution.
fn middle(g: &mut Graph, half: &str, map: Value, config: &KlConfig) -> Value {
    let (block, groups, channels) = (format!("{half}.mid_block"), groups(config), g.channels(map));
    g.stage(block.clone());
    let mut map = resnet(g, &format!("{block}.resnets.0"), map, channels, groups, None);
    if config.mid_block_add_attention {
        map = pixel_attention(g, &format!("{block}.attentions.0"), map, groups);
    }
    resnet(g, &format!("{block}.resnets.1"), map, channels, groups, None)
}

fn resnets(g: &mut Graph, block: &str, count: usize, map: Value, channels: usize, groups: Groups) -> Value {
    (0..count).fold(map, |map, index| {
        g.stage(format!("{block}.{index}"));
        resnet(g, &format!("{block}.resnets.{index}"), map, channels, groups, None)
    })
}

/// Latents to picture.
pub struct Decoder {
    network: Network,
}

impl Decoder {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: &KlConfig) -> Result<Self> {
        Ok(Self { network: Network::load(params, describe_decoder(config))? })
    }

    /// Unscaled latents `[batch, latent, h, w]` to a picture `[batch, 3, H, W]`, about -1 to 1.
    pub fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        self.network.forward(latents)
    }

    /// The same for one picture, in less memory.
    pub fn forward_in_strips(&self, latents: &Tensor, strips: Strips) -> Result<Tensor> {
        self.network.forward_in_strips(latents, strips)
    }
}

/// Picture to latents.
pub struct Encoder {
    network: Network,
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
        Ok(Self { network: Network::load(params, describe_encoder(config))? })
    }

    /// A picture `[batch, 3, H, W]` from -1 to 1 to the distribution of its unscaled latents.
    pub fn forward(&self, picture: &Tensor) -> Result<LatentDistribution> {
        LatentDistribution::of(&self.network.forward(picture)?)
    }

    /// The same for one picture, in less memory.
    pub fn forward_in_strips(&self, picture: &Tensor, strips: Strips) -> Result<LatentDistribution> {
        LatentDistribution::of(&self.network.forward_in_strips(picture, strips)?)
    }
}

impl LatentDistribution {
    /// From means and logarithms of variances, `[batch, 2 * latent, h, w]`.
    fn of(moments: &Tensor) -> Result<Self> {
        let (mean, log_variance) = match moments.chunk(2, 1)?.as_slice() {
            [mean, log_variance] => (mean.clone(), log_variance.clamp(-30f32, 20f32)?),
            parts => anyhow::bail!("{} parts where mean and variance are", parts.len()),
        };
        Ok(Self { mean, log_variance })
    }
}
