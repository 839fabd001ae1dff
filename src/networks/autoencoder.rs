//! Either autoencoder's decoder behind one interface: scaled latents in, a picture out.

use anyhow::Result;
use candle_core::Tensor;

use super::config::VaeConfig;
use super::{taesd, vae};
use crate::layers::Params;

enum Decoder {
    Kl(Box<vae::Decoder>),
    Tiny(Box<taesd::Decoder>),
}

/// Decodes latents as the sampler leaves them.
pub struct LatentDecoder {
    decoder: Decoder,
    latent_channels: usize,
    scaling_factor: f64,
    factor: usize,
}

impl LatentDecoder {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: &VaeConfig) -> Result<Self> {
        let (decoder, latent_channels, scaling_factor, levels) = match config {
            VaeConfig::Kl(config) => (
                Decoder::Kl(Box::new(vae::Decoder::load(params, config)?)),
                config.latent_channels,
                config.scaling_factor,
                config.channels.len(),
            ),
            VaeConfig::Tiny(config) => (
                Decoder::Tiny(Box::new(taesd::Decoder::load(params, config)?)),
                config.latent_channels,
                config.scaling_factor,
                config.num_decoder_blocks.len(),
            ),
        };
        Ok(Self { decoder, latent_channels, scaling_factor, factor: 1 << (levels - 1) })
    }

    pub fn latent_channels(&self) -> usize {
        self.latent_channels
    }

    /// How many pixels one latent is wide.
    pub fn factor(&self) -> usize {
        self.factor
    }

    /// `[batch, latent, h, w]` to `[batch, 3, h * factor, w * factor]`, about -1 to 1.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let unscaled = (latents / self.scaling_factor)?;
        match &self.decoder {
            Decoder::Kl(decoder) => decoder.forward(&unscaled),
            Decoder::Tiny(decoder) => decoder.forward(&unscaled),
        }
    }
}
