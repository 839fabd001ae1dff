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
    scaling_factor: f64,
}

impl LatentDecoder {
    /// # Errors
    /// Names the tensor that is missing or misshapen.
    pub fn load(params: &Params, config: &VaeConfig) -> Result<Self> {
        let decoder = match config {
            VaeConfig::Kl(config) => Decoder::Kl(Box::new(vae::Decoder::load(params, config)?)),
            VaeConfig::Tiny(config) => Decoder::Tiny(Box::new(taesd::Decoder::load(params, config)?)),
        };
        Ok(Self { decoder, scaling_factor: config.scaling_factor() })
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
