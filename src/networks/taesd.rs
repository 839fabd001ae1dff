//! The tiny autoencoder (TAESD, Bohan 2023), as diffusers' `AutoencoderTiny`: its layers are one numbered sequence.

use anyhow::Result;
use candle_core::Tensor;

use super::blocks::tiny_block;
use super::config::TinyConfig;
use super::graph::{Conv, Enlarge, Graph, Value};
use super::network::Network;
use super::strips::Strips;
use crate::layers::{ConvShape, Padding, Params};

/// Numbers layers as they come.
struct Sequence<'a> {
    graph: &'a mut Graph,
    half: &'static str,
    next: usize,
}

impl Sequence<'_> {
    fn name(&mut self) -> String {
        self.next += 1;
        format!("{}.layers.{}", self.half, self.next - 1)
    }

    fn conv(&mut self, shape: ConvShape, map: Value) -> Conv {
        Conv::new(self.name(), shape, map)
    }

    fn blocks(&mut self, count: usize, map: Value) -> Value {
        (0..count).fold(map, |map, _| {
            let name = self.name();
            tiny_block(self.graph, &name, map)
        })
    }
}

/// From unscaled latents, softly limited, to a picture from 0 to 1.
pub fn describe_decoder(config: &TinyConfig) -> Graph {
    let mut graph = Graph::default();
    let channels = config.decoder_block_out_channels[0];
    let mut map = graph.input(config.latent_channels);
    let mut sequence = Sequence { graph: &mut graph, half: "decoder", next: 0 };

    sequence.graph.stage("decoder.conv_in");
    let conv = sequence.conv(ConvShape::same(config.latent_channels, channels, 3), map);
    map = sequence.graph.conv(Conv { relu: true, ..conv });
    // The activation has a number of its own, and so has each enlarging.
    sequence.next += 1;
    let levels = config.num_decoder_blocks.len();
    for (level, &count) in config.num_decoder_blocks.iter().enumerate() {
        sequence.graph.stage(format!("decoder.level.{level}"));
        if level == 0 && levels == 1 {
            sequence.graph.begin_large();
        }
        map = sequence.blocks(count, map);
        if level + 1 == levels {
            let conv = sequence.conv(ConvShape::same(channels, config.out_channels, 3), map);
            sequence.graph.conv(conv);
            continue;
        }
        if level + 2 == levels {
            sequence.graph.begin_large();
        }
        sequence.next += 1;
        let shape = ConvShape { bias: false, ..ConvShape::same(channels, channels, 3) };
        let conv = sequence.conv(shape, map);
        map = sequence.graph.conv(Conv { enlarge: Some(Enlarge::Double), ..conv });
    }
    graph.end_large();
    graph
}

/// From a picture from 0 to 1 to unscaled latents.
pub fn describe_encoder(config: &TinyConfig) -> Graph {
    let mut graph = Graph::default();
    let channels = config.encoder_block_out_channels[0];
    let mut map = graph.input(config.in_channels);
    let mut sequence = Sequence { graph: &mut graph, half: "encoder", next: 0 };

    sequence.graph.begin_large();
    for (level, &count) in config.num_encoder_blocks.iter().enumerate() {
        sequence.graph.stage(format!("encoder.level.{level}"));
        let shape = if level == 0 {
            ConvShape::same(config.in_channels, channels, 3)
        } else {
            ConvShape { bias: false, ..ConvShape::halving(channels, Padding::Around) }
        };
        let conv = sequence.conv(shape, map);
        map = sequence.graph.conv(conv);
        if level == 1 {
            sequence.graph.end_large();
        }
        map = sequence.blocks(count, map);
    }
    if config.num_encoder_blocks.len() == 1 {
        sequence.graph.end_large();
    }
    sequence.graph.stage("encoder.conv_out");
    let conv = sequence.conv(ConvShape::same(channels, config.latent_channels, 3), map);
    sequence.graph.conv(conv);
    graph
}

/// Latents to picture.
pub struct Decoder {
    network: Network,
}

impl Decoder {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: &TinyConfig) -> Result<Self> {
        Ok(Self { network: Network::load(params, describe_decoder(config))? })
    }

    /// Unscaled latents `[batch, latent, h, w]` to a picture `[batch, 3, H, W]`, about -1 to 1.
    pub fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let picture = self.network.forward(&self.limited(latents)?)?;
        Ok(((picture * 2.0)? - 1.0)?)
    }

    /// The same for one picture, the last level, whose maps are the largest, strip by strip.
    pub fn forward_in_strips(&self, latents: &Tensor, strips: Strips) -> Result<Tensor> {
        let picture = self.network.forward_in_strips(&self.limited(latents)?, strips)?;
        Ok(((picture * 2.0)? - 1.0)?)
    }

    /// Latents after a soft clamp to -3..3.
    fn limited(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = latents.to_dtype(self.network.dtype())?;
        Ok(((latents / 3.0)?.tanh()? * 3.0)?)
    }
}

/// Picture to latents.
pub struct Encoder {
    network: Network,
}

impl Encoder {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: &TinyConfig) -> Result<Self> {
        Ok(Self { network: Network::load(params, describe_encoder(config))? })
    }

    /// A picture `[batch, 3, H, W]` from -1 to 1 to its unscaled latents `[batch, latent, h, w]`.
    pub fn forward(&self, picture: &Tensor) -> Result<Tensor> {
        self.network.forward(&unit(picture)?)
    }

    /// The same for one picture, the first level, whose maps are the largest, strip by strip.
    pub fn forward_in_strips(&self, picture: &Tensor, strips: Strips) -> Result<Tensor> {
        self.network.forward_in_strips(&unit(picture)?, strips)
    }
}

/// A picture from -1 to 1 as one from 0 to 1.
fn unit(picture: &Tensor) -> Result<Tensor> {
    Ok(((picture + 1.0)? / 2.0)?)
}
